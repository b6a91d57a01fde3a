"""Explicit quantisation: QuantizeLinear and DequantizeLinear around layers.

What is rounded, and how, is in `kdmri_edge.quantisation.scheme`. Data consistency, the cascade's
residual and the sum of the shifted taps stay in float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from kdmri_edge.errors import ExportError
from kdmri_edge.models.layers import Weighted
from kdmri_edge.models.network import Network
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.quantisation.calibration import HIGHEST, LOWEST, layer_of
from kdmri_edge.quantisation.equalisation import equalise
from kdmri_edge.quantisation.scheme import (
    BELOW,
    FINE,
    LARGEST,
    NARROW,
    PARTS,
    TINY,
    activation_kind,
    grid,
    in_two_parts,
    split_channels,
)
from kdmri_edge.utils.extras import require
from kdmri_export.passes.onnx_graph import readers_of, replace_messages
from kdmri_export.transformed import Choice, choose_layers

__all__ = [
    "asymmetric",
    "choose_quantised",
    "name_shared_layers",
    "quantise_graph",
    "ranges_of",
    "round_outputs",
    "share_ranges",
    "sum_integers",
]


def ranges_of(lowered: Reconstructor, *, unsigned: bool) -> dict[str, float]:
    """Return the largest magnitude that each layer reads, and what else is known of it.

    That is what it writes, and how far below zero what it reads, by the keys of
    `quantisation.calibration.activation_maxima`; and what it reads in two parts beside an image
    (`quantisation.scheme.PARTS`).

    A network trained with rounding brings its ranges, and stays as it is; another one is
    equalised, in place.

    Args:
        lowered: The network.
        unsigned: Round as for CPUs, else as for TensorRT.
    """
    if lowered.ranges:
        return lowered.ranges
    ranges = equalise(lowered.model, lowered.maxima)
    return ranges | in_two_parts(lowered.model, ranges, unsigned=unsigned)


def choose_quantised(
    network: Network,
    known: Collection[str],
    floats: Sequence[str] = (),
    refuses: Callable[[Weighted], str | None] = lambda layer: None,
) -> Choice:
    """Choose the layers that are rounded.

    Args:
        network: The network.
        known: The layers whose activations were measured.
        floats: Patterns of the names of layers that stay in float32.
        refuses: Returns why there is no integer kernel for a layer, None if there is.

    Raises:
        ExportError: What was measured is of another network, or a pattern fits no layer.
    """
    choice = choose_layers(network, floats, refuses, known)
    names = [one.name for one in choice.structure.layers]
    strangers = sorted({layer_of(key) for key in known} - set(names))
    if strangers:
        lacks = next((name for name in names if name not in known), "no other")
        raise ExportError(
            f"The activation maxima belong to another network: they are of layer {strangers[0]!r},"
            f" which this one does not have, and not of {lacks!r}.",
            "Export in another precision, or train the network again.",
        )
    return choice


_WEIGHT: Final = ".weight"
_COARSE: Final = ".coarse.Q"
# Operators that take a tensor apart.
_TAKEN_APART: Final = ("Slice", "Split", "Gather")
# Operators of layers -> the axis of their weight along which the channels lie that are written.
_OPERATORS: Final = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}


def name_shared_layers(model: Any, network: nn.Module) -> None:
    """Give weights of modules that a network holds under several names the first of these.

    PyTorch's exporter names them by the last one, ranges go by the first.

    Args:
        model: An `onnx.ModelProto`, changed in place.
        network: What it was exported of.
    """
    first: dict[nn.Module, str] = {}
    others: dict[str, str] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        if first.setdefault(module, name) != name:
            others[name] = first[module]
    if not others:
        return
    taken = {tensor.name for tensor in model.graph.initializer}
    renamed: dict[str, str] = {}
    for tensor in model.graph.initializer:
        place, _, weight = tensor.name.rpartition(".")
        name = f"{others[place]}.{weight}" if place in others else tensor.name
        if name not in taken:
            renamed[tensor.name] = tensor.name = name
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def share_ranges(
    ranges: Mapping[str, float], weights: Mapping[str, Tensor]
) -> tuple[dict[str, float], dict[str, str]]:
    """Give layers of equal weights the widest of their ranges: a graph may hold these once.

    PyTorch's exporter merges constants of equal values, as cascades that were copied and not
    trained have them, and the name of one weight then stands for all.

    Args:
        ranges: As `ranges_of` returns them, by the names of `weights`.
        weights: By the layers' names.

    Returns:
        The ranges, and for each layer the first one with its weights.
    """
    first: dict[bytes, str] = {}
    same: dict[str, str] = {}
    for name, weight in weights.items():
        values = weight.detach().contiguous().numpy()
        digest = hashlib.sha256(f"{values.shape}".encode() + values.tobytes()).digest()
        same[name] = first.setdefault(digest, name)

    def shared(key: str) -> str:
        name, colon, what = key.partition(":")
        return f"{same.get(name, name)}{colon}{what}"

    widest: dict[str, float] = {}
    for key, value in ranges.items():
        widest[shared(key)] = max(value, widest.get(shared(key), value))
    # where nobody knows how far one of them reaches below zero, all reach as far as above
    layers = [key for key in ranges if layer_of(key) == key]
    unknown = {shared(key) + BELOW for key in layers if key + BELOW not in ranges}
    return {key: widest[shared(key)] for key in ranges if shared(key) not in unknown}, same


def quantise_graph(
    model: Any,
    ranges: Mapping[str, float],
    *,
    unsigned: bool,
    images: Mapping[str, int],
    same: Mapping[str, str] | None = None,
) -> None:
    """Quantise the layers of a graph, in place.

    Args:
        model: An `onnx.ModelProto` of float32 layers whose weights are constants.
        ranges: Largest magnitude that layers read, by the name of their weight without ".weight",
            e.g. {"model.cascades.0.convs.1": 3.2}, and what else is known of that by the keys of
            `quantisation.scheme` (`BELOW`, `PARTS`); others stay as they are.
        unsigned: Whether activations may be unsigned.
        images: How many channels of what they read, the first ones, are an image's, by the same
            names.
        same: Layers of equal weights, see `share_ranges`.

    Raises:
        ExportError: A range belongs to no layer of the graph.
    """
    onnx = require("onnx", extra="onnx")
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    nodes: list[Any] = []
    same = same or {}
    waiting = {same.get(key, key) for key in ranges if layer_of(key) == key}
    rounded: dict[str, str] = {}  # a weight that several nodes have is rounded once
    for node in graph.node:
        axis = _OPERATORS.get(node.op_type)
        name = "" if axis is None else node.input[1]
        key = name.removesuffix(_WEIGHT)
        if axis is not None and name in constants and key in ranges:
            waiting.discard(same.get(key, key))
            rectified = _is_rectified(node.input[0], makers)
            split = split_channels(ranges, key, images[key])
            kind = activation_kind(parted=split > 0, rectified=rectified, unsigned=unsigned)
            own = f"{key}.{node.name}" if name in rounded else key
            step, point = _step(kind, ranges[key], ranges.get(key + BELOW))
            if split:
                behind = int(constants[name].dims[1]) - split
                maker = makers.get(node.input[0])
                apart, parts = _parted(onnx, graph, node, own, (split, behind), maker)
                nodes += [*apart, *_split_in_two(onnx, graph, node, own, step, point, parts)]
            nodes += _rounded(
                onnx, graph, node.input[0], f"{own}.input", step, point, f"{own}.input_dequantized"
            )
            node.input[0] = f"{own}.input_dequantized"
            if name not in rounded:
                weight = onnx.numpy_helper.to_array(constants[name])
                if split:
                    of_both, of_others = weight[:, :split], weight[:, split:]
                    weight = np.concatenate((of_both, of_both / FINE, of_others), axis=1)
                nodes += _weight(onnx, graph, node, constants[name], weight, axis)
                rounded[name] = node.input[1]
            node.input[1] = rounded[name]
        nodes.append(node)
    if waiting:
        raise ExportError(
            f"The graph has no layer {min(waiting)!r} to quantise.",
            "The activation maxima belong to another network; export in another precision.",
        )
    # concatenations of image and feature maps that are read in parts now
    read = {name for node in nodes for name in node.input} | {port.name for port in graph.output}
    kept = [one for one in nodes if one.op_type != "Concat" or one.output[0] in read]
    replace_messages(graph.node, kept)


def round_outputs(model: Any, ranges: Mapping[str, float]) -> None:
    """Round what convolutions put out, in place, where no other one reads it as integers.

    ONNX Runtime's integer kernel puts out integers alone: a quantised convolution without rounding
    behind it is computed in float. It is rounded behind its ReLU where nothing else reads it, else
    before whatever comes, such as a normalisation. What is taken apart next, as an image with
    feature maps behind it, stays as it is: eight bits are too few for an image. So does what a
    layer in float reads, whose weight ONNX Runtime would round as well, and more coarsely, and what
    another one is to be given in two parts.

    Args:
        model: A graph that `quantise_graph` has quantised.
        ranges: The largest value that a convolution writes, and the lowest without its sign, by the
            name of its weight without ".weight" and with `quantisation.calibration.HIGHEST` or
            `LOWEST`; others stay as they are.
    """
    onnx = require("onnx", extra="onnx")
    graph = model.graph
    readers = readers_of(graph.node)
    integers = {tensor.name: tensor for tensor in graph.initializer}
    in_parts = {key.removesuffix(PARTS) for key in ranges if key.endswith(PARTS)}
    rounded: dict[int, list[Any]] = {}  # by the node behind which it happens
    for node in graph.node:
        key = node.input[1].removesuffix(f"{_WEIGHT}.dequantized") if len(node.input) > 1 else ""
        if node.op_type != "Conv" or key + HIGHEST not in ranges:
            continue
        last, low = node, ranges[key + LOWEST]
        behind = readers.get(node.output[0], [])
        if len(behind) == 1 and behind[0].op_type == "Relu":
            last, low = behind[0], 0.0
            behind = readers.get(last.output[0], [])
        if len(behind) == 1 and behind[0].op_type == "QuantizeLinear":
            continue  # read as integers already
        channels = int(integers[f"{key}{_WEIGHT}.integers"].dims[0])
        if any(one.op_type in _OPERATORS or _becomes_an_image(one, channels) for one in behind):
            continue
        if _read_in_parts(last.output[0], readers, in_parts):
            continue
        whole, own = last.output[0], f"{key}.{node.name}.output"
        last.output[0] = f"{own}_whole"
        step, point = asymmetric(low, ranges[key + HIGHEST])
        rounded[id(last)] = _rounded(onnx, graph, last.output[0], own, step, point, whole)
    nodes = [one for node in graph.node for one in (node, *rounded.get(id(node), ()))]
    replace_messages(graph.node, nodes)


def _read_in_parts(name: str, readers: Mapping[str, Sequence[Any]], layers: Container[str]) -> bool:
    """Tell whether one of these layers is given a tensor in two parts, before another layer is."""
    seen, waiting = {name}, [name]
    while waiting:
        for node in readers.get(waiting.pop(), ()):
            if node.op_type == "QuantizeLinear":
                if node.name.removesuffix(_COARSE) in layers:
                    return True
            elif node.op_type not in _OPERATORS:
                fresh = set(node.output) - seen
                seen |= fresh
                waiting += fresh
    return False


# Above that ONNX Runtime's float kernel is as fast, which takes outputs in blocks of 16.
_FEW: Final = 16


def sum_integers(model: Any) -> None:
    """Let convolutions of few outputs that put out floats sum integers, in place.

    ONNX Runtime would make floats of what they read, and compute in float: its integer kernel that
    rounds its output has a brother, ConvInteger, which puts out the sums. Its weights are unsigned
    about 128, since it has no fast kernel for signed ones. The values are the same, but for the
    rounding of float sums. What is rounded behind the convolution stays as it is, and what reads
    several groups.

    Args:
        model: A graph that `quantise_graph` has quantised with unsigned activations.
    """
    onnx = require("onnx", extra="onnx")
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    floats = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    readers = readers_of(graph.node)
    nodes: list[Any] = []
    for node in graph.node:
        parts = [floats[name] for name in node.input[:2] if name in floats]
        behind = readers.get(node.output[0], [])
        if len(behind) == 1 and behind[0].op_type == "Relu":
            behind = readers.get(behind[0].output[0], [])
        rounded = any(one.op_type == "QuantizeLinear" for one in behind)
        in_float = node.op_type == "Conv" and len(parts) == 2 and not rounded
        if in_float and not _many_outputs(node, constants[parts[1].input[0]]):
            nodes += _summed(onnx, graph, node, parts[0], parts[1], constants)
        else:
            nodes.append(node)
    read = {name for node in nodes for name in node.input}
    read |= {port.name for port in graph.output}
    kept = [one for one in nodes if one.op_type != "DequantizeLinear" or one.output[0] in read]
    replace_messages(graph.node, kept)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _many_outputs(node: Any, weight: Any) -> bool:
    """Tell whether a convolution is better left to the float kernel."""
    outputs, *_, high, wide = weight.dims
    groups = next((held.i for held in node.attribute if held.name == "group"), 1)
    return groups != 1 or outputs > (9 * NARROW if high == wide == 1 else _FEW - 1)


def _summed(
    onnx: Any, graph: Any, node: Any, read: Any, weight: Any, constants: Mapping[str, Any]
) -> list[Any]:
    """Return the nodes of a convolution whose input and weight nodes make floats of integers."""
    values = [onnx.numpy_helper.to_array(constants[name]) for name in weight.input]
    integers = values[0].astype(np.int16) + 128
    step = values[1] * onnx.numpy_helper.to_array(constants[read.input[1]])
    key = f"{weight.output[0]}.{node.name}"
    shaped = (1, -1, 1, 1)
    own = [
        _constant(onnx, graph, f"{key}.unsigned", integers.astype(np.uint8)),
        _constant(onnx, graph, f"{key}.unsigned_zero_point", np.uint8(128)),
        _constant(onnx, graph, f"{key}.step", step.astype(np.float32).reshape(shaped)),
    ]
    sums, floats, made = f"{key}.sums", f"{key}.floats", node.output[0]
    biased = len(node.input) > 2
    product = f"{key}.product" if biased else made
    make = onnx.helper.make_node
    found = [
        make("ConvInteger", [read.input[0], own[0], read.input[2], own[1]], [sums], name=sums),
        make("Cast", [sums], [floats], name=floats, to=onnx.TensorProto.FLOAT),
        make("Mul", [floats, own[2]], [product], name=product),
    ]
    found[0].attribute.extend(node.attribute)
    if biased:
        bias = onnx.numpy_helper.to_array(constants[node.input[2]]).reshape(shaped)
        shift = _constant(onnx, graph, f"{key}.bias", bias)
        found.append(make("Add", [product, shift], [made], name=f"{key}.Add"))
    return found


def _becomes_an_image(node: Any, channels: int) -> bool:
    """Tell whether a node makes an image of so many channels, or takes one out of them."""
    if node.op_type == "DepthToSpace":
        block = int(next(held.i for held in node.attribute if held.name == "blocksize"))
        return channels // block**2 <= NARROW
    return str(node.op_type) in _TAKEN_APART


def asymmetric(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Return step and zero point of unsigned integers from -low to high, zero among them."""
    step = np.float32(max(low + high, TINY) / LARGEST["u8"])
    return step, np.uint8(np.clip(np.rint(low / step), 0, LARGEST["u8"]))


