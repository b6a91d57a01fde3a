"""What operators on complex tensors mean for pairs of real ones.

`rule_of` gives the function that computes an operator of aten on pairs. Operators without one are
first taken apart into simpler ones by PyTorch, where PyTorch can; see `complex_numbers`.
Fourier transforms are in `fourier`, since they need matrices.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["RULES", "Pair", "UnsupportedError", "as_float32", "as_pair", "is_complex", "rule_of"]

Rule = Callable[..., Any]
"""Takes the operator and its arguments, among them pairs; returns a pair, a tensor or a list."""

_aten: Final = torch.ops.aten
_MULTIPLIED: Final = 8
"""Exponents up to this one are multiplied out."""


class UnsupportedError(Exception):
    """A rule has no form for some arguments of its operator; the text says for which."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A complex tensor in two real ones.

    Args:
        real: Real part, float32, of the complex tensor's shape.
        imag: Imaginary part, likewise.
    """

    real: Tensor
    imag: Tensor

    def as_last_axis(self) -> Tensor:
        """Return [..., 2] as `torch.view_as_real` would."""
        return torch.stack((self.real, self.imag), dim=-1)


def is_complex(value: Any) -> bool:
    """Whether an argument or result is complex: a pair, a number, a dtype, or a list with one."""
    if isinstance(value, list | tuple):
        return any(is_complex(one) for one in value)
    if isinstance(value, torch.dtype):
        return value.is_complex
    if isinstance(value, Tensor):
        return value.is_complex()
    return isinstance(value, Pair | complex)


def as_float32(value: Tensor) -> Tensor:
    """Return a real tensor in float32."""
    # `to` would leave a check in the graph where there is nothing to do
    return value if value.dtype is torch.float32 else value.to(torch.float32)


def as_pair(value: Any) -> Pair:
    """Return a pair, or a real tensor as one in float32, with an imaginary part of zeros."""
    if isinstance(value, Pair):
        return value
    real = as_float32(value)
    return Pair(real, torch.zeros_like(real))


def _parts(value: Any) -> tuple[Any, Any]:
    """Return real and imaginary part of an operand; the latter is None where it has none."""
    if isinstance(value, Pair | complex):
        return value.real, value.imag
    if isinstance(value, Tensor):
        return as_float32(value), None
    return value, None


# --- operators that treat both parts alike ------------------------------------------------------


def _component(value: Any, part: int) -> Any:
    """Return one part of an argument that holds values."""
    if isinstance(value, list | tuple):
        return [_component(one, part) for one in value]
    parts = _parts(value)
    if parts[part] is not None:
        return parts[part]
    return torch.zeros_like(parts[0]) if isinstance(value, Tensor) else 0.0


def _whole(real: Any, imag: Any) -> Any:
    """Return the pair of two results, or the pairs of two lists of them."""
    if isinstance(real, list | tuple):
        return [_whole(a, b) for a, b in zip(real, imag, strict=True)]
    return Pair(real, imag)


def _on_parts(*positions: int) -> Rule:
    """Make the rule of an operator that acts on real and imaginary parts alone.

    Args:
        positions: Which of its arguments hold values; the others are sizes, axes, indices, masks.
    """

    def rule(op: Any, *args: Any, **kwargs: Any) -> Any:
        if is_complex(kwargs.get("dtype")):
            kwargs["dtype"] = torch.float32
        real, imag = (
            op(
                *(_component(a, part) if i in positions else a for i, a in enumerate(args)),
                **kwargs,
            )
            for part in (0, 1)
        )
        return _whole(real, imag)

    return rule


def _filled(op: Any, *args: Any, **kwargs: Any) -> Pair:
    """Make a tensor of zeros or ones, by size or in the likeness of another."""
    kwargs["dtype"] = torch.float32
    real = op(*(_parts(arg)[0] if is_complex(arg) else arg for arg in args), **kwargs)
    return Pair(real, torch.zeros_like(real))


def _of_shape(op: Any, value: Pair, *args: Any) -> Any:
    """Ask for a size, which both parts share."""
    return op(value.real, *args)


def _unchanged(_op: Any, value: Any) -> Any:
    return value


def _nothing(_op: Any, *_args: Any, **_kwargs: Any) -> None:
    """Leave out a check of a complex tensor's dtype."""


