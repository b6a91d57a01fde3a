"""Explicit quantisation: QuantizeLinear and DequantizeLinear around convolutions.

What is rounded, and how, is in `kdmri_edge.quantisation.scheme`. Data consistency, the cascade's
residual and the sum of the shifted taps stay in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import ExportError
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.quantisation.equalisation import equalise
from kdmri_edge.quantisation.scheme import FINE, LARGEST, TINY, activation_kind, reads_image
from kdmri_edge.utils.extras import require

__all__ = ["quantise_graph", "ranges_of"]


def ranges_of(lowered: Reconstructor) -> dict[str, float]:
    """Return the largest magnitude that each convolution reads, by its name.

    A network trained with rounding brings its ranges, and stays as it is; another one is
    equalised, in place.
    """
    return lowered.ranges or equalise(lowered.model, lowered.maxima)


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
    rounded: dict[str, str] = {}  # a weight that several nodes have is rounded once
    for node in graph.node:
        name = node.input[1] if node.op_type == "Conv" else ""
        key = name.removesuffix(_WEIGHT)
        if name in constants and key in ranges:
            waiting.discard(key)
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            image = reads_image(constants[name].dims[1], groups)
            rectified = _is_rectified(node.input[0], makers)
            kind = activation_kind(image=image, rectified=rectified, unsigned=unsigned)
            own = f"{key}.{node.name}" if name in rounded else key
            if image:
                nodes += _split_image(onnx, graph, node, own, ranges[key], kind)
            nodes += _activation(onnx, graph, node, own, ranges[key], kind)
            if name not in rounded:
                weight = onnx.numpy_helper.to_array(constants[name])
                if image:
                    weight = np.concatenate((weight, weight / FINE), axis=1)
                nodes += _weight(onnx, graph, node, constants[name], weight)
                rounded[name] = node.input[1]
            node.input[1] = rounded[name]
        nodes.append(node)
    if waiting:
        raise ExportError(
            f"The graph has no convolution {min(waiting)!r} to quantise.",
            "The activation maxima belong to another network; export in another precision.",
        )
    del graph.node[:]
    graph.node.extend(nodes)


def _is_rectified(name: str, makers: Mapping[str, Any]) -> bool:
    """Tell whether a tensor is the output of a ReLU, padded or not."""
    maker = makers.get(name)
    while maker is not None and maker.op_type == "Pad":
        maker = makers.get(maker.input[0])
    return maker is not None and maker.op_type == "Relu"


def _constant(onnx: Any, graph: Any, name: str, value: Any) -> str:
    graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return name


def _activation(onnx: Any, graph: Any, node: Any, key: str, largest: float, kind: str) -> list[Any]:
    """Round what a convolution reads."""
    rounded = f"{key}.input"
    nodes = _rounding(onnx, graph, node.input[0], rounded, largest, kind)
    node.input[0] = f"{rounded}_dequantized"
    return nodes


def _rounding(onnx: Any, graph: Any, given: str, name: str, largest: float, kind: str) -> list[Any]:
    """Return Q and DQ of one tensor; the second one gives `name`_dequantized."""
    scale = np.float32(max(largest, TINY) / LARGEST[kind])
    point = {"s8": np.int8(0), "u8": np.uint8(0), "u8c": np.uint8(128)}[kind]
    step = [
        _constant(onnx, graph, f"{name}_scale", scale),
        _constant(onnx, graph, f"{name}_zero_point", point),
    ]
    integer, real = f"{name}_quantized", f"{name}_dequantized"
    return [
        onnx.helper.make_node("QuantizeLinear", [given, *step], [integer], name=f"{name}.Q"),
        onnx.helper.make_node("DequantizeLinear", [integer, *step], [real], name=f"{name}.DQ"),
    ]


def _split_image(
    onnx: Any, graph: Any, node: Any, key: str, largest: float, kind: str
) -> list[Any]:
    """Take an image apart into its rounded self and, magnified, what rounding took away."""
    image, coarse = node.input[0], f"{key}.coarse"
    nodes = _rounding(onnx, graph, image, coarse, largest, kind)
    rounded, rest, fine, both = (
        f"{coarse}_dequantized", f"{key}.rest", f"{key}.fine", f"{key}.coarse_and_fine",
    )  # fmt: skip
    times = _constant(onnx, graph, f"{key}.magnification", np.float32(FINE))
    nodes += [
        onnx.helper.make_node("Sub", [image, rounded], [rest], name=f"{key}.Sub"),
        onnx.helper.make_node("Mul", [rest, times], [fine], name=f"{key}.Mul"),
        onnx.helper.make_node("Concat", [rounded, fine], [both], name=f"{key}.Concat", axis=1),
    ]
    node.input[0] = both
    return nodes


def _weight(
    onnx: Any, graph: Any, node: Any, tensor: Any, weight: NDArray[np.float32]
) -> list[Any]:
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    limit = LARGEST["s8"]
    scale = (np.maximum(largest, TINY) / limit).astype(np.float32)
    shaped = scale.reshape(-1, *[1] * (weight.ndim - 1))
    integers = np.clip(np.rint(weight / shaped), -limit, limit).astype(np.int8)
    name = tensor.name
    graph.initializer.remove(tensor)
    parts = {"integers": integers, "scale": scale, "zero_point": np.zeros(len(weight), np.int8)}
    inputs = [_constant(onnx, graph, f"{name}.{part}", value) for part, value in parts.items()]
    node.input[1] = f"{name}.dequantized"
    return [
        onnx.helper.make_node(
            "DequantizeLinear", inputs, [node.input[1]], name=f"{name}.DQ", axis=0
        )
    ]
