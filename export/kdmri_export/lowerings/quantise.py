"""Explicit quantisation: QuantizeLinear and DequantizeLinear around convolutions.

The first convolution of each cascade, which reads the image, stays in float32
(`models.calibrate`).

Weights become signed int8 with one scale per output channel. What a convolution reads is quantised
with one scale: signed where it may be negative (a cascade's input), unsigned after a ReLU where the
runtime takes it (CPUs), else signed with half of the range unused (TensorRT). Zero points are 0.
Data consistency, the cascade's residual and the sum of the shifted taps stay in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from kdmri_edge.errors import ExportError
from kdmri_edge.extras import require

__all__ = ["LARGEST", "quantise_graph"]

LARGEST: Final = {"s8": 127, "u8": 255}
"""Largest integer of each kind of activation."""

_TINY: Final = 1e-12
_WEIGHT: Final = ".weight"


def quantise_graph(model: Any, ranges: Mapping[str, float], *, unsigned: bool) -> None:
    """Quantise the convolutions of a graph, in place.

    Args:
        model: An `onnx.ModelProto` of float32 convolutions whose weights are constants.
        ranges: Largest magnitude that convolutions read, by the name of their weight without
            ".weight", e.g. {"model.cascades.0.convs.1": 3.2}; others stay as they are.
        unsigned: Whether activations behind a ReLU may be unsigned.

    Raises:
        ExportError: A range belongs to no convolution of the graph.
    """
    onnx = require("onnx", extra="onnx")
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    nodes: list[Any] = []
    waiting = set(ranges)
    for node in graph.node:
        tensor = constants.get(node.input[1]) if node.op_type == "Conv" else None
        key = tensor.name.removesuffix(_WEIGHT) if tensor is not None else None
        if key in waiting:
            waiting.discard(key)
            maker = makers.get(node.input[0])
            kind = "u8" if unsigned and maker is not None and maker.op_type == "Relu" else "s8"
            nodes += _activation(onnx, graph, node, key, ranges[key], kind)
            nodes += _weight(onnx, graph, node, tensor)
        nodes.append(node)
    if waiting:
        raise ExportError(
            f"The graph has no convolution {min(waiting)!r} to quantise.",
            "The activation ranges belong to another network; export in another precision.",
        )
    del graph.node[:]
    graph.node.extend(nodes)


def _activation(onnx: Any, graph: Any, node: Any, key: str, largest: float, kind: str) -> list[Any]:
    scale = np.float32(max(largest, _TINY) / LARGEST[kind])
    point = np.zeros((), np.uint8 if kind == "u8" else np.int8)
    names = [f"{key}.input_scale", f"{key}.input_zero_point"]
    for name, value in zip(names, (scale, point), strict=True):
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    integer, real = f"{key}.input_quantized", f"{key}.input_dequantized"
    given = node.input[0]
    node.input[0] = real
    return [
        onnx.helper.make_node("QuantizeLinear", [given, *names], [integer], name=f"{key}.Q"),
        onnx.helper.make_node("DequantizeLinear", [integer, *names], [real], name=f"{key}.DQ"),
    ]


def _weight(onnx: Any, graph: Any, node: Any, tensor: Any) -> list[Any]:
    weight = onnx.numpy_helper.to_array(tensor)
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    limit = LARGEST["s8"]
    scale = (np.maximum(largest, _TINY) / limit).astype(np.float32)
    shaped = scale.reshape(-1, *[1] * (weight.ndim - 1))
    integers = np.clip(np.rint(weight / shaped), -limit, limit).astype(np.int8)
    name = tensor.name
    graph.initializer.remove(tensor)
    parts = {"integers": integers, "scale": scale, "zero_point": np.zeros(len(weight), np.int8)}
    for part, value in parts.items():
        graph.initializer.append(onnx.numpy_helper.from_array(value, f"{name}.{part}"))
    inputs = [f"{name}.{part}" for part in parts]
    node.input[1] = f"{name}.dequantized"
    return [
        onnx.helper.make_node(
            "DequantizeLinear", inputs, [node.input[1]], name=f"{name}.DQ", axis=0
        )
    ]
