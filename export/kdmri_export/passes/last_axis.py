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

__all__ = ["LastAxis"]

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
        elif packet in _BY_ELEMENTS:
            return self._by_elements(node)
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
        given = self._value_of(source)
        self._pairs[node] = Pair(*(given.select(last, part).permute(order) for part in (0, 1)))

    def _selected(self, node: fx.Node) -> Tensor | None:
        source, axis, index = _arguments(node)
        pair = self._pairs.get(source)
        if pair is None or axis not in (-1, _value(source).ndim - 1):
            return None
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
