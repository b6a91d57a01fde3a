"""Writing OpenVINO IR."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import Tensor

from kdmri_edge.extras import require
from kdmri_edge.reconstructor import Reconstructor
from kdmri_export import to_onnx

__all__ = ["write"]


def write(
    reconstructor: Reconstructor,
    example: Tensor,
    graph: Path,
    *,
    dynamic: bool,
    precision: str = "f32",
    mask_input: bool = False,
) -> None:
    """Convert the network by way of its ONNX graph; weights lie in the .bin beside the .xml.

    Args:
        reconstructor: The network.
        example: Input of the size that the graph is for, [1, C, H, W].
        graph: Destination, .xml.
        dynamic: Whether any batch is to be taken.
        precision: Of the convolutions: "f32", "f16" or "int8".
        mask_input: Whether the operator of data consistency is a second input.

    Raises:
        MissingExtraError: openvino, onnx or onnxscript is not installed.
    """
    openvino = require("openvino", extra="openvino")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        to_onnx.write(
            reconstructor,
            example,
            source,
            dynamic=dynamic,
            precision=precision,
            mask_input=mask_input,
        )
        model = openvino.convert_model(source)
    # The converter notes the path of its input, which is a temporary one of this machine.
    if model.has_rt_info(["conversion_parameters"]):
        model.set_rt_info("", ["conversion_parameters"])
    openvino.save_model(model, graph, compress_to_fp16=False)
