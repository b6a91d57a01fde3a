"""Writing OpenVINO IR."""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from torch import Tensor

from kdmri_edge.errors import ExportError
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.utils.extras import require
from kdmri_export.passes.complex_numbers import DFT_MATRICES
from kdmri_export.passes.normalisation import spread_sums
from kdmri_export.passes.parted_outputs import part_outputs
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.onnx import to_model
from kdmri_export.written import Written

__all__ = ["write"]


def write(
    reconstructor: Reconstructor, example: Tensor, graph: Path, recipe: ExportRecipe
) -> Written:
    """Convert the network by way of its ONNX graph; weights lie in the .bin beside the .xml.

    Args:
        reconstructor: The network.
        example: Input of the size that the graph is for, see `targets.onnx.to_model`.
        graph: Destination, .xml.
        recipe: Gives batch, precision and whether the mask is an input.

    Raises:
        MissingExtraError: openvino, onnx or onnxscript is not installed.
        ExportError: OpenVINO does not take the graph.
    """
    openvino = require("openvino", extra="openvino")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        onnx_model, written = to_model(reconstructor, example, recipe)
        part_outputs(onnx_model)
        # in bf16 and int8 they would lose more than the kernel does, whose sums are in float32
        products = spread_sums(onnx_model) if recipe.precision == "f32" else frozenset()
        source.write_bytes(onnx_model.SerializeToString())
        try:
            model = openvino.convert_model(source)
        except Exception as error:  # a converter may raise anything
            raise _unread(error) from error
        if written.transforms:
            products |= _products(source)
    # The converter notes the path of its input, which is a temporary one of this machine.
    if model.has_rt_info(["conversion_parameters"]):
        model.set_rt_info("", ["conversion_parameters"])
    openvino.save_model(model, graph, compress_to_fp16=False)
    if products:
        _keep_exact(graph, products)
    return written


def _unread(error: Exception) -> ExportError:
    """Return the error for a graph of ONNX that OpenVINO does not take."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    telling = (line for line in said if "nsupported" in line or "not support" in line)
    reason = next(telling, said[-1])
    return ExportError(
        f"OpenVINO cannot read the network's graph: {reason[:300].rstrip('. ')}.",
        "Write it with other operators, or export it for another target: onnx.",
    )


def _products(source: Path) -> frozenset[str]:
    """Return the names of a graph's products with DFT matrices, which OpenVINO keeps."""
    onnx = require("onnx", extra="onnx")
    return frozenset(
        node.name
        for node in onnx.load(source).graph.node
        if node.op_type == "MatMul" and any(name.startswith(DFT_MATRICES) for name in node.input)
    )


def _keep_exact(graph: Path, products: frozenset[str]) -> None:
    """Mark layers, which OpenVINO then computes in float32 under any hint.

    It would compute all products in bf16, whose eight bits the range of k-space does not bear. Its
    Python interface does not set this mark of a layer, which its file holds.
    """
    tree = ElementTree.parse(graph)
    for layer in tree.iterfind("./layers/layer"):
        if layer.get("name") in products:
            mark = ElementTree.Element("rt_info")
            mark.append(ElementTree.Element("attribute", {"name": "precise", "version": "0"}))
            layer.insert(1, mark)  # behind what the layer is, before its inputs
    tree.write(graph, encoding="utf-8", xml_declaration=True)
