"""DFT nodes of an ONNX graph of any origin, written as products with DFT matrices.

ONNX keeps complex numbers as a last axis of two. A transform along an axis is then one product of
real numbers: the axis is brought beside the last one, both are taken as one of 2 N numbers, and
multiplied with the matrix whose 2 x 2 blocks are the complex factors. Runtimes multiply matrices
fast everywhere, while few have a DFT and fewer a fast one.

Where zero frequency is shifted right before or after (fftshift: two slices and a concatenation),
rows or columns of the matrix are shifted instead. Factors of normalisation stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import ExportError
from kdmri_edge.utils.extras import require
from kdmri_edge.utils.files import sha256_bytes
from kdmri_export.passes.fourier import dft_matrix, half_spectrum_matrix

__all__ = ["LARGEST_FILE", "Replaced", "fix_shapes", "replace_transforms"]

DFT: Final = "DFT"
_STANDARD: Final = ("", "ai.onnx")
_AXIS_INPUT: Final = 20
"""From this opset on a DFT takes its axis as an input."""
_ELEMENTWISE: Final = ("Identity", "Neg", "Cast")
_WITH_NUMBER: Final = ("Mul", "Div", "Add", "Sub")
_FOLDED: Final = ("Identity", "Shape", "Squeeze", "Unsqueeze", "Cast", "Gather", "Slice", "Concat",
                  "Reshape", "Add", "Sub", "Mul", "Div")  # fmt: skip
"""What sizes are computed by; such nodes are computed here where their inputs are known."""
_LARGEST_VALUE: Final = 4096
_DEEPEST: Final = 64
LARGEST_FILE: Final = 2_000_000_000
"""Bytes: protobuf, which ONNX files are written in, ends at 2 GiB."""
_NORM_INVERSE: Final = 2
"""The normalisation of ONNX's inverse transform: it divides by the number of points."""

Shape = tuple[int | None, ...]


@dataclass(kw_only=True)
class Replaced:
    """What was done to a graph.

    Attributes:
        transforms: DFT nodes that became products.
        shifts: Shifts around them that are rows or columns of their matrices now.
        matrix_bytes: Of all matrices.
    """

    transforms: int = 0
    shifts: int = 0
    matrix_bytes: int = 0