def _is_rectified(name: str, makers: Mapping[str, Any]) -> bool:
    """Tell whether a tensor is the output of a ReLU, padded or not."""
    maker = makers.get(name)
    while maker is not None and maker.op_type == "Pad":
        maker = makers.get(maker.input[0])
    return maker is not None and maker.op_type == "Relu"


def _constant(onnx: Any, graph: Any, name: str, value: Any) -> str:
    graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return name


def _step(kind: str, largest: float, below: float | None) -> tuple[np.float32, Any]:
    """Return step and zero point of what a layer reads."""
    lowest, highest = grid(kind, largest, below)
    step = np.float32(max(largest, TINY) / highest)
    return step, np.int8(0) if kind == "s8" else np.uint8(-lowest)


def _rounded(
    onnx: Any, graph: Any, given: str, name: str, scale: Any, point: Any, real: str
) -> list[Any]:
    """Return Q and DQ of the tensor `given`; the second one gives `real`."""
    step = [
        _constant(onnx, graph, f"{name}_scale", scale),
        _constant(onnx, graph, f"{name}_zero_point", point),
    ]
    integer = f"{name}_quantized"
    return [
        onnx.helper.make_node("QuantizeLinear", [given, *step], [integer], name=f"{name}.Q"),
        onnx.helper.make_node("DequantizeLinear", [integer, *step], [real], name=f"{name}.DQ"),
    ]


