"""Writing OpenVINO IR."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import Tensor

from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.utils.extras import require
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets import onnx as to_onnx
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
    """
    openvino = require("openvino", extra="openvino")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        written = to_onnx.write(reconstructor, example, source, recipe)
        model = openvino.convert_model(source)
    # The converter notes the path of its input, which is a temporary one of this machine.
    if model.has_rt_info(["conversion_parameters"]):
        model.set_rt_info("", ["conversion_parameters"])
    openvino.save_model(model, graph, compress_to_fp16=False)
    return written