def fix_shapes(model: Any, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give inputs of a graph fixed shapes; what the graph says of other sizes is forgotten.

    Args:
        model: An `onnx.ModelProto`, changed in place.
        shapes: By the names of inputs, which `runtime_check.check_shapes` has seen.
    """
    if not shapes:
        return
    for port in model.graph.input:
        if port.name in shapes:
            del port.type.tensor_type.shape.dim[:]
            for size in shapes[port.name]:
                port.type.tensor_type.shape.dim.add().dim_value = size
    del model.graph.value_info[:]
    for port in model.graph.output:
        port.type.tensor_type.ClearField("shape")


def replace_transforms(model: Any) -> Replaced:
    """Write all DFT nodes of a graph, and of the graphs that it holds, as products.

    Args:
        model: An `onnx.ModelProto` with its weights inside, changed in place. Local functions that
            hold a DFT are written out.

    Raises:
        ExportError: There is no DFT, or one cannot be a product: its axis has no fixed size, or
            is computed from inputs; the node is named.
    """
    onnx = require("onnx", extra="onnx")
    if any(_holds_transform(function.node) for function in model.functions):
        inliner = require("onnx.inliner", extra="onnx")
        try:  # a function may be of another opset than the graph that calls it
            model.CopyFrom(inliner.inline_local_functions(model, convert_version=True))
        except Exception as error:  # of the C++ converter, whatever it does not know
            raise ExportError(
                "A local function of the graph holds a DFT, and cannot be written out"
                f" ({_first_line(error)}).",
                "Write the graph again with its exporter, all in one opset.",
            ) from error
    if not _holds_transform(model.graph.node):
        raise ExportError(
            "The graph holds no DFT node: there is nothing to rewrite.",
            "Give a graph that does; `kdmri-edge check` lists the operators of one.",
        )
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # of the C++ checker, whatever it finds
        raise ExportError(
            f"The shapes of the graph contradict each other ({_first_line(error)}).",
            "Write the graph again with its exporter.",
        ) from error
    rewriter = _Rewriter(onnx, model)
    rewriter.graph(model.graph, inferred.graph, None)
    rewriter.finish()
    _state_outputs(onnx, model)
    return rewriter.replaced


def _state_outputs(onnx: Any, model: Any) -> None:
    """Say what shapes come out, where the graph does not: some runtimes want to be told."""
    if all(port.type.tensor_type.HasField("shape") for port in model.graph.output):
        return
    inferred = onnx.shape_inference.infer_shapes(model)
    for port, known in zip(model.graph.output, inferred.graph.output, strict=True):
        port.CopyFrom(known)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(" .:") if lines else type(error).__name__


def _inner(node: Any) -> Iterator[Any]:
    """Yield the graphs that a node holds."""
    for held in node.attribute:
        if held.HasField("g"):
            yield held.g
        yield from held.graphs


def _is_transform(node: Any) -> bool:
    return node.op_type == DFT and node.domain in _STANDARD


def _holds_transform(nodes: Sequence[Any]) -> bool:
    return any(
        _is_transform(node) or any(_holds_transform(graph.node) for graph in _inner(node))
        for node in nodes
    )


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(held.i) for held in node.attribute if held.name == name), default)


# --- what is known of a graph -------------------------------------------------------------------


class _Scope:
    """A graph, what is known of its values, and the graph around it.

    Args:
        onnx: The package.
        model: That the graph belongs to.
        graph: To be changed.
        inferred: The same with shapes.
        outer: The graph around it.
    """

    def __init__(
        self, onnx: Any, model: Any, graph: Any, inferred: Any, outer: _Scope | None
    ) -> None:
        self.onnx, self.proto, self.outer = onnx, graph, outer
        self.opsets = list(model.opset_import)
        versions = {entry.domain: entry.version for entry in self.opsets}
        self.opset = next((versions[name] for name in _STANDARD if name in versions), 0)
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
            for graph in _inner(node):
                self.outside |= _captured(graph)

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
        if node.op_type not in _FOLDED or node.domain not in _STANDARD or depth > _DEEPEST:
            return None
        if node.op_type == "Shape":
            shape = self.shape(node.input[0])
            if shape is None:
                return None
            start = _attribute(node, "start", 0)
            part = shape[start : _attribute(node, "end", len(shape))]
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


def _captured(graph: Any) -> set[str]:
    """Return the names that a graph within another reads, whosever they are."""
    found = {port.name for port in graph.output}
    for node in graph.node:
        found |= set(node.input)
        for inner in _inner(node):
            found |= _captured(inner)
    return found


# --- shifts -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Roll:
    """A shift of a value along one axis.

    Args:
        source: What is shifted.
        axis: Counted from the front.
        by: As torch.roll and numpy.roll count.
        edges: The nodes that read the source, in their first input.
        made: What is made.
    """

    source: str
    axis: int
    by: int
    edges: tuple[Any, ...]
    made: str


def _roll(scope: _Scope, name: str) -> _Roll | None:
    """Recognise a value that is another one, shifted: fftshift, ifftshift, roll."""
    node = scope.makers.get(name)
    if node is None or node.domain not in _STANDARD:
        return None
    if node.op_type == "Gather":
        return _rolled_by_index(scope, node, name)
    if node.op_type != "Concat" or len(node.input) != 2:
        return None
    makers = [scope.makers.get(part) for part in node.input]
    shape = scope.shape(name)
    if shape is None or any(maker is None for maker in makers):
        return None
    axis = _attribute(node, "axis", 0) % len(shape)
    size = shape[axis]
    if size is None:
        return None
    first, second = (_part(scope, part, axis) for part in node.input)
    if first is None or second is None:
        return None
    (source, start, end), (other, zero, cut) = first, second
    if source != other or zero != 0 or start != cut or end != size:
        return None
    if scope.shape(source) != shape:
        return None
    edges = tuple({id(maker): maker for maker in makers}.values())
    return _Roll(source, axis, -start, edges, name)


def _part(scope: _Scope, name: str, axis: int) -> tuple[str, int, int] | None:
    """Return source, start and end of a part of a value along an axis."""
    node = scope.makers[name]
    shape = scope.shape(node.input[0]) if node.input else None
    if shape is None or axis >= len(shape) or shape[axis] is None:
        return None
    size = int(shape[axis] or 0)
    if node.op_type == "Split":
        own = scope.shape(name)
        if _attribute(node, "axis", 0) % len(shape) != axis or len(node.output) != 2:
            return None
        if own is None or own[axis] is None:
            return None
        extent = int(own[axis] or 0)
        first = name == node.output[0]
        return node.input[0], 0 if first else size - extent, extent if first else size
    if node.op_type != "Slice":
        return None
    given = [scope.value(one) if one else None for one in node.input[1:]]
    if len(given) < 2 or any(
        array is None for array, one in zip(given, node.input[1:], strict=True) if one
    ):
        return None
    starts, ends, axes, steps = (*given, None, None)[:4]
    if starts is None or ends is None or starts.size != 1 or ends.size != 1:
        return None
    own_axis = 0 if axes is None else int(axes.reshape(-1)[0]) % len(shape)
    if own_axis != axis or (steps is not None and int(steps.reshape(-1)[0]) != 1):
        return None
    start, end = (
        min(max(at + size if at < 0 else at, 0), size)
        for at in (int(starts.reshape(-1)[0]), int(ends.reshape(-1)[0]))
    )
    return node.input[0], start, end


def _rolled_by_index(scope: _Scope, node: Any, name: str) -> _Roll | None:
    """Recognise a Gather whose index counts on and begins anew."""
    shape, index = scope.shape(node.input[0]), scope.value(node.input[1])
    if shape is None or index is None or index.ndim != 1:
        return None
    axis = _attribute(node, "axis", 0) % len(shape)
    size = shape[axis]
    if size is None or index.size != size or size == 0:
        return None
    first = int(index[0]) % size
    if not np.array_equal(index % size, (np.arange(size) + first) % size):
        return None
    return _Roll(node.input[0], axis, -first, (node,), name)


@dataclass(frozen=True)
class _Fold:
    """A shift that a transform can do.

    Args:
        by: Its size.
        edits: Nodes that read it, its name, and what they are to read instead; several where the
            real and imaginary parts are shifted one by one.
    """

    by: int
    edits: tuple[tuple[tuple[Any, ...], str, str], ...]


def _same(found: Sequence[_Fold | None]) -> _Fold | None:
    """Return shifts of parts as one of the whole, if they are of one size."""
    folds = [one for one in found if one is not None]
    if not folds or len(folds) < len(found) or len({one.by for one in folds}) > 1:
        return None
    return _Fold(folds[0].by, tuple(edit for one in folds for edit in one.edits))


def _before(
    scope: _Scope, edges: tuple[Any, ...], name: str, axis: int, depth: int = 0
) -> _Fold | None:
    """Find the nearest shift along an axis that goes into what nodes read.

    Args:
        scope: The graph.
        edges: Who reads the value.
        name: Of the value.
        axis: Of the value.
        depth: How many values that are put together of parts lie behind.
    """
    while True:
        found = _roll(scope, name)
        if found is not None and found.axis == axis:
            return _Fold(found.by, ((edges, name, found.source),))
        # From here on the values of nodes on the way would change for whoever reads them.
        if not _only(scope, name, edges):
            return None
        if found is not None:
            if not _shifts_alone(scope, found):
                return None
            edges, name = found.edges, found.source
            continue
        node = scope.makers.get(name)
        if node is None:
            return None
        if node.op_type == "Concat" and node.domain in _STANDARD:
            shape = scope.shape(name)
            own = None if shape is None else _attribute(node, "axis", 0) % len(shape)
            parts = list(dict.fromkeys(node.input))
            if own in (None, axis) or len(parts) < len(node.input) or depth > _DEEPEST:
                return None
            return _same([_before(scope, (node,), str(one), axis, depth + 1) for one in parts])
        step = _axis_before(scope, node, axis)
        if step is None:
            return None
        edges, (name, axis) = (node,), step


def _after(scope: _Scope, name: str, axis: int, depth: int = 0) -> _Fold | None:
    """Find the nearest shift along an axis that all that reads a value goes through.

    Args:
        scope: The graph.
        name: Of the value.
        axis: Of the value.
        depth: How often what reads it has parted.
    """
    while name not in scope.outside:
        readers = list({id(one): one for one in scope.readers.get(name, [])}.values())
        found = _roll_of(scope, readers, name)
        if found is not None and found.axis == axis:
            return _Fold(found.by, ((tuple(scope.readers.get(found.made, ())), found.made, name),))
        if found is not None:
            name = found.made
            continue
        if not readers or len(readers) < len(scope.readers[name]) or depth > _DEEPEST:
            return None
        steps = [_axis_after(scope, node, name, axis) for node in readers]
        if None in steps:
            return None
        ways = [
            (str(node.output[0]), step)
            for node, step in zip(readers, steps, strict=True)
            if step is not None
        ]
        if len(ways) > 1:
            return _same([_after(scope, made, step, depth + 1) for made, step in ways])
        name, axis = ways[0]
    return None


def _axis_after(scope: _Scope, node: Any, name: str, axis: int) -> int | None:
    """Return which axis of a node's output an axis of its input is."""
    shape = scope.shape(str(node.output[0])) if len(node.output) == 1 else None
    if shape is None:
        return None
    for candidate in range(len(shape)):
        if _axis_before(scope, node, candidate) == (name, axis):
            return candidate
    return None


def _roll_of(scope: _Scope, readers: Sequence[Any], name: str) -> _Roll | None:
    """Return the shift that is all that reads a value."""
    ends = {
        id(end): end
        for node in readers
        for end in (
            [node]
            if node.op_type == "Gather"
            else [reader for made in node.output for reader in scope.readers.get(made, [])]
        )
    }
    if len(ends) != 1:
        return None
    (end,) = ends.values()
    found = _roll(scope, str(end.output[0]))
    if found is None or found.source != name:
        return None
    if {id(edge) for edge in found.edges} != {id(node) for node in readers}:
        return None
    return found if _shifts_alone(scope, found) else None


def _rewire(edges: Sequence[Any], old: str, new: str) -> None:
    """Let nodes read another value."""
    for node in edges:
        for at, one in enumerate(node.input):
            if one == old:
                node.input[at] = new


def _axis_before(scope: _Scope, node: Any, axis: int) -> tuple[str, int] | None:
    """Go back over a node that treats all points along an axis alike.

    Returns:
        Its input, and which axis of that it is; None for any other node.
    """
    if node.domain not in _STANDARD:
        return None
    kind = node.op_type
    if kind in _ELEMENTWISE or (kind in _WITH_NUMBER and _is_number(scope, node)):
        data = _data(scope, node) if kind in _WITH_NUMBER else node.input[0]
        return (data, axis) if data is not None else None
    if _is_transform(node):
        own, shape = _transform_axis(scope, node), scope.shape(node.input[0])
        beside = own is not None and shape is not None and axis not in (own, len(shape) - 1)
        return (node.input[0], axis) if beside else None
    if kind == "Slice" and len(node.input) > 3:
        shape, cut = scope.shape(node.input[0]), scope.value(node.input[3])
        if shape is None or cut is None:
            return None
        touched = {int(one) % len(shape) for one in cut.reshape(-1)}
        return None if axis in touched else (node.input[0], axis)
    if kind == "Transpose":
        order = next((list(held.ints) for held in node.attribute if held.name == "perm"), None)
        return (node.input[0], int(order[axis])) if order else None
    if kind in ("Squeeze", "Unsqueeze") and len(node.input) == 2:
        axes, shape = scope.value(node.input[1]), scope.shape(node.input[0])
        if axes is None or shape is None:
            return None
        if kind == "Unsqueeze":
            added = {int(one) % (len(shape) + axes.size) for one in axes.reshape(-1)}
            return None if axis in added else (node.input[0], axis - sum(a < axis for a in added))
        gone = {int(one) % len(shape) for one in axes.reshape(-1)}
        left = [at for at in range(len(shape)) if at not in gone]
        return node.input[0], left[axis]
    return None


def _is_number(scope: _Scope, node: Any) -> bool:
    return len(node.input) == 2 and _data(scope, node) is not None


def _data(scope: _Scope, node: Any) -> str | None:
    """Return the operand of an elementwise node whose other operand is a single number."""
    shapes = [scope.shape(name) for name in node.input]
    data = scope.shape(node.output[0])
    for own, other in ((0, 1), (1, 0)):
        single = shapes[other]
        if single is not None and all(size == 1 for size in single) and shapes[own] == data:
            return str(node.input[own]) if data is not None else None
    return None


def _transform_axis(scope: _Scope, node: Any) -> int | None:
    """Return the axis of a DFT, counted from the front; None where it is not known."""
    shape = scope.shape(node.input[0])
    if shape is None:
        return None
    if len(node.input) > 2 and node.input[2]:
        found = scope.value(node.input[2])
        if found is None or found.size != 1:
            return None
        axis = int(found.reshape(-1)[0])
    else:
        default = -2 if scope.opset >= _AXIS_INPUT else 1
        axis = _attribute(node, "axis", default) if scope.opset < _AXIS_INPUT else default
    return axis % len(shape) if -len(shape) <= axis < len(shape) else None


# --- the rewriting ------------------------------------------------------------------------------


@dataclass
class _Plan:
    """One DFT as a product.

    Args:
        node: The DFT.
        axis: Counted from the front.
        points: How many it transforms.
        given: How many its input has along the axis.
        shape: Of the input.
        onesided: Half a spectrum is made of real points, or these of that.
        inverse: Its direction.
        before: Shift of the input that is folded in.
        after: Shift of the output that is folded in.
    """

    node: Any
    axis: int
    points: int
    given: int
    shape: Shape
    onesided: bool
    inverse: bool
    before: int = 0
    after: int = 0

    @property
    def to_real(self) -> bool:
        return self.onesided and self.inverse

    @property
    def read(self) -> int:
        """How many points of the input it reads at most."""
        return self.points // 2 + 1 if self.to_real else self.points

    def matrix(self) -> NDArray[np.complex128]:
        """Return the matrix, [rows, points that are read]."""
        shifts = {"before": self.before, "after": self.after}
        if self.to_real:
            made = half_spectrum_matrix(self.points, _NORM_INVERSE, **shifts)
        else:
            made = dft_matrix(
                self.points,
                inverse=self.inverse,
                norm=_NORM_INVERSE if self.inverse else 0,
                rows=self.points // 2 + 1 if self.onesided else None,
                **shifts,
            )
        found: NDArray[np.complex128] = made.numpy()[:, : min(self.given, self.read)]
        return found


@dataclass
class _Rewriter:
    """Rewrites the graphs of a model.

    Args:
        onnx: The package.
        model: To be changed.
    """

    onnx: Any
    model: Any
    replaced: Replaced = field(default_factory=Replaced)
    _names: set[str] = field(default_factory=set)
    _held: dict[str, str] = field(default_factory=dict)
    _before: set[str] = field(default_factory=set)

    def graph(self, graph: Any, inferred: Any, outer: _Scope | None) -> None:
        """Rewrite one graph, and those that its nodes hold."""
        if not self._names:
            self._names = _all_names(self.model.graph)
            self._before = _captured(self.model.graph)
        scope = _Scope(self.onnx, self.model, graph, inferred, outer)
        for node, twin in zip(list(graph.node), list(inferred.node), strict=True):
            for inner, known in zip(_inner(node), _inner(twin), strict=True):
                self.graph(inner, known, scope)
        plans = [self._planned(scope, node) for node in graph.node if _is_transform(node)]
        for plan in plans:
            self._fold_before(scope, plan)
            self._fold_after(scope, plan)
        made = {id(plan.node): self._product(scope, plan) for plan in plans}
        nodes: list[Any] = []
        for node in graph.node:
            nodes.extend(made.get(id(node), [node]))
        _replace(graph.node, nodes)
        self.replaced.transforms += len(plans)

    def finish(self) -> None:
        """Drop what nothing reads any more."""
        graph = self.model.graph
        _drop_unread(graph)
        read = _captured(graph)
        ports = {port.name for port in graph.input}
        kept = [
            constant
            for constant in graph.initializer
            if constant.name in read | ports or constant.name not in self._before
        ]
        if len(kept) < len(graph.initializer):
            _replace(graph.initializer, kept)
        _forget_shapes(graph)

    def _planned(self, scope: _Scope, node: Any) -> _Plan:
        name = node.name or node.output[0]
        shape = scope.shape(node.input[0])
        fix = "Fix the sizes of the graph's inputs with --shape NAME=SIZES."
        if shape is None:
            raise ExportError(f"The shape that DFT node {name!r} transforms is not known.", fix)
        axis = _transform_axis(scope, node)
        if axis is None:
            raise ExportError(
                f"The axis of DFT node {name!r} is no constant of the graph, or none that its"
                " input has.",
                "Write the graph with a fixed axis.",
            )
        if axis == len(shape) - 1:
            raise ExportError(
                f"DFT node {name!r} transforms the axis of real and imaginary parts.",
                "Transform another axis.",
            )
        if shape[-1] not in (1, 2):
            raise ExportError(
                f"The last axis of what DFT node {name!r} transforms is not known to be of one"
                " number (real) or two (complex).",
                fix,
            )
        given = shape[axis]
        if given is None:
            raise ExportError(
                f"DFT node {name!r} runs along axis {axis}, whose size is not fixed, so that there"
                " is no matrix for it.",
                fix,
            )
        onesided = bool(_attribute(node, "onesided", 0))
        inverse = bool(_attribute(node, "inverse", 0))
        points = 2 * (given - 1) if onesided and inverse else given
        if len(node.input) > 1 and node.input[1]:
            wanted = scope.value(node.input[1])
            if wanted is None or wanted.size != 1:
                raise ExportError(
                    f"The length of DFT node {name!r} is computed from the graph's inputs, so that"
                    " there is no matrix for it.",
                    fix,
                )
            points = int(wanted.reshape(-1)[0])
        if points < 1 or given < 1:
            raise ExportError(
                f"DFT node {name!r} transforms {min(points, given)} points.", "Give it some."
            )
        if onesided and not inverse and shape[-1] != 1:
            raise ExportError(
                f"DFT node {name!r} is to make half a spectrum of complex numbers.",
                "Half a spectrum is that of real numbers; leave onesided out.",
            )
        kind = scope.type(node.input[0])
        if kind not in self._kinds:
            raise ExportError(
                f"The type of what DFT node {name!r} transforms is not known.",
                "Write the graph again with its exporter.",
            )
        plan = _Plan(node, axis, points, given, shape, onesided, inverse)
        if 16 * min(given, plan.read) * points > LARGEST_FILE:
            raise ExportError(
                f"DFT node {name!r} transforms {points} points: its matrix would not fit into an"
                " ONNX file of 2 GB.",
                "Leave that graph as it is.",
            )
        return plan

    @property
    def _kinds(self) -> dict[int, Any]:
        """Types of values, and the types of matrices for them."""
        types = self.onnx.TensorProto
        return {
            types.FLOAT: np.float32,
            types.DOUBLE: np.float64,
            types.FLOAT16: np.float32,
            types.BFLOAT16: np.float32,
        }

    def _fold_before(self, scope: _Scope, plan: _Plan) -> None:
        """Take shifts along the axis into the matrix, as long as only this transform reads them."""
        if plan.given != plan.read:  # filled up or cut: what is shifted is another number of points
            return
        while True:
            found = _before(scope, (plan.node,), str(plan.node.input[0]), plan.axis)
            if found is None:
                return
            plan.before += found.by
            self.replaced.shifts += 1
            for edges, old, new in found.edits:
                _rewire(edges, old, new)
            scope.index()

    def _fold_after(self, scope: _Scope, plan: _Plan) -> None:
        """Take shifts along the axis into the matrix, as long as nothing reads what they shift."""
        while True:
            found = _after(scope, str(plan.node.output[0]), plan.axis)
            if found is None:
                return
            plan.after += found.by
            self.replaced.shifts += 1
            for edges, made, name in found.edits:
                if made not in scope.outside:
                    _rewire(edges, made, name)
                    continue
                last = scope.makers[made]  # its name has to stay
                last.op_type = "Identity"
                del last.attribute[:], last.input[:]
                last.input.append(name)
            scope.index()

    # --- writing ---

    def _product(self, scope: _Scope, plan: _Plan) -> list[Any]:
        """Return the nodes that take the place of a DFT."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        source, result = str(plan.node.input[0]), str(plan.node.output[0])
        stem = plan.node.name or result
        kind = scope.type(source)
        rank, width = len(plan.shape), int(plan.shape[-1] or 0)
        matrix = plan.matrix()
        rows, columns = matrix.shape
        parts = 1 if plan.to_real else 2
        # [points, parts of these, frequencies, parts of those]
        blocks = np.zeros((columns, width, rows, parts))
        blocks[:, 0, :, 0] = matrix.real.T
        if width == 2:
            blocks[:, 1, :, 0] = -matrix.imag.T
        if parts == 2:
            blocks[:, 0, :, 1] = matrix.imag.T
            if width == 2:
                blocks[:, 1, :, 1] = matrix.real.T
        held = blocks.reshape(columns * width, rows * parts).astype(self._kinds[kind])
        nodes: list[Any] = []
        at = source

        def add(operator: str, *more: str, **attributes: Any) -> None:
            nonlocal at
            made = self._unique(f"{stem}_{operator.lower()}")
            nodes.append(helper.make_node(operator, [at, *more], [made], name=made, **attributes))
            at = made

        if kind in (types.FLOAT16, types.BFLOAT16):
            add("Cast", to=types.FLOAT)
        if plan.given > columns:
            bounds = [self._integers([n]) for n in (0, columns, plan.axis)]
            add("Slice", *bounds)
        order = list(range(rank))
        order.insert(rank - 2, order.pop(plan.axis))
        moved = plan.axis != rank - 2
        if moved:
            add("Transpose", perm=order)
        leading = [0] * (rank - 2)  # 0: as they are
        add("Reshape", self._integers([*leading, columns * width]))
        add("MatMul", self._matrix(held, f"dft_{plan.points}"))
        add("Reshape", self._integers([*leading, rows, parts]))
        if moved:
            add("Transpose", perm=[order.index(axis) for axis in range(rank)])
        if kind in (types.FLOAT16, types.BFLOAT16):
            add("Cast", to=kind)
        nodes[-1].output[0] = result
        return nodes

    def _unique(self, name: str) -> str:
        made, count = name, 1
        while made in self._names:
            count += 1
            made = f"{name}_{count}"
        self._names.add(made)
        return made

    def _matrix(self, array: NDArray[Any], name: str) -> str:
        """Keep a matrix, and count its bytes."""
        before = len(self._held)
        kept = self._constant(array, name)
        self.replaced.matrix_bytes += array.nbytes if len(self._held) > before else 0
        return kept

    def _integers(self, values: Sequence[int]) -> str:
        return self._constant(np.asarray(values, np.int64), "dft_sizes")

    def _constant(self, array: NDArray[Any], name: str) -> str:
        """Keep a constant, once, where graphs within others can read it as well."""
        key = f"{array.shape} {array.dtype} {sha256_bytes(array.tobytes())}"
        if key not in self._held:
            self._held[key] = self._unique(name)
            tensor = self.onnx.numpy_helper.from_array(array, self._held[key])
            self.model.graph.initializer.append(tensor)
        return self._held[key]


def _shifts_alone(scope: _Scope, roll: _Roll) -> bool:
    """Whether the parts that a shift is put together of are read by nothing else."""
    return all(
        name == roll.made or scope.alone(str(name)) is not None
        for edge in roll.edges
        for name in edge.output
    )


def _only(scope: _Scope, name: str, edges: Sequence[Any]) -> bool:
    """Whether a value is read by these nodes, once each, and by nothing else."""
    found = scope.readers.get(name, [])
    return (
        name not in scope.outside
        and len(found) == len(edges)
        and {id(node) for node in found} == {id(edge) for edge in edges}
    )


def _all_names(graph: Any) -> set[str]:
    found = {port.name for port in (*graph.input, *graph.output, *graph.value_info)}
    found |= {constant.name for constant in graph.initializer}
    for node in graph.node:
        found |= {node.name, *node.input, *node.output}
        for inner in _inner(node):
            found |= _all_names(inner)
    return found


def _replace(field: Any, messages: Sequence[Any]) -> None:
    """Let a repeated field of a protobuf message hold these, some of which it holds already."""
    copies = []
    for message in messages:
        copied = type(message)()
        copied.CopyFrom(message)
        copies.append(copied)
    del field[:]
    field.extend(copies)


def _drop_unread(graph: Any) -> None:
    """Remove nodes whose results nothing reads."""
    for node in graph.node:
        for inner in _inner(node):
            _drop_unread(inner)
    while True:
        read = _captured(graph)
        left = [node for node in graph.node if any(name in read for name in node.output)]
        if len(left) == len(graph.node):
            return
        _replace(graph.node, left)


def _forget_shapes(graph: Any) -> None:
    """Drop what is said of values that are gone."""
    made = {name for node in graph.node for name in node.output}
    for at in reversed(range(len(graph.value_info))):
        if graph.value_info[at].name not in made:
            del graph.value_info[at]
    for node in graph.node:
        for inner in _inner(node):
            _forget_shapes(inner)