# --- from real to complex and back --------------------------------------------------------------


def _view_as_complex(_op: Any, value: Tensor) -> Pair:
    return Pair(*(as_float32(value.select(-1, part)) for part in (0, 1)))


def _view_as_real(_op: Any, value: Pair) -> Tensor:
    return value.as_last_axis()


def _view_dtype(_op: Any, value: Any, dtype: torch.dtype) -> Any:
    """See complex numbers as twice as many real ones along the last axis, or the other way."""
    if isinstance(value, Pair):
        return value if dtype.is_complex else value.as_last_axis().flatten(-2)
    return _view_as_complex(None, value.unflatten(-1, (-1, 2)))


def _view(op: Any, value: Any, to: Any) -> Any:
    return (
        _view_dtype(op, value, to) if isinstance(to, torch.dtype) else _on_parts(0)(op, value, to)
    )


def _broadcast(real: Tensor, imag: Tensor) -> Pair:
    return Pair(*torch.broadcast_tensors(real, imag))  # type: ignore[no-untyped-call]


def _complex(_op: Any, real: Tensor, imag: Tensor) -> Pair:
    return _broadcast(as_float32(real), as_float32(imag))


def _polar(_op: Any, absolute: Tensor, angle: Tensor) -> Pair:
    absolute, angle = as_float32(absolute), as_float32(angle)
    return Pair(absolute * torch.cos(angle), absolute * torch.sin(angle))


def _to_copy(op: Any, value: Any, **kwargs: Any) -> Any:
    """Convert between dtypes; to a real one keeps the real part, as PyTorch does."""
    dtype = kwargs.get("dtype")
    if dtype is None or dtype.is_complex:
        return as_pair(value)
    return op(value.real, **kwargs)


def _real(_op: Any, value: Pair) -> Tensor:
    return value.real


def _imag(_op: Any, value: Pair) -> Tensor:
    return value.imag


def _conj(_op: Any, value: Pair) -> Pair:
    return Pair(value.real, -value.imag)


def _squared(value: Pair) -> Tensor:
    return value.real * value.real + value.imag * value.imag


def _abs(_op: Any, value: Pair) -> Tensor:
    return torch.sqrt(_squared(value))


def _angle(_op: Any, value: Pair) -> Tensor:
    return torch.atan2(value.imag, value.real)


def _norm(op: Any, value: Pair, *args: Any, **kwargs: Any) -> Any:
    """Compute a norm, which is that of the absolute values."""
    return op(_abs(None, value), *args, **kwargs)


# --- arithmetic ---------------------------------------------------------------------------------


def _added(a: Any, b: Any, sign: int) -> Any:
    """Compute a + b or, with a sign of -1, a - b."""
    (ar, ai), (br, bi) = _parts(a), _parts(b)
    real = ar + br if sign > 0 else ar - br
    if ai is None and bi is None:
        return real
    if bi is None:
        imag = ai
    elif ai is None:
        imag = bi if sign > 0 else -bi
    else:
        imag = ai + bi if sign > 0 else ai - bi
    if not isinstance(imag, Tensor):  # that of a number
        imag = torch.full_like(real, imag)
    elif imag.shape != real.shape:
        return _broadcast(real, imag)
    return Pair(real, imag)


def _add(_op: Any, a: Any, b: Any, alpha: Any = 1) -> Any:
    return _added(a, b if alpha == 1 else _mul(None, b, alpha), 1)


def _sub(_op: Any, a: Any, b: Any, alpha: Any = 1) -> Any:
    return _added(a, b if alpha == 1 else _mul(None, b, alpha), -1)


def _rsub(_op: Any, a: Any, b: Any, alpha: Any = 1) -> Any:
    return _sub(None, b, a, alpha)


def _bilinear(product: Callable[[Any, Any], Any]) -> Rule:
    """Make the rule of a product that is linear in both of its operands."""

    def rule(_op: Any, a: Any, b: Any) -> Any:
        (ar, ai), (br, bi) = _parts(a), _parts(b)
        if ai is None and bi is None:
            return product(ar, br)
        if bi is None:
            return Pair(product(ar, br), product(ai, br))
        if ai is None:
            return Pair(product(ar, br), product(ar, bi))
        return Pair(product(ar, br) - product(ai, bi), product(ar, bi) + product(ai, br))

    return rule


