"""Real tensors whose last axis of 2 is real and imaginary part.

Many networks (fastMRI's, MONAI's) keep complex data like this, and go to complex tensors for
transforms alone. A graph that follows them writes the axis and reads it again around every step,
which costs a copy of the data each time, and broadcasts along an axis of 2, which runtimes do
slowly. Here the two parts are followed from operator to operator, and the axis is made where
something reads it as such.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, fx

from kdmri_export.passes.complex_operators import Pair, as_float32

__all__ = ["LastAxis", "spliced"]

_aten: Final = torch.ops.aten
_SAME: Final = (_aten.clone, _aten.alias, _aten.detach)
_BY_ELEMENTS: Final = (
    _aten.add,
    _aten.sub,
    _aten.mul,
    _aten.div,
    _aten.neg,
    _aten.where,
    _aten.pow,
)


_ALONG: Final = {
    _aten.roll: 2,
    _aten.slice: 1,
    _aten.slice_scatter: 2,
    _aten.cat: 1,
    _aten.unsqueeze: 1,
    _aten.flip: 1,
}
"""Operators that move or choose along axes, and which of their arguments says along which."""
_ALONG_FIRST: Final = (_aten.slice, _aten.slice_scatter, _aten.cat)
"""Those of them that take the first axis where nothing is said."""
_SHAPES: Final = (_aten.view, _aten._unsafe_view, _aten.reshape)


class LastAxis:
    """The parts of such tensors, by the nodes that they are the values of.

    Args:
        value_of: Gives the value of a node that was computed.
    """

    def __init__(self, value_of: Callable[[fx.Node], Any]) -> None:
        self._value_of = value_of
        self._pairs: dict[fx.Node, Pair] = {}

    def note(self, node: fx.Node, pair: Pair) -> None:
        """Note the parts of a node's value."""
        self._pairs[node] = pair

    def parts(self, node: fx.Node) -> Pair | None:
        """Return the parts of a node's value, if they are at hand."""
        return self._pairs.get(node)

    def follow(self, node: fx.Node) -> Tensor | None:
        """Compute an operator on real tensors by parts, if that is how they are at hand.

        Returns:
            Its value; None where the operator itself is to be computed.
        """
        packet = getattr(node.target, "overloadpacket", None)
        if packet in _SAME:
            self._same(node)
        elif packet is _aten.stack:
            self._stacked(node)
        elif packet is _aten.permute:
            self._permuted(node)
        elif packet is _aten.select:
            return self._selected(node)
        elif packet in _BY_ELEMENTS or packet is _aten.copy:
            return self._by_elements(node)
        elif packet in _ALONG:
            return self._along(node)
        elif packet in _SHAPES:
            return self._shaped(node)
        elif packet is _aten.sum and len(node.args) > 1:
            return self._summed(node)
        return None

    def _noted(self, node: fx.Node, pair: Pair) -> Tensor:
        self._pairs[node] = pair
        return pair.as_last_axis()

    def _same(self, node: fx.Node) -> None:
        pair = self._pairs.get(node.all_input_nodes[0])
        if pair is not None:
            self._pairs[node] = pair

    def _stacked(self, node: fx.Node) -> None:
        parts, axis = (*_arguments(node), 0)[:2]
        if len(parts) == 2 and axis in (-1, _value(node).ndim - 1):
            self._pairs[node] = Pair(*(as_float32(self._value_of(part)) for part in parts))

    def _permuted(self, node: fx.Node) -> None:
        """Note the parts of a tensor whose axis of 2, of channels say, was brought to the end."""
        source, axes = _arguments(node)
        value = _value(node)
        if not _fits(value):
            return
        axes = [axis % value.ndim for axis in axes]
        last = axes.pop()
        order = [axis - (axis > last) for axis in axes]
        pair = self._pairs.get(source) if last == value.ndim - 1 else None
        given = self._value_of(source)
        parts = (pair.real, pair.imag) if pair else (given.select(last, part) for part in (0, 1))
        self._pairs[node] = Pair(*(part.permute(order) for part in parts))

    def _selected(self, node: fx.Node) -> Tensor | None:
        source, axis, index = _arguments(node)
        pair = self._pairs.get(source)
        if pair is None:
            return None
        axis %= _value(source).ndim
        if axis < _value(source).ndim - 1:
            return self._noted(
                node, Pair(pair.real.select(axis, index), pair.imag.select(axis, index))
            )
        return pair.imag if index in (1, -1) else pair.real

    def _summed(self, node: fx.Node) -> Tensor | None:
        source, axes, keep = (*_arguments(node), False)[:3]
        pair = self._pairs.get(source)
        if pair is None or not axes or node.kwargs.get("dtype") is not None:
            return None
        rank = _value(source).ndim
        axes = [axis % rank for axis in axes]
        if axes == [rank - 1] and not keep:
            return pair.real + pair.imag
        if rank - 1 in axes:
            return None
        parts = (part.sum(axes, keepdim=keep) for part in (pair.real, pair.imag))
        return self._noted(node, Pair(*parts))

    def _along(self, node: fx.Node) -> Tensor | None:
        """Compute an operator that leaves the last axis alone."""
        packet, value = node.target.overloadpacket, _value(node)  # type: ignore[union-attr]
        if not _fits(value) or not any(one in self._pairs for one in node.all_input_nodes):
            return None
        position = _ALONG[packet]
        given: Any = node.args[position : position + 1] or (0 if packet in _ALONG_FIRST else (),)
        several = isinstance(given[0], list | tuple)
        # from the front, since parts have one axis less
        axes = [axis % value.ndim for axis in (given[0] if several else given)]
        if not axes or value.ndim - 1 in axes:
            return None
        op = spliced if packet is _aten.slice_scatter else node.target
        parts = []
        for part in (0, 1):
            args = [self._part_of(arg, part) for arg in node.args]
            args[position:] = [axes if several else axes[0], *args[position + 1 :]]
            parts.append(op(*args))  # type: ignore[operator]
        return self._noted(node, Pair(*parts))

    def _part_of(self, arg: Any, part: int) -> Any:
        """Return one part of an argument, or of all that a list holds."""
        if isinstance(arg, list | tuple):
            return [self._part_of(one, part) for one in arg]
        return self._argument(arg, part)

    def _shaped(self, node: fx.Node) -> Tensor | None:
        """Give other axes another shape."""
        source, sizes = _arguments(node)[:2]
        pair = self._pairs.get(source)
        if pair is None or not _fits(_value(node)) or sizes[-1] != 2:
            return None
        leading = [self._value_of(one) if isinstance(one, fx.Node) else one for one in sizes[:-1]]
        return self._noted(node, Pair(pair.real.reshape(leading), pair.imag.reshape(leading)))

    def _by_elements(self, node: fx.Node) -> Tensor | None:
        if not _fits(_value(node)) or not any(one in self._pairs for one in node.all_input_nodes):
            return None
        parts = []
        for part in (0, 1):
            args = [self._argument(arg, part) for arg in node.args]
            parts.append(node.target(*args, **node.kwargs))  # type: ignore[operator]
        return self._noted(node, Pair(*parts))

    def _argument(self, arg: Any, part: int) -> Any:
        """Return one part of an operand, which has the last axis, one of 1, or none."""
        if not isinstance(arg, fx.Node):
            return arg
        if arg in self._pairs:
            pair = self._pairs[arg]
            return pair.imag if part else pair.real
        value = self._value_of(arg)
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        return value.select(-1, part if value.shape[-1] == 2 else 0)


def spliced(
    given: Tensor,
    part: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Tensor:
    """Put a part into a tensor by joining what lies around it, where the sizes are fixed.

    Exporters write a scatter of single elements, with their indices, for what is no more than that.
    """
    size: Any = given.shape[dim]
    limits = (0 if start is None else start, size if end is None else end)
    if step != 1 or not all(type(one) is int for one in (size, *limits)):
        whole: Tensor = _aten.slice_scatter.default(given, part, dim, start, end, step)
        return whole
    first, last, _ = slice(*limits).indices(size)
    around = [given.narrow(dim, 0, first), part, given.narrow(dim, last, size - last)]
    return torch.cat([one for one in around if one.shape[dim]], dim)


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _value(node: fx.Node) -> Tensor:
    value: Tensor = node.meta["val"]
    return value


def _fits(value: Tensor) -> bool:
    """Whether a tensor may be one of these."""
    if value.dtype is not torch.float32 or value.ndim == 0:
        return False
    size: Any = value.shape[-1]
    return isinstance(size, int) and size == 2  # not a free one that is 2 in the example