def _parted(
    onnx: Any, graph: Any, node: Any, key: str, sizes: tuple[int, int], maker: Any
) -> tuple[list[Any], list[str]]:
    """Tell what a layer reads in two parts, an image, from the feature maps behind it.

    `sizes` are their channels, 0 maps where there are none, and `maker` is the node that makes what
    is read. A concatenation of both is not taken apart again: its parts are there. Returned are
    nodes to that end, and the tensors: the image, then the maps.
    """
    _, others = sizes
    if not others:
        return [], [node.input[0]]
    if maker is not None and maker.op_type == "Concat":
        known = _channels(graph)
        for count in range(1, len(maker.input)):
            before, behind = list(maker.input[:count]), list(maker.input[count:])
            channels = [known.get(name, 0) for name in behind]
            if not all(channels) or sum(channels) != others:
                continue
            if count == 1:
                return [], [*before, *behind]
            both = f"{key}.image"
            joined = onnx.helper.make_node("Concat", before, [both], name=both, axis=1)
            return [joined], [both, *behind]
    sides = _constant(onnx, graph, f"{key}.channels", np.array(sizes, np.int64))
    parts = [f"{key}.image", f"{key}.maps"]
    split = onnx.helper.make_node(
        "Split", [node.input[0], sides], parts, name=f"{key}.Split", axis=1
    )
    return [split], parts