_by_elements: Final = _bilinear(operator.mul)
_mm: Final = _bilinear(torch.mm)
_bmm: Final = _bilinear(torch.bmm)
_dot: Final = _bilinear(torch.dot)


def _mul(_op: Any, a: Any, b: Any) -> Any:
    if isinstance(a, complex) and not isinstance(b, complex):
        a, b = b, a
    if isinstance(b, complex) and b.real == 0:  # as 1j: spares two products by zero
        real, imag = _parts(a)
        turned = torch.zeros_like(real) if imag is None else imag * -b.imag
        return Pair(turned, real * b.imag)
    return _by_elements(None, a, b)


def _vdot(_op: Any, a: Any, b: Any) -> Any:
    return _dot(None, _conj(None, as_pair(a)), b)


def _linear_layer(_op: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    made = _bilinear(torch.nn.functional.linear)(None, x, weight)
    return made if bias is None else _add(None, made, bias)


def _plus_product(product: Rule) -> Rule:
    """Make the rule of beta times a tensor plus alpha times a product."""

    def rule(_op: Any, added: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
        made = product(None, a, b)
        return _add(None, made if alpha == 1 else _mul(None, made, alpha), added, beta)

    return rule


def _reciprocal(_op: Any, value: Pair) -> Pair:
    squared = _squared(value)
    return Pair(value.real / squared, -value.imag / squared)


def _div(_op: Any, a: Any, b: Any) -> Any:
    if isinstance(b, complex):
        return _mul(None, a, 1 / b)
    if isinstance(b, Pair):
        return _mul(None, a, _reciprocal(None, b))
    (ar, ai), (br, _) = _parts(a), _parts(b)
    return Pair(ar / br, ai / br)


def _pow(_op: Any, base: Any, exponent: Any) -> Pair:
    if isinstance(exponent, Pair | Tensor | complex) or not isinstance(base, Pair):
        raise UnsupportedError("with an exponent that is not a real number")
    if exponent == 0:
        return _filled(torch.ones_like, base)
    if float(exponent).is_integer() and abs(exponent) <= _MULTIPLIED:
        made = base
        for _ in range(abs(int(exponent)) - 1):
            made = _mul(None, made, base)
        return made if exponent > 0 else _reciprocal(None, made)
    return _polar(None, torch.pow(_abs(None, base), exponent), _angle(None, base) * exponent)


def _exp(_op: Any, value: Pair) -> Pair:
    return _polar(None, torch.exp(value.real), value.imag)


def _log(_op: Any, value: Pair) -> Pair:
    return Pair(torch.log(_abs(None, value)), _angle(None, value))


def _sqrt(_op: Any, value: Pair) -> Pair:
    # Half the angle gives the root whose real part is not negative, which is PyTorch's.
    return _polar(None, torch.sqrt(_abs(None, value)), _angle(None, value) / 2)


def _sgn(_op: Any, value: Pair) -> Pair:
    absolute = _abs(None, value)
    divisor = torch.where(absolute == 0, 1.0, absolute)
    return Pair(value.real / divisor, value.imag / divisor)


def _sin(_op: Any, value: Pair) -> Pair:
    real, imag = value.real, value.imag
    return Pair(torch.sin(real) * torch.cosh(imag), torch.cos(real) * torch.sinh(imag))


def _cos(_op: Any, value: Pair) -> Pair:
    real, imag = value.real, value.imag
    return Pair(torch.cos(real) * torch.cosh(imag), -torch.sin(real) * torch.sinh(imag))


def _tanh(_op: Any, value: Pair) -> Pair:
    # By the sum formula: quotients of cosh and sinh would overflow.
    real, imag = torch.tanh(value.real), torch.tan(value.imag)
    divisor = 1 + (real * imag) ** 2
    return Pair(real * (1 + imag**2) / divisor, imag * (1 - real**2) / divisor)


def _sigmoid(_op: Any, value: Pair) -> Pair:
    half = _tanh(None, Pair(value.real / 2, value.imag / 2))
    return Pair(0.5 + half.real / 2, half.imag / 2)


def _var(op: Any, value: Pair, *args: Any, **kwargs: Any) -> Tensor:
    """Compute the mean square distance from the mean, which is real."""
    made: Tensor = op(value.real, *args, **kwargs) + op(value.imag, *args, **kwargs)
    return made


def _isnan(_op: Any, value: Pair) -> Tensor:
    return torch.logical_or(torch.isnan(value.real), torch.isnan(value.imag))


def _compared(a: Any, b: Any) -> tuple[Any, Any]:
    """Return where real parts and where imaginary parts are equal."""
    (ar, ai), (br, bi) = _parts(a), _parts(b)
    ai, bi = (0.0 if part is None else part for part in (ai, bi))
    return ar == br, ai == bi


def _eq(_op: Any, a: Any, b: Any) -> Tensor:
    real, imag = _compared(a, b)
    return torch.as_tensor(real & imag)


def _ne(_op: Any, a: Any, b: Any) -> Tensor:
    return torch.logical_not(_eq(None, a, b))


_ON_PARTS: Final = {
    (0,): "alias cat clone contiguous detach diagonal expand flip gather index index_select "
    "lift_fresh_copy mean nan_to_num narrow neg permute repeat reshape roll select slice split "
    "split_with_sizes squeeze stack sum t transpose tril triu unbind unfold unsqueeze "
    "_unsafe_view view_copy cumsum",
    (0, 1): "copy fill full_like select_scatter slice_scatter",
    (0, 2): "constant_pad_nd index_put masked_fill",
    (0, 3): "scatter scatter_add index_add index_copy",
    (1,): "full",
    (1, 2): "where",
}
"""Operators that act on the parts, by the positions of what holds values in their arguments."""

_OTHERS: Final[dict[str, Rule]] = {
    "_assert_tensor_metadata": _nothing,
    "_conj": _conj,
    "_conj_physical": _conj,
    "_neg_view": lambda _op, value: Pair(-value.real, -value.imag),
    "_to_copy": _to_copy,
    "abs": _abs,
    "add": _add,
    "addmm": _plus_product(_mm),
    "angle": _angle,
    "baddbmm": _plus_product(_bmm),
    "bmm": _bmm,
    "complex": _complex,
    "conj": _conj,
    "conj_physical": _conj,
    "cos": _cos,
    "div": _div,
    "dot": _dot,
    "empty": _filled,
    "empty_like": _filled,
    "eq": _eq,
    "exp": _exp,
    "imag": _imag,
    "isnan": _isnan,
    "linalg_vector_norm": _norm,
    "linear": _linear_layer,
    "log": _log,
    "matmul": _bilinear(torch.matmul),
    "mm": _mm,
    "mul": _mul,
    "mv": _bilinear(torch.mv),
    "ne": _ne,
    "new_empty": _filled,
    "new_zeros": _filled,
    "ones": _filled,
    "ones_like": _filled,
    "polar": _polar,
    "pow": _pow,
    "real": _real,
    "reciprocal": _reciprocal,
    "resolve_conj": _unchanged,
    "resolve_neg": _unchanged,
    "rsub": _rsub,
    "scalar_tensor": _on_parts(0),
    "sgn": _sgn,
    "sigmoid": _sigmoid,
    "sin": _sin,
    "sqrt": _sqrt,
    "sub": _sub,
    "sym_numel": _of_shape,
    "sym_size": _of_shape,
    "tanh": _tanh,
    "var": _var,
    "vdot": _vdot,
    "view": _view,
    "view_as_complex": _view_as_complex,
    "view_as_real": _view_as_real,
    "zeros": _filled,
    "zeros_like": _filled,
}

RULES: Final[dict[str, Rule]] = {
    **{name: _on_parts(*at) for at, names in _ON_PARTS.items() for name in names.split()},
    **_OTHERS,
}
"""Rules by the names of operators of aten, all overloads of an operator in one."""


def rule_of(op: Any) -> Rule | None:
    """Return the rule of an operator's overload; None where there is none."""
    if not isinstance(op, torch._ops.OpOverload) or op.namespace != "aten":
        return None
    return RULES.get(op.overloadpacket.__name__)
