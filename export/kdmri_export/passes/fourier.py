"""Fourier transforms of an exported program as products with DFT matrices.

PyTorch has three: `_fft_c2c` between complex tensors, `_fft_r2c` of a real one, and `_fft_c2r` to a
real one from half a spectrum. A transform of several axes is a product along each. Where a
network shifts zero frequency right before or after (fftshift, or the slices and concatenation that
fastMRI writes), rows or columns of the matrix are shifted instead, which costs nothing.

A matrix of N x N for many points is taken apart as one step of the fast transform does (Cooley and
Tukey 1965, decimation in frequency): sums of N/4 points each, and four products with matrices of
N/4 x N/4. On a CPU that is three times as fast, and its matrices are a quarter as large.

Matrices are computed in float64 and stored in float32, one for all products that it serves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from kdmri_edge.errors import ExportError
from kdmri_export.passes.complex_operators import Pair, as_float32, as_pair
from kdmri_export.passes.user_code import source_line

__all__ = ["Matrices", "Plan", "Step", "Transform", "dft_matrix", "half_spectrum_matrix",
           "is_transform", "plan_transforms"]  # fmt: skip

_aten: Final = torch.ops.aten
_TRANSFORMS: Final = (_aten._fft_c2c, _aten._fft_r2c, _aten._fft_c2r)
_SAME: Final = (_aten.clone, _aten.alias, _aten.contiguous, _aten.detach)
_POWERS: Final = {0: 0.0, 1: -0.5, 2: -1.0}
"""The power of its size by which a transform is scaled, for PyTorch's three normalisations."""
_BOTH_WAYS: Final = 2
"""What the normalisations of a transform and its inverse add up to."""
_LARGE: Final = 128
"""Points from which on a matrix is taken apart: below, the sums cost what the products save."""


def dft_matrix(
    size: int,
    *,
    inverse: bool,
    norm: int = 0,
    rows: int | None = None,
    before: int = 0,
    after: int = 0,
) -> Tensor:
    """Return the matrix M of y = M x, [rows, size] complex128.

    Args:
        size: Number N of points.
        inverse: Take exp(+2 pi i k n / N).
        norm: 0 for none, 1 divides by the root of N, 2 by N.
        rows: How many frequencies are computed; None for all.
        before: By how much x was to be rolled before the transform.
        after: By how much y was to be rolled after it.
    """
    rows = size if rows is None else rows
    # The product k n is reduced first, so that large ones lose no digits.
    turns = torch.outer(torch.arange(rows), torch.arange(size)) % size
    angle = turns.double() * (2 * math.pi / size)
    matrix = torch.polar(
        torch.full_like(angle, float(size) ** _POWERS[norm]), angle if inverse else -angle
    )
    return matrix.roll(-before, 1).roll(after, 0)


