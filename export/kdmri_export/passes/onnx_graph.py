"""What is known of an ONNX graph of any origin, and how it is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.utils.extras import require

__all__ = [
    "DEEPEST",
    "DFT",
    "STANDARD_DOMAINS",
    "Scope",
    "Shape",
    "all_names",
    "captured_names",
    "copied",
    "drop_unread",
    "first_line",
    "forget_shapes",
    "holds_transform",
    "inner_graphs",
    "int_attribute",
    "is_transform",
    "readers_of",
    "replace_messages",
]

DFT: Final = "DFT"
STANDARD_DOMAINS: Final = ("", "ai.onnx")
_FOLDED: Final = ("Identity", "Shape", "Squeeze", "Unsqueeze", "Cast", "Gather", "Slice", "Concat",
                  "Reshape", "Add", "Sub", "Mul", "Div")  # fmt: skip
"""What sizes are computed by; such nodes are computed here where their inputs are known."""
_LARGEST_VALUE: Final = 4096
DEEPEST: Final = 64
Shape = tuple[int | None, ...]


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(" .:") if lines else type(error).__name__


def copied(message: Any) -> Any:
    """Return a copy of a node: a graph's own nodes go with the list that is cleared."""
    return type(message).FromString(message.SerializeToString())


def inner_graphs(node: Any) -> Iterator[Any]:
    """Yield the graphs that a node holds."""
    for held in node.attribute:
        if held.HasField("g"):
            yield held.g
        yield from held.graphs


def is_transform(node: Any) -> bool:
    """Whether a node is a DFT."""
    return node.op_type == DFT and node.domain in STANDARD_DOMAINS


def holds_transform(nodes: Sequence[Any]) -> bool:
    """Whether there is a DFT among nodes, or in the graphs that they hold."""
    return any(
        is_transform(node) or any(holds_transform(graph.node) for graph in inner_graphs(node))
        for node in nodes
    )


def int_attribute(node: Any, name: str, default: int) -> int:
    """Return a whole number that a node says, or what stands for it."""
    return next((int(held.i) for held in node.attribute if held.name == name), default)


def readers_of(nodes: Iterable[Any]) -> dict[str, list[Any]]:
    """Return the nodes that read each value, in their order; twice where one reads it twice.

    Args:
        nodes: Of a graph without others in it, as this package writes them.
    """
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


