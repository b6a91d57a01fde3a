"""Quantised convolutions that write an image and feature maps, as one for each, for ONNX Runtime.

The maps are rounded by the convolution that reads them next, so that an integer kernel may put them
out; an image may not be rounded, and for its sake all of them were computed in float. Apart, the
maps are a convolution in integers, whose outputs are filled up to a block of its kernel. An image
of one or two channels is taken apart into taps as other narrow convolutions are (`passes.narrow`);
of more, as networks of half resolution write it, it is a convolution of its own, whose integers are
summed if they are few (`passes.quantise.sum_integers`). The integers are those of the whole
convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.quantisation.scheme import NARROW
from kdmri_edge.utils.extras import require
from kdmri_export.passes.onnx_graph import int_attribute, readers_of, replace_messages

__all__ = ["divide_outputs", "image_and_maps"]

# Outputs that ONNX Runtime's integer kernel computes at once: 9 take twice as long as 16.
_BLOCK: Final = 16


def divide_outputs(model: Any) -> None:
    """Divide such convolutions, in place.

    Args:
        model: A graph that `passes.quantise.quantise_graph` has quantised.
    """
    onnx = require("onnx", extra="onnx")
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    readers = readers_of(graph.node)
    made: dict[int, list[Any]] = {}
    gone: set[int] = set()
    for node in graph.node:
        weight = makers.get(node.input[1]) if node.op_type == "Conv" else None
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        integers = onnx.numpy_helper.to_array(constants[weight.input[0]])
        behind = readers.get(node.output[0], [])
        parts = image_and_maps(onnx, node, behind, len(integers), constants)
        if parts is None:
            continue
        count, image, maps = parts
        rectified = readers.get(maps.output[0], [])
        step = _step(rectified, readers)
        if step is None:
            continue
        graph_made = _Made(onnx, graph, node)
        scale = onnx.numpy_helper.to_array(constants[weight.input[1]])
        bias = (
            onnx.numpy_helper.to_array(constants[node.input[2]])
            if len(node.input) > 2
            else np.zeros(len(integers), np.float32)
        )
        of_image = _Kernel(integers[:count], scale[:count], bias[:count])
        if count <= NARROW:
            graph_made.taps(of_image, image.output[0])
        else:
            graph_made.image(of_image, image.output[0])
        of_maps = _Kernel(integers[count:], scale[count:], bias[count:])
        graph_made.maps(of_maps, step, rectified[0].output[0])
        made[id(node)] = graph_made.nodes
        gone |= {id(one) for one in (image, maps, rectified[0])}
    nodes = [
        one for node in graph.node if id(node) not in gone for one in made.get(id(node), [node])
    ]
    replace_messages(graph.node, nodes)


def image_and_maps(
    onnx: Any, node: Any, readers: list[Any], outputs: int, constants: Mapping[str, Any]
) -> tuple[int, Any, Any] | None:
    """Return how many channels an image has, and the nodes that take it and the maps behind it out.

    Args:
        onnx: The package.
        node: A convolution.
        readers: The nodes that read what it writes.
        outputs: Its channels.
        constants: The graph's constants by their names.

    Returns:
        None where these are not just two, one for the first channels and one for the others; where
        its bias is computed; and for convolutions of groups, whose outputs do not read all inputs.
    """
    if int_attribute(node, "group", 1) != 1 or any(
        name not in constants for name in node.input[2:]
    ):
        return None
    bounds = []
    for one in readers:
        if one.op_type != "Slice" or any(name not in constants for name in one.input[1:]):
            return None
        values = [onnx.numpy_helper.to_array(constants[name]) for name in one.input[1:]]
        if len(values) != 4 or any(value.size != 1 for value in values):
            return None
        start, end, axis, step = (int(value.item()) for value in values)
        if axis != 1 or step != 1:
            return None
        bounds.append((start, min(end, outputs), one))
    bounds.sort(key=lambda bound: bound[0])
    if len(bounds) != 2 or bounds[0][0] != 0 or bounds[1][:2] != (bounds[0][1], outputs):
        return None
    return bounds[0][1], bounds[0][2], bounds[1][2]


def _step(rectified: list[Any], readers: Mapping[str, list[Any]]) -> str | None:
    """Return the name of the step in which maps are read, behind their ReLU and a concatenation."""
    if len(rectified) != 1 or rectified[0].op_type != "Relu":
        return None
    behind = readers.get(rectified[0].output[0], [])
    if len(behind) != 1 or behind[0].op_type != "Concat":
        return None
    rounded = readers.get(behind[0].output[0], [])
    if len(rounded) != 1 or rounded[0].op_type != "QuantizeLinear":
        return None
    return str(rounded[0].input[1])


class _Kernel(NamedTuple):
    """Weights [O, I, h, w] of a convolution in integers, their steps [O] and its biases [O]."""

    integers: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]


class _Made:
    """The nodes in place of one convolution.

    Args:
        onnx: The package.
        graph: Takes the constants.
        node: The convolution.
    """

    def __init__(self, onnx: Any, graph: Any, node: Any) -> None:
        self._onnx, self._graph, self._node = onnx, graph, node
        self._key = f"{node.input[1].removesuffix('.dequantized')}.{node.name}"
        self.nodes: list[Any] = []

    def taps(self, kernel: _Kernel, image: str) -> None:
        """Make the image [B, O, H, W] of the sums of shifted taps."""
        outputs, inputs, high, wide = kernel.integers.shape
        taps = high * wide
        rows = kernel.integers.transpose(0, 2, 3, 1).reshape(outputs * taps, inputs, 1, 1)
        weight = self._weight("image", rows, kernel.scale.repeat(taps))
        self._add("Conv", [self._node.input[0], weight], "image.taps")
        shifts = np.eye(taps, dtype=np.float32).reshape(taps, 1, high, wide)
        shift = self._constant("image.shifts", np.tile(shifts, (outputs, 1, 1, 1)))
        biases = np.zeros((outputs, taps), np.float32)
        biases[:, 0] = kernel.bias
        held = self._constant("image.bias", biases.flatten())
        moved = self._add("Conv", [self.nodes[-1].output[0], shift, held], "image.moved",
                          group=outputs * taps)  # fmt: skip
        moved.attribute.extend(a for a in self._node.attribute if a.name != "group")
        channels = self._constant("image.axis", np.array([1], np.int64))
        if outputs == 1:
            self._add("ReduceSum", [moved.output[0], channels], "image", made=image)
            return
        sizes = self._constant("image.sizes", np.full(outputs, taps, np.int64))
        names = [f"{self._key}.image.part_{number}" for number in range(outputs)]
        self.nodes.append(
            self._onnx.helper.make_node(
                "Split", [moved.output[0], sizes], names, name=f"{self._key}.image.split", axis=1
            )
        )
        sums = [
            self._add("ReduceSum", [name, channels], f"image.sum_{number}").output[0]
            for number, name in enumerate(names)
        ]
        self._add("Concat", sums, "image.sums", made=image, axis=1)

    def image(self, kernel: _Kernel, image: str) -> None:
        """Make the image [B, O, H, W] by a convolution of its own."""
        weight = self._weight("image", kernel.integers, kernel.scale)
        held = self._constant("image.bias", kernel.bias)
        conv = self._add("Conv", [self._node.input[0], weight, held], "image", made=image)
        conv.attribute.extend(self._node.attribute)

    def maps(self, kernel: _Kernel, step: str, rectified: str) -> None:
        """Make the rectified maps, rounded in the step in which they are read."""
        count = len(kernel.integers)
        more = -count % _BLOCK
        weight = self._weight(
            "maps",
            np.pad(kernel.integers, ((0, more), (0, 0), (0, 0), (0, 0))),
            np.pad(kernel.scale, (0, more), constant_values=1.0),
        )
        held = self._constant("maps.bias", np.pad(kernel.bias, (0, more)))
        conv = self._add("Conv", [self._node.input[0], weight, held], "maps.conv")
        conv.attribute.extend(self._node.attribute)
        self._add("Relu", [conv.output[0]], "maps.relu")
        # zero is the lowest integer, so that rounding is the ReLU as well
        point = self._constant("maps.point", np.uint8(0))
        self._add("QuantizeLinear", [self.nodes[-1].output[0], step, point], "maps.integers")
        self._add("DequantizeLinear", [self.nodes[-1].output[0], step, point], "maps.values")
        bounds = [
            self._constant(f"maps.{name}", np.array([value], np.int64))
            for name, value in (("start", 0), ("end", count), ("axis", 1))
        ]
        self._add("Slice", [self.nodes[-1].output[0], *bounds], "maps", made=rectified)

    def _weight(self, name: str, integers: NDArray[np.int8], scale: NDArray[np.float32]) -> str:
        inputs = [
            self._constant(f"{name}.weight", integers),
            self._constant(f"{name}.scale", scale.astype(np.float32)),
            self._constant(f"{name}.zero_point", np.zeros(len(scale), np.int8)),
        ]
        node = self._add("DequantizeLinear", inputs, f"{name}.weight_values", axis=0)
        return str(node.output[0])

    def _constant(self, name: str, value: Any) -> str:
        tensor = self._onnx.numpy_helper.from_array(np.asarray(value), f"{self._key}.{name}")
        self._graph.initializer.append(tensor)
        return str(tensor.name)

    def _add(
        self, kind: str, inputs: list[str], name: str, *, made: str | None = None, **attributes: Any
    ) -> Any:
        own = f"{self._key}.{name}.made"
        node = self._onnx.helper.make_node(
            kind, inputs, [made or own], name=f"{self._key}.{name}", **attributes
        )
        self.nodes.append(node)
        return node
