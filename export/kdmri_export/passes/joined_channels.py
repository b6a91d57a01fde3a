"""Convolutions of two tensors joined along their channels, as sums of two, for ONNX Runtime.

U-Nets join what they upsample with what they kept, and convolve that. ONNX Runtime computes
convolutions on blocks of 16 channels (8 without AVX-512), filled up with zeros, and joins images
in their plain layout, so that both are copied into blocks again. A sum of two convolutions has
nothing to be joined, and the sum itself is part of the second one. It is not always less work,
since the blocks of both are filled up: the multiplications that are really made decide.
"""

from __future__ import annotations

import math
from typing import Any, Final

from kdmri_edge.utils.extras import require
from kdmri_export.passes.onnx_graph import copied, replace_messages

__all__ = ["split_joined"]

_BLOCK: Final = 16
"""Channels of a block."""
_ALIGNED: Final = 4
"""Of so many channels a multiple must come in for blocks to be used; a block itself may be less."""
_PLAIN: Final = 1.8
"""How much longer a multiplication takes without blocks."""
_COPIED: Final = 42.0
"""Multiplications that take as long as joining one channel's pixel and copying it into blocks."""
_FEWEST: Final = 8
"""Channels of either; with fewer nothing is won."""


def split_joined(model: Any) -> int:
    """Split convolutions whose input is two tensors joined along channels, where that is faster.

    Args:
        model: An `onnx.ModelProto`, changed in place. Only weights in float32 are split.

    Returns:
        How many were split.
    """
    onnx = require("onnx", extra="onnx")
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    channels = {
        port.name: port.type.tensor_type.shape.dim[1].dim_value
        for port in (*inferred.value_info, *inferred.input)
        if len(port.type.tensor_type.shape.dim) == 4
    }
    known = list(graph.node)  # one object for each node, as long as this list lives
    makers = {name: node for node in known for name in node.output}
    reads = [name for node in known for name in node.input] + [one.name for one in graph.output]
    weights = {one.name: one for one in graph.initializer}
    split: dict[int, tuple[Any, int]] = {}
    for node in known:
        joined = makers.get(node.input[0]) if node.op_type == "Conv" else None
        weight = weights.get(node.input[1]) if joined is not None else None
        if joined is None or joined.op_type != "Concat" or len(joined.input) != 2:
            continue
        parts = [channels.get(name, 0) for name in joined.input]
        if (
            weight is None
            or weight.data_type != onnx.TensorProto.FLOAT
            or len(weight.dims) != 4
            or any(one.name == "group" and one.i != 1 for one in node.attribute)
            or any(one.name == "axis" and one.i not in (1, -3) for one in joined.attribute)
            or reads.count(joined.output[0]) > 1
            or reads.count(weight.name) > 1
            or sum(parts) != weight.dims[1]
            or min(parts) < _FEWEST
        ):
            continue
        made, _, *kernel = weight.dims
        together = _work(sum(parts), made) + sum(parts) * _COPIED / math.prod(kernel)
        if sum(_work(part, made) for part in parts) < together:
            split[id(node)] = joined, parts[0]
    gone = {id(joined) for joined, _ in split.values()}
    nodes: list[Any] = []
    for node in known:
        if id(node) in split:
            joined, count = split[id(node)]
            nodes.extend(_halves(onnx, graph, weights[node.input[1]], node, joined, count))
        elif id(node) not in gone:
            nodes.append(node)
    replace_messages(graph.node, nodes)
    return len(split)


def _work(given: int, made: int) -> float:
    """Return the multiplications for a pixel and one weight of a kernel, in those of blocks."""
    if given >= _BLOCK and given % _ALIGNED:
        return given * made * _PLAIN
    filled = given if given < _BLOCK else -(-given // _BLOCK) * _BLOCK
    return filled * (-(-made // _BLOCK) * _BLOCK)


def _halves(
    onnx: Any, graph: Any, held: Any, node: Any, joined: Any, count: int
) -> tuple[Any, Any, Any]:
    """Return what takes the place of a convolution and of the node that joins what it reads."""
    weight = onnx.numpy_helper.to_array(held)
    values = {"first": weight[:, :count].copy(), "second": weight[:, count:].copy()}
    halves = []
    for (part, value), given in zip(values.items(), joined.input, strict=True):
        name = f"{held.name}.{part}"
        graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        half = copied(node)
        half.name = f"{node.name}.{part}"
        bias = list(node.input[2:]) if part == "first" else []
        del half.input[:]
        half.input.extend([given, name, *bias])
        half.output[0] = f"{node.output[0]}.{part}"
        halves.append(half)
    graph.initializer.remove(held)
    made = [half.output[0] for half in halves]
    total = onnx.helper.make_node("Add", made, list(node.output), name=f"{node.name}.sum")
    return halves[0], halves[1], total