class Scope:
    """A graph, what is known of its values, and the graph around it.

    Args:
        onnx: The package.
        model: That the graph belongs to.
        graph: To be changed.
        inferred: The same with shapes.
        outer: The graph around it.
    """

    def __init__(
        self, onnx: Any, model: Any, graph: Any, inferred: Any, outer: Scope | None
    ) -> None:
        self.onnx, self.proto, self.outer = onnx, graph, outer
        self.opsets = list(model.opset_import)
        versions = {entry.domain: entry.version for entry in self.opsets}
        self.opset = next((versions[name] for name in STANDARD_DOMAINS if name in versions), 0)
        self.shapes: dict[str, Shape | None] = {}
        self.types: dict[str, int] = {}
        for port in (*inferred.input, *inferred.output, *inferred.value_info):
            kind = port.type.tensor_type
            self.types[port.name] = kind.elem_type
            if port.type.HasField("tensor_type") and kind.HasField("shape"):
                self.shapes[port.name] = tuple(
                    one.dim_value if one.HasField("dim_value") else None for one in kind.shape.dim
                )
        self.constants = {}
        for constant in graph.initializer:
            self.constants[constant.name] = constant
            self.shapes[constant.name] = tuple(constant.dims)
            self.types[constant.name] = constant.data_type
        # An input that has a default is no constant.
        for port in graph.input:
            self.constants.pop(port.name, None)
        self.index()

    def index(self) -> None:
        """Note which node makes a value and which ones read it, those left out that nobody reads.

        Values that come out of the graph, or that graphs within it read, are noted as `outside`.
        """
        self.makers = {name: node for node in self.proto.node for name in node.output if name}
        self.readers: dict[str, list[Any]] = {}
        self.outside: set[str] = {port.name for port in self.proto.output}
        for node in reversed(self.proto.node):  # the order of a graph is that of its computation
            if not any(name in self.readers or name in self.outside for name in node.output):
                continue
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            for graph in inner_graphs(node):
                self.outside |= captured_names(graph)

    def alone(self, name: str) -> Any | None:
        """Return the node that reads a value, if that is one node, once, of this graph."""
        found = self.readers.get(name, [])
        return found[0] if len(found) == 1 and name not in self.outside else None

    def shape(self, name: str) -> Shape | None:
        """Return the shape of a value; None of unknown rank."""
        if name in self.shapes:
            return self.shapes[name]
        own = name in self.makers
        return self.outer.shape(name) if self.outer is not None and not own else None

    def type(self, name: str) -> int:
        """Return the number of a value's type; 0 of an unknown one."""
        if self.types.get(name):
            return self.types[name]
        return self.outer.type(name) if self.outer is not None else 0

    def value(self, name: str, depth: int = 0) -> NDArray[Any] | None:
        """Return a value that does not depend on inputs, if it is a small one."""
        constant, node = self.constants.get(name), self.makers.get(name)
        if constant is not None:
            small = int(np.prod(constant.dims, dtype=np.int64)) <= _LARGEST_VALUE
            found: NDArray[Any] | None = self._array(constant) if small else None
            return found
        if node is None:
            return self.outer.value(name, depth) if self.outer is not None else None
        if node.op_type == "Constant":
            return self._constant(node)
        if node.op_type not in _FOLDED or node.domain not in STANDARD_DOMAINS or depth > DEEPEST:
            return None
        if node.op_type == "Shape":
            shape = self.shape(node.input[0])
            if shape is None:
                return None
            start = int_attribute(node, "start", 0)
            part = shape[start : int_attribute(node, "end", len(shape))]
            return None if None in part else np.asarray(part, np.int64)
        given = {one: self.value(one, depth + 1) for one in node.input if one}
        if any(array is None or array.size > _LARGEST_VALUE for array in given.values()):
            return None
        return self._computed(node, given)

    def _array(self, tensor: Any) -> NDArray[Any]:
        array: NDArray[Any] = self.onnx.numpy_helper.to_array(tensor)
        return array

    def _constant(self, node: Any) -> NDArray[Any] | None:
        for held in node.attribute:
            match held.name:
                case "value" if int(np.prod(held.t.dims, dtype=np.int64)) <= _LARGEST_VALUE:
                    return self._array(held.t)
                case "value_int":
                    return np.asarray(held.i, np.int64)
                case "value_ints":
                    return np.asarray(held.ints, np.int64)
                case "value_float":
                    return np.asarray(held.f, np.float32)
                case "value_floats":
                    return np.asarray(held.floats, np.float32)
        return None

    def _computed(self, node: Any, given: Mapping[str, Any]) -> NDArray[Any] | None:
        """Compute a node by ONNX's reference implementation."""
        helper = self.onnx.helper
        ports = [helper.make_tensor_value_info(name, 0, None) for name in given]
        made = [helper.make_tensor_value_info(node.output[0], 0, None)]
        graph = helper.make_graph([node], "one", ports, made)
        try:
            reference = require("onnx.reference", extra="onnx")
            (found,) = reference.ReferenceEvaluator(
                helper.make_model(graph, opset_imports=self.opsets)
            ).run(None, dict(given))
        except Exception:  # a node that is wrong, or newer than the implementation: not known then
            return None
        array: NDArray[Any] = np.asarray(found)
        return array if array.size <= _LARGEST_VALUE else None


def captured_names(graph: Any) -> set[str]:
    """Return the names that a graph within another reads, whosever they are."""
    found = {port.name for port in graph.output}
    for node in graph.node:
        found |= set(node.input)
        for inner in inner_graphs(node):
            found |= captured_names(inner)
    return found


def all_names(graph: Any) -> set[str]:
    """Return all names of a graph, and of those within it."""
    found = {port.name for port in (*graph.input, *graph.output, *graph.value_info)}
    found |= {constant.name for constant in graph.initializer}
    for node in graph.node:
        found |= {node.name, *node.input, *node.output}
        for inner in inner_graphs(node):
            found |= all_names(inner)
    return found


def replace_messages(field: Any, messages: Sequence[Any]) -> None:
    """Let a repeated field of a protobuf message hold these, some of which it holds already."""
    copies = [copied(message) for message in messages]
    del field[:]
    field.extend(copies)


def drop_unread(graph: Any) -> None:
    """Remove nodes whose results nothing reads."""
    for node in graph.node:
        for inner in inner_graphs(node):
            drop_unread(inner)
    while True:
        read = captured_names(graph)
        left = [node for node in graph.node if any(name in read for name in node.output)]
        if len(left) == len(graph.node):
            return
        replace_messages(graph.node, left)


def forget_shapes(graph: Any) -> None:
    """Drop what is said of values that are gone."""
    made = {name for node in graph.node for name in node.output}
    for at in reversed(range(len(graph.value_info))):
        if graph.value_info[at].name not in made:
            del graph.value_info[at]
    for node in graph.node:
        for inner in inner_graphs(node):
            forget_shapes(inner)
