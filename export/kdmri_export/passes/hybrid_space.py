"""Transforms that a program undoes and does again, left out.

Unrolled networks go from k-space to images and back in every cascade. Masks sample whole lines, so
that along the readout data consistency is the same before and after a transform: data may stay
transformed along that axis, in hybrid space, from one cascade to the next, and half of the
transforms go.

A transform C acts along one axis. What it is applied to is followed backwards as long as operators
commute with it: sums and differences, factors and masks that are the same all along the axis. It
ends at transforms that C undoes, which then do nothing along the axis, and at values that C has to
be applied to. Where that leaves less to compute, the operators between are computed on
transformed values instead.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor, fx

from kdmri_export.passes.fourier import Plan, Step, Transform

__all__ = ["stay_in_hybrid_space"]

_aten: Final = torch.ops.aten
_SAME: Final = (
    _aten.clone,
    _aten.alias,
    _aten.contiguous,
    _aten.detach,
    _aten.neg,
    _aten.view_as_complex,
    _aten.view_as_real,
)
"""Operators that commute with every transform."""
_LINEAR: Final = (_aten.add, _aten.sub, _aten.mul, _aten.div, _aten.where)
"""Operators that commute with one where their other operands are the same all along the axis."""
_BY_ELEMENTS: Final = 32
"""Points of a transform for which it takes as long as one of those."""
_ZEROS: Final = (_aten.zeros, _aten.zeros_like, _aten.new_zeros)


def stay_in_hybrid_space(graph: fx.Graph, plan: Plan, zeros: Collection[fx.Node] = ()) -> int:
    """Leave out pairs of transforms that undo each other across operators that commute with them.

    Args:
        graph: Of an exported program, functional; changed in place.
        plan: Its transforms; changed in place. Their matrices are not kept yet.
        zeros: Inputs of the graph that are zero.

    Returns:
        How many transforms along an axis went.
    """
    before = _count(plan)
    tried: list[Step] = []
    while True:
        steps = [step for one in plan.transforms.values() for step in one.steps if step.whole]
        new = (step for step in steps if not any(step.alike(other) for other in tried))
        step = next((one for one in new if any(one.undoes(other) for other in steps)), None)
        if step is None:
            return before - _count(plan)
        tried.append(step)
        change = _Change(graph, plan, step, zeros)
        if change.saves():
            change.make()


def _count(plan: Plan) -> int:
    return sum(len(one.steps) for one in plan.transforms.values())


def _packet(node: fx.Node) -> Any:
    return getattr(node.target, "overloadpacket", None) if node.op == "call_function" else None


def _value(node: fx.Node) -> Tensor:
    value: Tensor = node.meta["val"]
    return value


def _points(node: fx.Node) -> int:
    """Return how many complex numbers a value has, for one of the sizes that are free."""
    value = _value(node)
    shape = value.shape if value.is_complex() else value.shape[:-1]
    return math.prod(size for size in shape if isinstance(size, int))


@dataclass
class _Change:
    """The graph with the inputs of some transforms in hybrid space.

    Args:
        graph: To be changed.
        plan: Its transforms.
        step: The transforms that have this step lose it, if their inputs can be had transformed.
        zeros: Inputs of the graph that are zero.

    Attributes:
        plain: Nodes whose values are needed as they were.
        hybrid: Nodes whose values are needed transformed.
        leaves: Those of them that the step itself is applied to.
    """

    graph: fx.Graph
    plan: Plan
    step: Step
    zeros: Collection[fx.Node]
    plain: set[fx.Node] = field(default_factory=set)
    hybrid: set[fx.Node] = field(default_factory=set)
    leaves: set[fx.Node] = field(default_factory=set)

    def saves(self) -> bool:
        """Find which values are needed in which form, and whether that is less to compute."""
        before = self._cost()
        for node in reversed(self.graph.nodes):
            if node.op in ("output", "placeholder") or not node.users:
                self.plain.add(node)
            if node in self.plain:
                self._need_for_plain(node)
            if node in self.hybrid:
                found = self._commuting(node)
                if found is None:
                    self.leaves.add(node)
                    self.plain.add(node)
                    self._need_for_plain(node)
                else:
                    linear, others = found
                    self.hybrid.update(linear)
                    self.plain.update(others)
        return self._cost() < before

    def _cost(self) -> int:
        """Return the work of transforms, and of what is computed twice; at first, as it is."""
        known = bool(self.plain)
        total = sum(_points(node) * self.step.size for node in self.leaves)
        twice = (self.hybrid & self.plain) - self.leaves
        total += sum(_points(node) * _BY_ELEMENTS for node in twice if _packet(node) in _LINEAR)
        for node, transform in self.plan.transforms.items():
            cost = [_points(transform.source) * step.size for step in transform.steps]
            own = [step.axis == self.step.axis for step in transform.steps]
            left = sum(each for each, along in zip(cost, own, strict=True) if not along)
            if not known or node in self.plain:
                total += left if known and self._loses(node) else sum(cost)
            if node in self.hybrid - self.leaves:
                total += left
        return total

    def _loses(self, node: fx.Node) -> bool:
        """Whether a transform is one of those that lose the step."""
        steps = self.plan.transforms[node].steps
        of_complex = _packet(node) is not _aten._fft_r2c
        return of_complex and any(self.step.alike(step) for step in steps)

    def _need_for_plain(self, node: fx.Node) -> None:
        if node in self.plan.passed:
            self.plain.add(self.plan.passed[node])
        elif node in self.plan.transforms:
            source = self.plan.transforms[node].source
            (self.hybrid if self._loses(node) else self.plain).add(source)
        else:
            self.plain.update(node.all_input_nodes)

    def _commuting(self, node: fx.Node) -> tuple[list[fx.Node], list[fx.Node]] | None:
        """Return what a node reads transformed and what as it is; None if that does not do."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not self._is_one(node):
            return None
        if node in self.plan.passed:
            return [self.plan.passed[node]], []
        if node in self.plan.transforms:
            transform = self.plan.transforms[node]
            undone = any(self.step.undoes(step) for step in transform.steps)
            return ([], [transform.source]) if undone else None
        packet, args = _packet(node), node.args
        if node.kwargs.get("rounding_mode") is not None:  # a division that is not linear
            return None
        if packet in _SAME:
            linear = [node.all_input_nodes[0]]
        elif packet in (_aten.add, _aten.sub):
            linear = [arg for arg in args[:2] if isinstance(arg, fx.Node)]
            if len(linear) < 2:
                return None
        elif packet in (_aten.mul, _aten.div):
            linear = [arg for arg in args[:2] if self._is_one(arg)]  # type: ignore[misc]
            if len(linear) != 1 or (packet is _aten.div and linear[0] is not args[0]):
                return None
        elif packet is _aten.where:
            linear = [arg for arg in args[1:] if not self._is_zero(arg)]  # type: ignore[misc]
        else:
            return None
        others = [arg for arg in node.all_input_nodes if arg not in linear]
        fits = all(self._is_one(arg) for arg in linear) and all(
            self._is_constant(arg, value) or self._is_zero(arg) for arg in others
        )
        return (linear, others) if fits and linear else None

    def _is_one(self, arg: Any) -> bool:
        """Whether an operand is a complex tensor, or one with a last axis of 2, of all points."""
        value = arg.meta.get("val") if isinstance(arg, fx.Node) else None
        if not isinstance(value, Tensor):
            return False
        real = value.dtype is torch.float32 and value.ndim > 0 and value.shape[-1] == 2
        if not (real or value.is_complex()):
            return False
        # of another rank, an axis of the same number is another one once they are broadcast
        axis, rank = self.step.axis, value.ndim - real
        return rank == self.step.rank and value.shape[axis] == self.step.size

    def _is_constant(self, arg: fx.Node, beside: Tensor) -> bool:
        """Whether an operand is the same all along the axis, and for real and imaginary part."""
        value = _value(arg)
        axis = self.step.axis - (beside.ndim - value.ndim)
        if axis >= 0 and value.shape[axis] != 1:
            return False
        return beside.is_complex() or value.ndim == 0 or value.shape[-1] == 1

    def _is_zero(self, arg: Any) -> bool:
        return isinstance(arg, fx.Node) and (arg in self.zeros or _packet(arg) in _ZEROS)

    # --- making it ---

    def make(self) -> None:
        """Change the graph and its plan."""
        made: dict[fx.Node, fx.Node] = {}
        inputs = self.graph.find_nodes(op="placeholder")
        for node in list(self.graph.nodes):
            if node in self.hybrid:
                at = inputs[-1] if node.op == "placeholder" else node
                with self.graph.inserting_after(at):
                    made[node] = self._transformed(node, made)
            if node in self.plain and node in self.plan.transforms and self._loses(node):
                transform = self.plan.transforms[node]
                source = made[transform.source]
                with self.graph.inserting_before(node):
                    node.args = (self._complex(source), *node.args[1:])
                self.plan.transforms[node] = self._without(transform, source)
        self.graph.eliminate_dead_code()
        left = set(self.graph.nodes)
        for nodes in (self.plan.transforms, self.plan.passed):
            for node in [one for one in nodes if one not in left]:
                del nodes[node]

    def _without(self, transform: Transform, source: fx.Node) -> Transform:
        steps = tuple(step for step in transform.steps if step.axis != self.step.axis)
        return replace(transform, source=source, steps=steps)

    def _transformed(self, node: fx.Node, made: dict[fx.Node, fx.Node]) -> fx.Node:
        """Return a new node with the transformed value of another."""
        if node in self.leaves:
            return self._applied(node)
        if node in self.plan.passed:
            return made[self.plan.passed[node]]
        if node in self.plan.transforms:
            found = self.graph.node_copy(node, lambda arg: arg)
            transform = self.plan.transforms[node]
            self.plan.transforms[found] = self._without(transform, transform.source)
            return found
        linear, _ = self._commuting(node) or ([], [])
        return self.graph.node_copy(node, lambda arg: made[arg] if arg in linear else arg)

    def _applied(self, node: fx.Node) -> fx.Node:
        """Apply the step to a value."""
        given = self._complex(node)
        with self.graph.inserting_after(given if given is not node else self._last(node)):
            found = self.graph.call_function(
                _aten._fft_c2c.default, (given, [self.step.axis], 0, not self.step.inverse)
            )
        found.meta = dict(given.meta)
        self.plan.transforms[found] = Transform(node, (self.step,), to_real=False)
        if given is node:
            return found
        with self.graph.inserting_after(found):
            real = self.graph.call_function(_aten.view_as_real.default, (found,))
        real.meta = dict(node.meta)
        return real

    def _last(self, node: fx.Node) -> fx.Node:
        """Return what new nodes that read another one can stand behind."""
        placeholders: Sequence[fx.Node] = self.graph.find_nodes(op="placeholder")
        return placeholders[-1] if node.op == "placeholder" else node

    def _complex(self, node: fx.Node) -> fx.Node:
        """Return a value as a complex tensor, by a new node where it is none."""
        value = _value(node)
        if value.is_complex():
            return node
        found = self.graph.call_function(_aten.view_as_complex.default, (node,))
        found.meta = {
            **node.meta,
            "val": value.new_empty(value.shape[:-1], dtype=value.dtype.to_complex()),
        }
        return found
