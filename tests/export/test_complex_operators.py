"""Every operator on pairs of real tensors is PyTorch's on complex ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdmri_export.passes.complex_operators import RULES, Pair, UnsupportedError, rule_of

aten = torch.ops.aten
C64 = torch.complex64
NOT_A_NUMBER = torch.tensor([1j, complex("nan"), complex(1, float("nan"))])


class Draw:
    """Random tensors of a seed."""

    def __init__(self, seed: int, sizes: Sequence[int]) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.sizes = tuple(sizes)

    def z(self, *shape: int) -> Tensor:
        return torch.complex(self.r(*shape), self.r(*shape))

    def r(self, *shape: int) -> Tensor:
        return torch.randn(shape or self.sizes, generator=self.generator)

    def up_to(self, end: int, *shape: int) -> Tensor:
        return torch.randint(0, end, shape, generator=self.generator)

    def mask(self) -> Tensor:
        return self.r() > 0


def pair(value: Any) -> Any:
    """Return complex tensors of an argument as pairs."""
    if isinstance(value, (list, tuple)):
        return type(value)(pair(one) for one in value)
    if isinstance(value, Tensor) and value.is_complex():
        value = value.resolve_conj()
        return Pair(value.real.clone(), value.imag.clone())
    return value


def check(found: Any, expected: Any) -> None:
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            check(a, b)
    elif isinstance(expected, Tensor) and expected.is_complex():
        assert isinstance(found, Pair)
        assert found.real.dtype is found.imag.dtype is torch.float32
        torch.testing.assert_close(
            torch.complex(found.real, found.imag), expected.to(C64), rtol=1e-4, atol=1e-5
        )
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    else:
        assert found == expected


Call = tuple[Any, ...]  # the operator, its arguments, and its options as a dict, if it has any
CASES: dict[str, Callable[[Draw], list[Call]]] = {
    "_assert_tensor_metadata": lambda d: [
        (aten._assert_tensor_metadata.default, d.z(), None, None, C64)
    ],
    "_conj": lambda d: [(aten._conj.default, d.z())],
    "_conj_physical": lambda d: [(aten._conj_physical.default, d.z())],
    "_neg_view": lambda d: [(aten._neg_view.default, d.z())],
    "_to_copy": lambda d: [
        (aten._to_copy.default, d.r(), {"dtype": C64}),
        (aten._to_copy.default, d.up_to(9, 3), {"dtype": C64}),
        (aten._to_copy.default, d.z(), {"dtype": torch.complex128}),
        (aten._to_copy.default, d.z()),
    ],
    "_unsafe_view": lambda d: [(aten._unsafe_view.default, d.z(4, 6), [8, 3])],
    "abs": lambda d: [(aten.abs.default, d.z())],
    "add": lambda d: [
        (aten.add.Tensor, d.z(), d.z()),
        (aten.add.Tensor, d.z(), d.r()),
        (aten.add.Tensor, d.r(3, 1), d.z(2)),
        (aten.add.Tensor, d.z(3, 1), d.r(2)),
        (aten.add.Tensor, d.z(), 2.5),
        (aten.add.Tensor, d.z(), 2 - 3j),
        (aten.add.Tensor, d.r(), 3j),
        (aten.add.Tensor, d.up_to(9, 4), 0.5 + 1j),
        (aten.add.Tensor, d.z(), d.z(), {"alpha": -0.5}),
        (aten.add.Tensor, d.z(), d.r(), {"alpha": 2j}),
    ],
    "addmm": lambda d: [
        (aten.addmm.default, d.z(4), d.z(3, 2), d.z(2, 4)),
        (aten.addmm.default, d.z(3, 4), d.z(3, 2), d.z(2, 4), {"beta": 0.5, "alpha": 2}),
    ],
    "alias": lambda d: [(aten.alias.default, d.z())],
    "angle": lambda d: [(aten.angle.default, d.z())],
    "baddbmm": lambda d: [
        (aten.baddbmm.default, d.z(2, 3, 4), d.z(2, 3, 2), d.z(2, 2, 4), {"beta": 2, "alpha": 0.5})
    ],
    "bmm": lambda d: [(aten.bmm.default, d.z(2, 3, 4), d.z(2, 4, 1))],
    "cat": lambda d: [(aten.cat.default, [d.z(2, 3), d.z(2, 1), d.r(2, 2)], -1)],
    "clone": lambda d: [(aten.clone.default, d.z(), {"memory_format": torch.contiguous_format})],
    "complex": lambda d: [(aten.complex.default, d.r(3, 1), d.r(2))],
    "conj": lambda d: [(aten.conj.default, d.z())],
    "conj_physical": lambda d: [(aten.conj_physical.default, d.z())],
    "constant_pad_nd": lambda d: [
        (aten.constant_pad_nd.default, d.z(2, 3), [1, 2]),
        (aten.constant_pad_nd.default, d.z(2, 3), [1, 0, 0, 2], 0.5),
        (aten.constant_pad_nd.default, d.z(2, 3), [-1, 1], 1 - 2j),
    ],
    "contiguous": lambda d: [(aten.contiguous.default, d.z(2, 3).T)],
    "copy": lambda d: [(aten.copy.default, d.z(3, 2), d.z(2)), (aten.copy.default, d.z(2), d.r(2))],
    "cos": lambda d: [(aten.cos.default, d.z())],
    "cumsum": lambda d: [(aten.cumsum.default, d.z(3, 4), 1)],
    "detach": lambda d: [(aten.detach.default, d.z())],
    "diagonal": lambda d: [(aten.diagonal.default, d.z(3, 4), 1)],
    "div": lambda d: [
        (aten.div.Tensor, d.z(), d.z() + 3),
        (aten.div.Tensor, d.r(), d.z() + 3),
        (aten.div.Tensor, d.z(), d.r() ** 2 + 0.5),
        (aten.div.Tensor, d.z(), 2 - 1j),
        (aten.div.Tensor, d.z(), 4.0),
        (aten.div.Tensor, d.r(), 2j),
    ],
    "dot": lambda d: [(aten.dot.default, d.z(5), d.z(5))],
    "eq": lambda d: [
        (aten.eq.Tensor, d.up_to(2, 9) + 0j, d.up_to(2, 9) + 0j),
        (aten.eq.Scalar, torch.tensor([1, 1 + 1j, 0]), 1),
        (aten.eq.Scalar, torch.tensor([1, 1 + 1j, 0]), 1 + 1j),
        (aten.eq.Tensor, torch.tensor([1, 1 + 1j, 0]), torch.tensor([1.0, 1.0, 0.0])),
    ],
    "exp": lambda d: [(aten.exp.default, d.z())],
    "expand": lambda d: [(aten.expand.default, d.z(3, 1), [2, 3, 4])],
    "fill": lambda d: [
        (aten.fill.Scalar, d.z(), 1 - 1j),
        (aten.fill.Scalar, d.z(), 2),
        (aten.fill.Tensor, d.z(), d.z(1).reshape([])),
    ],
    "flip": lambda d: [(aten.flip.default, d.z(3, 4), [0, 1])],
    "full": lambda d: [
        (aten.full.default, [2, 3], 1 - 2j, {"dtype": C64}),
        (aten.full.default, [2, 3], 1.5, {"dtype": C64}),
    ],
    "full_like": lambda d: [
        (aten.full_like.default, d.z(), 2j),
        (aten.full_like.default, d.r(), 3, {"dtype": C64}),
    ],
    "gather": lambda d: [(aten.gather.default, d.z(3, 4), 1, d.up_to(4, 3, 2))],
    "imag": lambda d: [(aten.imag.default, d.z())],
    "index": lambda d: [(aten.index.Tensor, d.z(3, 4), [None, d.up_to(4, 5)])],
    "index_add": lambda d: [(aten.index_add.default, d.z(3, 4), 1, d.up_to(4, 2), d.z(3, 2))],
    "index_copy": lambda d: [
        (aten.index_copy.default, d.z(3, 4), 1, torch.tensor([2, 0]), d.z(3, 2))
    ],
    "index_put": lambda d: [
        (aten.index_put.default, d.z(5), [torch.tensor([3, 1])], d.z(2)),
        (aten.index_put.default, d.z(5), [d.up_to(5, 4)], d.z(4), True),
    ],
    "index_select": lambda d: [(aten.index_select.default, d.z(3, 4), 0, d.up_to(3, 2))],
    "isnan": lambda d: [(aten.isnan.default, NOT_A_NUMBER)],
    "lift_fresh_copy": lambda d: [(aten.lift_fresh_copy.default, d.z())],
    "linalg_vector_norm": lambda d: [
        (aten.linalg_vector_norm.default, d.z(3, 4), 2, [1], True),
        (aten.linalg_vector_norm.default, d.z(3, 4), 1, [0]),
    ],
    "linear": lambda d: [
        (aten.linear.default, d.z(2, 3), d.z(4, 3), d.z(4)),
        (aten.linear.default, d.z(2, 3), d.z(4, 3)),
    ],
    "log": lambda d: [(aten.log.default, d.z())],
    "masked_fill": lambda d: [
        (aten.masked_fill.Scalar, d.z(), d.mask(), 1 - 1j),
        (aten.masked_fill.Scalar, d.z(), d.mask(), 0),
    ],
    "matmul": lambda d: [
        (aten.matmul.default, d.z(2, 3, 4), d.z(4, 5)),
        (aten.matmul.default, d.z(4), d.z(4)),
    ],
    "mean": lambda d: [
        (aten.mean.default, d.z()),
        (aten.mean.dim, d.z(3, 4), [-1], True),
        (aten.mean.dim, d.r(3, 4), [0], {"dtype": C64}),
    ],
    "mm": lambda d: [(aten.mm.default, d.z(2, 3), d.z(3, 4))],
    "mul": lambda d: [
        (aten.mul.Tensor, d.z(), d.z()),
        (aten.mul.Tensor, d.z(), d.r()),
        (aten.mul.Tensor, d.mask(), d.z()),
        (aten.mul.Tensor, d.z(3, 1), d.z(2)),
        (aten.mul.Tensor, d.z(), -2.5),
        (aten.mul.Tensor, d.z(), 1j),
        (aten.mul.Tensor, d.z(), 2 - 1j),
        (aten.mul.Tensor, d.r(), 3j),
        (aten.mul.Tensor, d.r(), 2 + 3j),
    ],
    "mv": lambda d: [(aten.mv.default, d.z(2, 3), d.z(3))],
    "nan_to_num": lambda d: [(aten.nan_to_num.default, NOT_A_NUMBER, 0.5)],
    "narrow": lambda d: [(aten.narrow.default, d.z(3, 5), 1, 2, 3)],
    "ne": lambda d: [
        (aten.ne.Scalar, torch.tensor([1, 1 + 1j, 0]), 1),
        (aten.ne.Tensor, torch.tensor([1, 1 + 1j, 0]), torch.tensor([1, 1 - 1j, 1])),
    ],
    "neg": lambda d: [(aten.neg.default, d.z())],
    "new_zeros": lambda d: [
        (aten.new_zeros.default, d.z(), [2, 3]),
        (aten.new_zeros.default, d.r(), [2, 3], {"dtype": C64}),
    ],
    "ones": lambda d: [(aten.ones.default, [2, 3], {"dtype": C64})],
    "ones_like": lambda d: [(aten.ones_like.default, d.z())],
    "permute": lambda d: [(aten.permute.default, d.z(2, 3, 4), [2, 0, 1])],
    "polar": lambda d: [(aten.polar.default, d.r() ** 2, d.r())],
    "pow": lambda d: [
        (aten.pow.Tensor_Scalar, d.z() + 0.1j, power)
        for power in (0, 1, 2, 3, -1, -2, 0.5, 1.7)
    ],
    "real": lambda d: [(aten.real.default, d.z())],
    "reciprocal": lambda d: [(aten.reciprocal.default, d.z() + 3)],
    "repeat": lambda d: [(aten.repeat.default, d.z(2, 3), [2, 1, 2])],
    "reshape": lambda d: [(aten.reshape.default, d.z(4, 6), [3, -1])],
    "resolve_conj": lambda d: [(aten.resolve_conj.default, d.z())],
    "resolve_neg": lambda d: [(aten.resolve_neg.default, d.z())],
    "roll": lambda d: [
        (aten.roll.default, d.z(3, 4), [2, -1], [0, 1]),
        (aten.roll.default, d.z(3, 4), [5]),
    ],
    "rsub": lambda d: [(aten.rsub.Tensor, d.z(), d.r()), (aten.rsub.Scalar, d.z(), 1 - 1j, 2)],
    "scalar_tensor": lambda d: [(aten.scalar_tensor.default, 1 - 2j, {"dtype": C64})],
    "scatter": lambda d: [
        (aten.scatter.src, d.z(3, 4), 1, torch.tensor([[1, 3]]), d.z(1, 2)),
        (aten.scatter.value, d.z(3, 4), 1, torch.tensor([[1, 3]]), 2.0),
    ],
    "scatter_add": lambda d: [
        (aten.scatter_add.default, d.z(3, 4), 0, d.up_to(3, 2, 4), d.z(2, 4))
    ],
    "select": lambda d: [(aten.select.int, d.z(3, 4), 1, 2)],
    "select_scatter": lambda d: [(aten.select_scatter.default, d.z(3, 4), d.z(4), 0, 1)],
    "sgn": lambda d: [(aten.sgn.default, d.z() * d.mask())],
    "sigmoid": lambda d: [(aten.sigmoid.default, 2 * d.z())],
    "sin": lambda d: [(aten.sin.default, d.z())],
    "slice": lambda d: [(aten.slice.Tensor, d.z(3, 7), 1, 1, 6, 2)],
    "slice_scatter": lambda d: [(aten.slice_scatter.default, d.z(3, 7), d.z(3, 2), 1, 2, 4)],
    "split": lambda d: [(aten.split.Tensor, d.z(5, 2), 2)],
    "split_with_sizes": lambda d: [(aten.split_with_sizes.default, d.z(5, 2), [1, 4])],
    "sqrt": lambda d: [(aten.sqrt.default, d.z())],
    "squeeze": lambda d: [
        (aten.squeeze.dim, d.z(3, 1, 2), 1),
        (aten.squeeze.dims, d.z(1, 3, 1), [0, 2]),
        (aten.squeeze.default, d.z(1, 3, 1)),
    ],
    "stack": lambda d: [(aten.stack.default, [d.z(2, 3), d.r(2, 3)], 1)],
    "sub": lambda d: [
        (aten.sub.Tensor, d.z(), d.z()),
        (aten.sub.Tensor, d.z(3, 1), d.r(2)),
        (aten.sub.Tensor, d.r(3, 1), d.z(2)),
        (aten.sub.Tensor, d.r(), 3j),
        (aten.sub.Tensor, d.z(), d.z(), {"alpha": 2}),
    ],
    "sum": lambda d: [
        (aten.sum.default, d.z()),
        (aten.sum.dim_IntList, d.z(3, 4), [0], True),
        (aten.sum.dim_IntList, d.r(3, 4), [0], {"dtype": C64}),
    ],
    "sym_numel": lambda d: [(aten.sym_numel.default, d.z())],
    "sym_size": lambda d: [(aten.sym_size.int, d.z(3, 4), 1)],
    "t": lambda d: [(aten.t.default, d.z(3, 4))],
    "tanh": lambda d: [(aten.tanh.default, d.z()), (aten.tanh.default, d.z() + 60)],
    "transpose": lambda d: [(aten.transpose.int, d.z(2, 3, 4), 0, -1)],
    "tril": lambda d: [(aten.tril.default, d.z(3, 4), 1)],
    "triu": lambda d: [(aten.triu.default, d.z(3, 4), -1)],
    "unbind": lambda d: [(aten.unbind.int, d.z(3, 2), 0)],
    "unfold": lambda d: [(aten.unfold.default, d.z(7), 0, 3, 2)],
    "unsqueeze": lambda d: [(aten.unsqueeze.default, d.z(3, 4), -1)],
    "var": lambda d: [(aten.var.correction, d.z(3, 4), [1], {"correction": 1, "keepdim": True})],
    "vdot": lambda d: [(aten.vdot.default, d.z(5), d.z(5))],
    "view": lambda d: [
        (aten.view.default, d.z(4, 6), [8, 3]),
        (aten.view.dtype, d.z(4, 6), torch.float32),
        (aten.view.dtype, d.r(4, 6), C64),
    ],
    "view_as_complex": lambda d: [(aten.view_as_complex.default, d.r(3, 4, 2))],
    "view_as_real": lambda d: [(aten.view_as_real.default, d.z())],
    "view_copy": lambda d: [(aten.view_copy.default, d.z(4, 6), [8, 3])],
    "where": lambda d: [
        (aten.where.self, d.mask(), d.z(), d.z()),
        (aten.where.self, d.mask(), d.r(), d.z()),
        (aten.where.ScalarOther, d.mask(), d.z(), 1 - 1j),
        (aten.where.ScalarSelf, d.mask(), 0.0, d.z()),
    ],
    "zeros": lambda d: [(aten.zeros.default, [2, 3], {"dtype": C64})],
    "zeros_like": lambda d: [
        (aten.zeros_like.default, d.z()),
        (aten.zeros_like.default, d.r(), {"dtype": C64}),
    ],
}  # fmt: skip
WITHOUT_VALUES = {"empty", "empty_like", "new_empty"}


@pytest.mark.parametrize("name", sorted(set(RULES) - WITHOUT_VALUES))
@given(seed=st.integers(0, 2**31), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3))
@settings(max_examples=5, deadline=None)
def test_is_that_of_complex_numbers(name: str, seed: int, sizes: list[int]) -> None:
    for op, *args in CASES[name](Draw(seed, sizes)):
        kwargs = args.pop() if args and isinstance(args[-1], dict) else {}
        rule = rule_of(op)
        assert rule is not None
        found = rule(op, *pair(args), **dict(kwargs))
        check(found, op(*args, **kwargs))


@pytest.mark.parametrize(
    "call",
    [
        (aten.empty.memory_format, [2, 3]),
        (aten.empty_like.default, torch.zeros(2, 3)),
        (aten.new_empty.default, torch.zeros(1), [2, 3]),
    ],
)
def test_an_empty_tensor_has_its_size(call: Any) -> None:
    op, *args = call
    made = RULES[op.overloadpacket.__name__](op, *args, dtype=C64)
    assert made.real.shape == made.imag.shape == (2, 3)
    assert made.real.dtype is made.imag.dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_is_float32_whatever_the_precision_around(dtype: torch.dtype) -> None:
    values = torch.randn(3, 2).to(dtype)
    made = RULES["view_as_complex"](aten.view_as_complex.default, values)
    scaled = RULES["mul"](aten.mul.Tensor, made, values[:, 0])
    moved = RULES["where"](aten.where.self, values[:, 0] > 0, values[:, 0], made)
    for one in (made, scaled, moved):
        assert one.real.dtype is one.imag.dtype is torch.float32


def test_a_power_of_a_tensor_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="exponent"):
        RULES["pow"](aten.pow.Tensor_Tensor, pair(torch.ones(2, dtype=C64)), torch.ones(2))
