"""Convolutions that write an image and feature maps, for OpenVINO.

Its kernels write the channels of a pixel side by side, and what takes some of them out again is its
slowest way to copy: with the copies behind it, as long as half a convolution. Where blocks of the
kernel's channels are not more that way, the two are convolutions of their own, and in eight bits
the maps are then put out as integers. Elsewhere rows and columns of the output are joined to one
axis first: that is a fast copy into planes, from which channels are taken without any.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.utils.extras import require
from kdmri_export.passes.divide import image_and_maps
from kdmri_export.passes.onnx_graph import copied, readers_of, replace_messages

__all__ = ["part_outputs"]

_BLOCK: Final = 16
"""Output channels that its convolutions compute at once."""


def part_outputs(model: Any) -> int:
    """Take the outputs of such convolutions apart, in place.

    Args:
        model: An `onnx.ModelProto` in any precision.

    Returns:
        How many convolutions these are.
    """
    onnx = require("onnx", extra="onnx")
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    sizes = {
        port.name: [axis.dim_value for axis in port.type.tensor_type.shape.dim[2:]]
        for port in inferred.value_info
    }
    constants = {tensor.name: tensor for tensor in graph.initializer}
    known = list(graph.node)  # one object for each node, as long as this list lives
    makers = {name: node for node in known for name in node.output}
    readers = readers_of(known)
    made: dict[int, list[Any]] = {}
    gone: set[int] = set()
    for node in known:
        if node.op_type != "Conv":
            continue
        maker = makers.get(node.input[1])
        rounded = maker if maker is not None and maker.op_type == "DequantizeLinear" else None
        weight = constants.get(node.input[1] if rounded is None else rounded.input[0])
        if weight is None:
            continue
        outputs, behind = int(weight.dims[0]), readers.get(node.output[0], [])
        parts = image_and_maps(onnx, node, behind, outputs, constants)
        if parts is None:
            continue
        count, *slices = parts
        change = _Parted(onnx, graph, node, constants)
        bounds = ((0, count), (count, outputs))
        if sum(_blocks(high - low) for low, high in bounds) == _blocks(outputs):
            for part, bound, one in zip(("image", "maps"), bounds, slices, strict=True):
                change.convolution(part, bound, rounded, one.output[0])
        elif all(side := sizes.get(node.output[0], [0])):
            change.planes(slices, [count, outputs - count], side)
        else:  # a graph of any matrix
            continue
        made[id(node)] = change.nodes
        gone |= {id(one) for one in slices}
    nodes = [one for node in known if id(node) not in gone for one in made.get(id(node), [node])]
    replace_messages(graph.node, nodes)
    return len(made)


def _blocks(channels: int) -> int:
    return -(-channels // _BLOCK)


class _Parted:
    """The nodes in place of one convolution and of what takes its output apart.

    Args:
        onnx: The package.
        graph: Takes the constants.
        node: The convolution.
        constants: Of the graph, by their names.
    """

    def __init__(self, onnx: Any, graph: Any, node: Any, constants: dict[str, Any]) -> None:
        self._onnx, self._graph, self._node, self._constants = onnx, graph, node, constants
        self.nodes: list[Any] = []

    def convolution(
        self, part: str, bound: tuple[int, int], rounded: Any | None, output: str
    ) -> None:
        """Make a convolution of some outputs.

        Args:
            part: What it is called.
            bound: The first of them, and the one behind the last.
            rounded: Makes a weight of integers, if it is one.
            output: Name of what it writes.
        """
        chosen = slice(*bound)
        if rounded is None:
            weight = self._part(part, self._node.input[1], chosen)
        else:
            own = copied(rounded)
            own.name = f"{self._node.name}.{rounded.name}.{part}"
            own.input[:] = [self._part(part, name, chosen) for name in rounded.input]
            weight = own.output[0] = f"{self._node.name}.{rounded.output[0]}.{part}"
            self.nodes.append(own)
        made = copied(self._node)
        made.name = f"{self._node.name}.{part}"
        biases = [self._part(part, name, chosen) for name in self._node.input[2:]]
        made.input[:] = [self._node.input[0], weight, *biases]
        made.output[0] = output
        self.nodes.append(made)

    def planes(self, slices: list[Any], channels: list[int], sides: list[int]) -> None:
        """Take channels out of an output whose rows and columns are one axis.

        Args:
            slices: What took them out.
            channels: How many each of them takes.
            sides: Height and width.
        """
        name, output = self._node.name, self._node.output[0]
        joined = f"{output}.planes"
        self.nodes += [self._node, self._reshape(f"{name}.planes", output, [0, 0, -1], joined)]
        for one, count in zip(slices, channels, strict=True):
            taken = copied(one)
            taken.input[0], taken.output[0] = joined, f"{one.output[0]}.plane"
            shape = [0, count, *sides]
            back = self._reshape(f"{one.name}.image", taken.output[0], shape, one.output[0])
            self.nodes += [taken, back]

    def _part(self, part: str, name: str, chosen: slice) -> str:
        value: NDArray[Any] = self._onnx.numpy_helper.to_array(self._constants[name])
        # a weight may be another convolution's too, which is parted elsewhere
        return self._constant(f"{self._node.name}.{name}.{part}", value[chosen])

    def _reshape(self, name: str, given: str, shape: list[int], made: str) -> Any:
        held = self._constant(f"{name}.shape", np.array(shape, np.int64))
        return self._onnx.helper.make_node("Reshape", [given, held], [made], name=name)

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        tensor = self._onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        self._graph.initializer.append(tensor)
        return str(tensor.name)