def _channels(graph: Any) -> dict[str, int]:
    """Return the number of channels of each tensor of a graph whose shape is written down."""
    found = {}
    for value in (*graph.value_info, *graph.input):
        shape = value.type.tensor_type.shape.dim
        if len(shape) == 4 and shape[1].dim_value:
            found[value.name] = int(shape[1].dim_value)
    return found


def _split_in_two(
    onnx: Any, graph: Any, node: Any, key: str, step: Any, point: Any, parts: Sequence[str]
) -> list[Any]:
    """Take an image apart into its rounded self and, magnified, what rounding took away.

    `parts` are the image, with feature maps where these are taken apart as well, and the feature
    maps that follow as they are.
    """
    image, *maps = parts
    coarse = f"{key}.coarse"
    rounded, rest, fine, both = (
        f"{coarse}_dequantized", f"{key}.rest", f"{key}.fine", f"{key}.coarse_and_fine",
    )  # fmt: skip
    nodes = _rounded(onnx, graph, image, coarse, step, point, rounded)
    times = _constant(onnx, graph, f"{key}.magnification", np.float32(FINE))
    nodes += [
        onnx.helper.make_node("Sub", [image, rounded], [rest], name=f"{key}.Sub"),
        onnx.helper.make_node("Mul", [rest, times], [fine], name=f"{key}.Mul"),
        onnx.helper.make_node(
            "Concat", [rounded, fine, *maps], [both], name=f"{key}.Concat", axis=1
        ),
    ]
    node.input[0] = both
    return nodes


def _weight(
    onnx: Any, graph: Any, node: Any, tensor: Any, weight: NDArray[np.float32], axis: int
) -> list[Any]:
    others = tuple(n for n in range(weight.ndim) if n != axis)
    largest = np.abs(weight).max(others)
    limit = LARGEST["s8"]
    scale = (np.maximum(largest, TINY) / limit).astype(np.float32)
    shaped = np.expand_dims(scale, others)
    integers = np.clip(np.rint(weight / shaped), -limit, limit).astype(np.int8)
    name = tensor.name
    graph.initializer.remove(tensor)
    parts = {"integers": integers, "scale": scale, "zero_point": np.zeros(len(scale), np.int8)}
    inputs = [_constant(onnx, graph, f"{name}.{part}", value) for part, value in parts.items()]
    node.input[1] = f"{name}.dequantized"
    return [
        onnx.helper.make_node(
            "DequantizeLinear", inputs, [node.input[1]], name=f"{name}.DQ", axis=axis
        )
    ]