def half_spectrum_matrix(size: int, norm: int, before: int, after: int) -> Tensor:
    """Return M of y = Re(M z) for half a spectrum z, [size, size // 2 + 1] complex128.

    Args:
        size: Number of real points.
        norm: See `dft_matrix`.
        before: By how much z was to be rolled before the transform.
        after: By how much y was to be rolled after it.
    """
    half = size // 2 + 1
    matrix = dft_matrix(size, inverse=True, norm=norm)[:, :half].clone()
    # The other half is the conjugate; zero frequency and, of an even size, the last have no twin.
    matrix[:, 1 : (size + 1) // 2] *= 2
    alone = [0] if size % 2 else [0, half - 1]
    matrix.imag[:, alone] = 0.0  # not sin(pi), which is not quite zero
    return matrix.roll(-before, 1).roll(after, 0)


@dataclass(frozen=True)
class _Block:
    """A product that gives every R-th point of a transform along an axis.

    Args:
        real: Name of the buffer with the matrix's real part.
        imag: Name of that with its imaginary part.
        minus: Name of that with its negative imaginary part.
        turn: What it multiplies is the sum of the R shares of the input along the axis, each
            turned by turn / R of a full turn more than the one before.
    """

    real: str
    imag: str
    minus: str
    turn: int


class Matrices(nn.Module):
    """DFT matrices as buffers, each stored once."""

    def add(self, matrix: Tensor, name: str, turn: int = 0) -> _Block:
        """Keep the real and imaginary parts of a matrix, and the negative of the latter.

        A difference of two products would be a sum with a negated one, of which OpenVINO makes a
        product with a matrix of its own. Of transforms both ways it is the other's part.
        """
        real, imag = matrix.real.float().contiguous(), matrix.imag.float().contiguous()
        return _Block(
            real=self._kept(real, f"{name}_real"),
            imag=self._kept(imag, f"{name}_imag"),
            minus=self._kept(-imag, f"{name}_minus_imag"),
            turn=turn,
        )

    def _kept(self, part: Tensor, name: str) -> str:
        for known, buffer in self.named_buffers():
            same = buffer.shape == part.shape and buffer.device == part.device
            if same and torch.equal(buffer, part):
                return known
        unique, count = name, 1
        while hasattr(self, unique):
            count += 1
            unique = f"{name}_{count}"
        self.register_buffer(unique, part)
        return unique


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """A transform along one axis.

    Args:
        axis: Counted from the front.
        rank: Number of axes of what is transformed.
        left: Matrices are multiplied from the left: the axis is the last but one.
        size: Number of points of its side that is not half a spectrum.
        inverse: It takes exp(+2 pi i k n / N).
        norm: See `dft_matrix`.
        before: By how much its input is rolled.
        after: By how much its output is rolled.
        matrix: What it multiplies with, [rows, columns] complex128.
        name: What its matrices are called.
        whole: It is between complex numbers, all N of them.
        count: How many products the axis is taken apart into: R of them give the points 0, R,
            2 R ..., 1, R + 1 ... and so on.
        blocks: These products, once their matrices are kept.
    """

    axis: int
    rank: int
    left: bool
    size: int
    inverse: bool
    norm: int
    before: int
    after: int
    matrix: Tensor
    name: str
    whole: bool
    count: int
    blocks: tuple[_Block, ...] = ()

    def alike(self, other: Step) -> bool:
        """Whether two are the same transform along the same axis."""
        return self._key() == other._key()

    def undoes(self, other: Step) -> bool:
        """Whether the other one and then this one leave everything as it was."""
        return (
            (self.axis, self.rank) == (other.axis, other.rank)
            and self.size == other.size
            and self.whole
            and other.whole
            and self.inverse != other.inverse
            and self.norm + other.norm == _BOTH_WAYS
            and (self.before + other.after) % self.size == 0
            and (self.after + other.before) % self.size == 0
        )

    def kept(self, matrices: Matrices) -> Step:
        """Return it with its matrices among these."""
        blocks = []
        for first in range(self.count):
            part = self.matrix[first :: self.count, : self.matrix.shape[1] // self.count]
            turn = (first - self.after) * (1 if self.inverse else -1)
            label = self.name if self.count == 1 else f"{self.name}_{first}"
            blocks.append(matrices.add(part if self.left else part.T, label, turn))
        return replace(self, blocks=tuple(blocks))

    def _key(self) -> tuple[Any, ...]:
        shifts = self.before % self.size, self.after % self.size
        return self.axis, self.rank, self.size, self.inverse, self.norm, *shifts, self.whole


@dataclass(frozen=True)
class Transform:
    """One Fourier transform of a program.

    Args:
        source: The node whose value is transformed: behind it are only shifts that are folded in.
        steps: Products along its axes, in order.
        to_real: The last product gives a real tensor.
    """

    source: fx.Node
    steps: tuple[Step, ...]
    to_real: bool

    def __call__(self, value: Any, matrices: nn.Module) -> Any:
        """Compute it.

        Args:
            value: A real tensor or a pair.
            matrices: Holds the buffers.

        Returns:
            A pair, or a real tensor in float32.
        """
        made = value if isinstance(value, Pair) else as_float32(value)
        for step in self.steps:
            last = self.to_real and step is self.steps[-1]
            made = _along(step, made, matrices, to_real=last)
        return made if self.to_real else as_pair(made)


def _along(step: Step, value: Any, matrices: nn.Module, *, to_real: bool) -> Any:
    """Transform along one axis."""
    rank = (value.real if isinstance(value, Pair) else value).ndim
    axis = rank - 2 if step.left else rank - 1
    if step.axis < rank - 2:  # brought to the end for the product
        value = _each(value, lambda part: part.transpose(step.axis, -1))
    inputs = _split(value, len(step.blocks), axis)
    sums: dict[tuple[int, int], Pair] = {}
    made = [
        _product(
            _combined(inputs, block.turn, sums),
            getattr(matrices, block.real),
            getattr(matrices, block.imag),
            getattr(matrices, block.minus),
            left=step.left,
            to_real=to_real,
        )
        for block in step.blocks
    ]
    found = made[0] if len(made) == 1 else _interleaved(made, axis)
    if step.axis < rank - 2:
        found = _each(found, lambda part: part.transpose(step.axis, -1))
    return found


def _each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to a real tensor, or to both parts of a pair."""
    if isinstance(value, Pair):
        return Pair(function(value.real), function(value.imag))
    return function(value)


def _product(
    value: Any, real: Tensor, imag: Tensor, minus: Tensor, *, left: bool, to_real: bool
) -> Any:
    """Multiply with one matrix."""

    def along(part: Tensor, matrix: Tensor) -> Tensor:
        return torch.matmul(matrix, part) if left else torch.matmul(part, matrix)

    if not isinstance(value, Pair):
        return Pair(along(value, real), along(value, imag))
    first = along(value.real, real) + along(value.imag, minus)
    if to_real:
        return first
    return Pair(first, along(value.real, imag) + along(value.imag, real))


def _split(value: Any, count: int, axis: int) -> list[Any]:
    """Return the parts of a pair along an axis, of equal size."""
    if count == 1:
        return [value]
    size = value.real.shape[axis] // count
    return [
        _each(value, lambda part, at=at: part.narrow(axis, at, size))  # type: ignore[misc]
        for at in range(0, count * size, size)
    ]


def _combined(parts: list[Any], turn: int, sums: dict[tuple[int, int], Pair]) -> Any:
    """Add one, two or four parts, each turned once more than the one before.

    Args:
        parts: Equal shares of a transform's input.
        turn: By how much, in full turns divided by the number of parts.
        sums: Sums of two that were computed before.
    """
    if len(parts) == 1:
        return parts[0]
    halves = []
    for first in range(len(parts) // 2):  # parts that lie half a turn apart, or whole ones
        key = first, turn % 2
        if key not in sums:
            second = parts[first + len(parts) // 2]
            sums[key] = _plus_turned(parts[first], second, 2 * (turn % 2))
        halves.append(sums[key])
    return halves[0] if len(halves) == 1 else _plus_turned(halves[0], halves[1], turn % 4)


def _plus_turned(a: Pair, b: Pair, quarters: int) -> Pair:
    """Compute a + b exp(pi i quarters / 2)."""
    match quarters:
        case 0:
            return Pair(a.real + b.real, a.imag + b.imag)
        case 1:
            return Pair(a.real - b.imag, a.imag + b.real)
        case 2:
            return Pair(a.real - b.real, a.imag - b.imag)
        case _:
            return Pair(a.real + b.imag, a.imag - b.real)


def _interleaved(parts: Sequence[Pair], axis: int) -> Pair:
    """Take points from each part in turn."""

    def along(values: list[Tensor]) -> Tensor:
        return torch.stack(values, axis + 1).flatten(axis, axis + 1)

    return Pair(along([part.real for part in parts]), along([part.imag for part in parts]))


@dataclass
class Plan:
    """The transforms of a program.

    Attributes:
        transforms: By their nodes.
        passed: Shifts that a transform before them has done already, and what they shift: their
            value is that of the other node.
    """

    transforms: dict[fx.Node, Transform] = field(default_factory=dict)
    passed: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def keep(self, matrices: Matrices) -> None:
        """Keep the matrices that the transforms need."""
        for node, one in self.transforms.items():
            steps = tuple(step.kept(matrices) for step in one.steps)
            self.transforms[node] = replace(one, steps=steps)


def is_transform(node: fx.Node) -> bool:
    """Whether a node is one of PyTorch's Fourier transforms."""
    return _packet(node) in _TRANSFORMS


def plan_transforms(graph: fx.Graph) -> Plan:
    """Lay out the products for all transforms of a graph.

    Args:
        graph: Of an exported program, functional.

    Returns:
        The plan, whose matrices are still to be kept.

    Raises:
        ExportError: A transform runs along an axis whose size is not fixed.
    """
    plan = Plan()
    for node in graph.nodes:
        if is_transform(node):
            plan.transforms[node] = _planned(node, plan)
    return plan


def _planned(node: fx.Node, plan: Plan) -> Transform:
    kind, (given, dims, norm, last) = _packet(node), _arguments(node)
    shape = list(_shape(given))
    axes: list[int] = [axis % len(shape) for axis in dims]
    to_real = kind is _aten._fft_c2r
    inverse = to_real or (kind is _aten._fft_c2c and not last)
    sizes = {axis: last if to_real and axis == axes[-1] else shape[axis] for axis in axes}
    for axis, size in sizes.items():
        if not isinstance(size, int):
            raise ExportError(
                f"The Fourier transform in {source_line(node)} runs along axis {axis}, whose size"
                " is not fixed, so that there is no matrix for it.",
                "Export with a fixed size along that axis; the batch may stay free.",
            )
    source, before = _shifts_before(node, axes, plan)
    after = _shifts_after(node, axes, plan)
    # From real numbers the half spectrum comes first, to real ones last: complex in between.
    order = axes if to_real else axes[::-1]
    steps = []
    for axis in order:
        size = sizes[axis]
        shifts = {"before": before.get(axis, 0), "after": after.get(axis, 0)}
        rows: int | None = None
        count = 1
        if to_real and axis == axes[-1]:
            matrix, name = half_spectrum_matrix(size, norm, **shifts), f"to_real_{size}"
        else:
            if kind is _aten._fft_r2c and axis == axes[-1]:
                rows = size // 2 + 1 if last else size
            else:
                count = _blocks(size)
            matrix = dft_matrix(size, inverse=inverse, norm=norm, rows=rows, **shifts)
            name = f"{'inverse' if inverse else 'forward'}_{size}"
        steps.append(
            Step(
                axis=axis,
                rank=len(shape),
                left=axis == len(shape) - 2,
                size=size,
                inverse=inverse,
                norm=norm,
                before=shifts["before"],
                after=shifts["after"],
                matrix=matrix.to(given.meta["val"].device),
                name=name,
                whole=kind is _aten._fft_c2c or axis != axes[-1],
                count=count,
            )
        )
    return Transform(source, tuple(steps), to_real)


def _blocks(size: int) -> int:
    """Return into how many products a transform between complex points is taken apart."""
    if size < _LARGE or size % 2:
        return 1
    return 2 if size % 4 else 4


# --- shifts around a transform ------------------------------------------------------------------


def _packet(node: fx.Node) -> Any:
    return getattr(node.target, "overloadpacket", None) if node.op == "call_function" else None


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _shape(node: Any) -> torch.Size:
    shape: torch.Size = node.meta["val"].shape
    return shape


def _added(*shifts: Mapping[int, int]) -> dict[int, int]:
    return {axis: sum(one.get(axis, 0) for one in shifts) for one in shifts for axis in one}


def _shift(node: fx.Node) -> tuple[fx.Node, dict[int, int]] | None:
    """Return what a node rolls, and by how much along which axes; None if it rolls nothing."""
    if _packet(node) is _aten.roll:
        source, shifts, axes = (*_arguments(node), ())[:3]
        if not axes or not all(isinstance(one, int) for one in shifts):
            return None
        rank = len(_shape(source))
        pairs = zip(axes, shifts, strict=True)
        return source, _added(*({axis % rank: shift} for axis, shift in pairs))
    return _shift_in_two_slices(node)


def _shift_in_two_slices(node: fx.Node) -> tuple[fx.Node, dict[int, int]] | None:
    """Recognise a concatenation of the end of a tensor and what lies before it."""
    if _packet(node) is not _aten.cat:
        return None
    parts, axis = (*_arguments(node), 0)[:2]
    end, start = (_slice(parts[0]), _slice(parts[1])) if len(parts) == 2 else (None, None)
    if end is None or start is None:
        return None
    (source, axis_a, first, past), (other, axis_b, zero, cut) = end, start
    axis %= len(_shape(node))
    size = _shape(source)[axis]
    fits = source is other and axis_a == axis_b == axis and isinstance(size, int)
    if not fits or zero != 0 or first != cut or past != size:
        return None
    return source, {axis: -first}


def _slice(node: fx.Node) -> tuple[fx.Node, int, int, int] | None:
    """Return source, axis, start and end of a slice of fixed bounds and step 1."""
    if _packet(node) is not _aten.slice:
        return None
    source, axis, start, end, step = (*_arguments(node), None, None, None, None)[:5]
    axis = (axis or 0) % len(_shape(source))
    size = _shape(source)[axis]
    if step not in (None, 1) or not isinstance(size, int):
        return None
    start, end = start or 0, size if end is None else end
    if not isinstance(start, int) or not isinstance(end, int):
        return None
    start, end = (min(max(at + size if at < 0 else at, 0), size) for at in (start, end))
    return source, axis, start, end


def _shifts_before(node: fx.Node, axes: list[int], plan: Plan) -> tuple[fx.Node, dict[int, int]]:
    """Go back over shifts along the transform's axes; return what they start from."""
    source: fx.Node = _arguments(node)[0]
    shifts: dict[int, int] = {}
    at = source
    while True:
        # what the transform before has done already is not to be done again
        found = None if at in plan.passed else _shift(at)
        if found and set(found[1]) <= set(axes):
            source = at = found[0]
            shifts = _added(shifts, found[1])
        elif at not in plan.passed and _packet(at) in (*_SAME, _aten.view_as_complex):
            at = _arguments(at)[0]
        else:
            return source, shifts


def _shifts_after(node: fx.Node, axes: list[int], plan: Plan) -> dict[int, int]:
    """Go on over shifts along the transform's axes, as long as nothing else reads its result."""
    shifts: dict[int, int] = {}
    at = node
    while True:
        users = list(at.users)
        if len(users) == 2 and all(_slice(user) and len(user.users) == 1 for user in users):
            users = list(users[0].users)
        if len(users) != 1:
            return shifts
        found = _shift(users[0])
        if found and found[0] is at and set(found[1]) <= set(axes):
            shifts = _added(shifts, found[1])
            plan.passed[users[0]] = at
        elif _packet(users[0]) not in (*_SAME, _aten.view_as_real):
            return shifts
        at = users[0]
