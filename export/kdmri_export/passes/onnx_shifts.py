"""Shifts of zero frequency around DFT nodes of an ONNX graph (fftshift, ifftshift, roll)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from kdmri_export.passes.onnx_graph import (
    DEEPEST,
    STANDARD_DOMAINS,
    Scope,
    int_attribute,
    is_transform,
)

__all__ = ["rewire", "shift_after", "shift_before", "transform_axis"]

_AXIS_INPUT: Final = 20
"""From this opset on a DFT takes its axis as an input."""
_ELEMENTWISE: Final = ("Identity", "Neg", "Cast")
_WITH_NUMBER: Final = ("Mul", "Div", "Add", "Sub")


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


def _roll(scope: Scope, name: str) -> _Roll | None:
    """Recognise a value that is another one, shifted: fftshift, ifftshift, roll."""
    node = scope.makers.get(name)
    if node is None or node.domain not in STANDARD_DOMAINS:
        return None
    if node.op_type == "Gather":
        return _rolled_by_index(scope, node, name)
    if node.op_type != "Concat" or len(node.input) != 2:
        return None
    makers = [scope.makers.get(part) for part in node.input]
    shape = scope.shape(name)
    if shape is None or any(maker is None for maker in makers):
        return None
    axis = int_attribute(node, "axis", 0) % len(shape)
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


def _part(scope: Scope, name: str, axis: int) -> tuple[str, int, int] | None:
    """Return source, start and end of a part of a value along an axis."""
    node = scope.makers[name]
    shape = scope.shape(node.input[0]) if node.input else None
    if shape is None or axis >= len(shape) or shape[axis] is None:
        return None
    size = int(shape[axis] or 0)
    if node.op_type == "Split":
        own = scope.shape(name)
        if int_attribute(node, "axis", 0) % len(shape) != axis or len(node.output) != 2:
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


def _rolled_by_index(scope: Scope, node: Any, name: str) -> _Roll | None:
    """Recognise a Gather whose index counts on and begins anew."""
    shape, index = scope.shape(node.input[0]), scope.value(node.input[1])
    if shape is None or index is None or index.ndim != 1:
        return None
    axis = int_attribute(node, "axis", 0) % len(shape)
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


def shift_before(
    scope: Scope, edges: tuple[Any, ...], name: str, axis: int, depth: int = 0
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
        if node.op_type == "Concat" and node.domain in STANDARD_DOMAINS:
            shape = scope.shape(name)
            own = None if shape is None else int_attribute(node, "axis", 0) % len(shape)
            parts = list(dict.fromkeys(node.input))
            if own in (None, axis) or len(parts) < len(node.input) or depth > DEEPEST:
                return None
            return _same([shift_before(scope, (node,), str(one), axis, depth + 1) for one in parts])
        step = _axis_before(scope, node, axis)
        if step is None:
            return None
        edges, (name, axis) = (node,), step


def shift_after(scope: Scope, name: str, axis: int, depth: int = 0) -> _Fold | None:
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
        if not readers or len(readers) < len(scope.readers[name]) or depth > DEEPEST:
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
            return _same([shift_after(scope, made, step, depth + 1) for made, step in ways])
        name, axis = ways[0]
    return None


def _axis_after(scope: Scope, node: Any, name: str, axis: int) -> int | None:
    """Return which axis of a node's output an axis of its input is."""
    shape = scope.shape(str(node.output[0])) if len(node.output) == 1 else None
    if shape is None:
        return None
    for candidate in range(len(shape)):
        if _axis_before(scope, node, candidate) == (name, axis):
            return candidate
    return None


def _roll_of(scope: Scope, readers: Sequence[Any], name: str) -> _Roll | None:
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


def rewire(edges: Sequence[Any], old: str, new: str) -> None:
    """Let nodes read another value."""
    for node in edges:
        for at, one in enumerate(node.input):
            if one == old:
                node.input[at] = new


def _axis_before(scope: Scope, node: Any, axis: int) -> tuple[str, int] | None:
    """Go back over a node that treats all points along an axis alike.

    Returns:
        Its input, and which axis of that it is; None for any other node.
    """
    if node.domain not in STANDARD_DOMAINS:
        return None
    kind = node.op_type
    if kind in _ELEMENTWISE or (kind in _WITH_NUMBER and _is_number(scope, node)):
        data = _data(scope, node) if kind in _WITH_NUMBER else node.input[0]
        return (data, axis) if data is not None else None
    if is_transform(node):
        own, shape = transform_axis(scope, node), scope.shape(node.input[0])
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


def _is_number(scope: Scope, node: Any) -> bool:
    return len(node.input) == 2 and _data(scope, node) is not None


def _data(scope: Scope, node: Any) -> str | None:
    """Return the operand of an elementwise node whose other operand is a single number."""
    shapes = [scope.shape(name) for name in node.input]
    data = scope.shape(node.output[0])
    for own, other in ((0, 1), (1, 0)):
        single = shapes[other]
        if single is not None and all(size == 1 for size in single) and shapes[own] == data:
            return str(node.input[own]) if data is not None else None
    return None


def transform_axis(scope: Scope, node: Any) -> int | None:
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
        axis = int_attribute(node, "axis", default) if scope.opset < _AXIS_INPUT else default
    return axis % len(shape) if -len(shape) <= axis < len(shape) else None


def _shifts_alone(scope: Scope, roll: _Roll) -> bool:
    """Whether the parts that a shift is put together of are read by nothing else."""
    return all(
        name == roll.made or scope.alone(str(name)) is not None
        for edge in roll.edges
        for name in edge.output
    )


def _only(scope: Scope, name: str, edges: Sequence[Any]) -> bool:
    """Whether a value is read by these nodes, once each, and by nothing else."""
    found = scope.readers.get(name, [])
    return (
        name not in scope.outside
        and len(found) == len(edges)
        and {id(node) for node in found} == {id(edge) for edge in edges}
    )
