"""How OpenVINO reads `kdmri::data_consistency` where a graph keeps it as one node.

x' = x + g (x_u - P x), in the forms of `physics.consistency`, spelled out in OpenVINO's operators.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import BackendError
from kdmri_edge.physics.fourier import dft_matrices
from kdmri_edge.physics.operators import Form
from kdmri_edge.utils.extras import require

__all__ = ["NODE", "data_consistency_nodes", "onnx_extension"]

NODE = ("kdmri", "DataConsistency")
"""Domain and name of the operator in ONNX graphs."""


def data_consistency_nodes(x: Any, x_u: Any, operator: Any, gain: float, form: str) -> Any:
    """Build x + g (x_u - P x) out of OpenVINO nodes.

    Args:
        x: Output of the image, [B, C, H, W]; H, W and C are static.
        x_u: Output of the zero-filled image, of the same shape.
        operator: Output of what `physics.operators.operator_array` gives for the form.
        gain: g = lambda / (1 + lambda); 1 is hard consistency.
        form: "projection" or "dft".

    Returns:
        The last node.

    Raises:
        BackendError: Another form.
    """
    require("openvino", extra="openvino")
    from openvino import opset13 as ops

    shape = x.get_partial_shape()
    channels, height, width = (shape[axis].get_length() for axis in (1, 2, 3))
    if form == Form.PROJECTION:
        flat = x if channels == 1 else _reshape(x, [0, 1, channels * height, width])
        product = ops.matmul(operator, flat, False, False)
        px = product if channels == 1 else _reshape(product, [0, channels, height, width])
    elif form == Form.DFT:
        px = _by_dft(x, operator, channels, height, width)
    else:
        raise BackendError(
            f"OpenVINO reads no data consistency in the form {form!r}.",
            "Export it with `kdmri-edge export --dc auto`.",
        )
    residual = ops.subtract(x_u, px)
    if gain != 1.0:
        residual = ops.multiply(residual, np.float32(gain))
    return ops.add(x, residual)


def _reshape(x: Any, shape: list[int]) -> Any:
    from openvino import opset13 as ops

    return ops.reshape(x, np.array(shape, np.int64), special_zero=True)


def _by_dft(x: Any, mask: Any, channels: int, height: int, width: int) -> Any:
    """Build P x with real matrix products; the mask is [H, 1] for lines or [H, W]."""
    from openvino import opset13 as ops

    left, right = _dft(height), _dft(width)
    two_axes = mask.get_partial_shape()[1].get_length() != 1
    real, imag = x, None
    if channels == 2:
        parts = ops.split(x, np.int64(1), 2)
        real, imag = parts.output(0), parts.output(1)

    def along(axis: int, real: Any, imag: Any | None, inverse: bool) -> tuple[Any, Any]:
        cosine, sine = left if axis == 0 else right
        sine = -sine if inverse else sine

        def times(matrix: NDArray[np.float32], image: Any) -> Any:
            pair = (matrix, image) if axis == 0 else (image, matrix)
            return ops.matmul(*pair, False, False)

        if imag is None:
            return times(cosine, real), times(-sine, real)
        return (
            ops.add(times(cosine, real), times(sine, imag)),
            ops.subtract(times(cosine, imag), times(sine, real)),
        )

    real, imag = along(0, real, imag, inverse=False)
    if two_axes:
        real, imag = along(1, real, imag, inverse=False)
    real, imag = ops.multiply(mask, real), ops.multiply(mask, imag)
    if two_axes:
        real, imag = along(1, real, imag, inverse=True)
    real, imag = along(0, real, imag, inverse=True)
    return real if channels == 1 else ops.concat([real, imag], 1)


def _dft(n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cos and sin of the DFT matrix, each [1, 1, n, n]."""
    cosine, sine = dft_matrices(n)
    return cosine.astype(np.float32)[None, None], sine.astype(np.float32)[None, None]


def onnx_extension() -> Any:
    """Return the extension for ONNX graphs that were exported with --keep-op.

    `openvino.Core().add_extension` takes it, and so does `openvino.convert_model(extension=...)`.

    Raises:
        MissingExtraError: openvino is not installed.
    """
    require("openvino", extra="openvino")
    from openvino.frontend.onnx import ConversionExtension

    def convert(node: Any) -> list[Any]:
        x, x_u, operator = (node.get_input(place) for place in range(3))
        gain = node.get_attribute("gain", 1.0)
        form = node.get_attribute("form", str(Form.PROJECTION))
        return [data_consistency_nodes(x, x_u, operator, gain, form).output(0)]

    return ConversionExtension(NODE[1], NODE[0], convert)
