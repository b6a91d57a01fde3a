"""The SENSE operator in torch: equal forms, against numpy, gradients, autocast."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_edge.data.simulation import complex_noise
from kdmri_edge.physics.coils import sense_normal, sense_operator_array
from kdmri_edge.physics.consistency import (
    chebyshev_steps,
    data_consistency,
    maps_tensor,
    operator_tensor,
    sense_consistency,
    sense_operator_tensor,
)
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import Form
from kdmri_edge.physics.scaling import network_maps

sizes = st.integers(2, 15)
seeds = st.integers(0, 999)


def masked(height: int, width: int, seed: int, *, lines: bool, part: float = 0.4) -> Mask:
    shape = (height,) if lines else (height, width)
    samples = np.random.default_rng(seed).random(shape) < part
    samples.flat[0] = True
    return Mask(samples=samples, name="drawn")


def sensitivities(batch: int, coils: int, height: int, width: int, seed: int) -> np.ndarray:
    maps = complex_noise((batch, coils, height, width), seed=seed)
    return maps / np.maximum(np.linalg.norm(maps, axis=1, keepdims=True), 1)


def parts(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([image.real, image.imag], 1))


def drawn(
    batch: int, coils: int, height: int, width: int, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, ...]:
    x, x_u = (parts(complex_noise((batch, height, width), seed=seed + i)) for i in (0, 1))
    maps = maps_tensor(sensitivities(batch, coils, height, width, seed))
    return x.to(dtype), x_u.to(dtype), maps.to(dtype)


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@given(
    height=sizes,
    width=sizes,
    coils=st.integers(1, 4),
    seed=seeds,
    g=st.sampled_from([1.0, 0.3]),
    part=st.sampled_from([0.2, 0.8]),
)
@settings(max_examples=25, deadline=None)
def test_forms_agree_with_each_other_and_with_numpy(
    lines: bool,
    dtype: torch.dtype,
    tolerance: float,
    height: int,
    width: int,
    coils: int,
    seed: int,
    g: float,
    part: float,
) -> None:
    mask = masked(height, width, seed, lines=lines, part=part)
    x, x_u, maps = drawn(2, coils, height, width, seed, dtype)
    image = x[:, 0].numpy() + 1j * x[:, 1].numpy()
    zero_filled = x_u[:, 0].numpy() + 1j * x_u[:, 1].numpy()
    own = sensitivities(2, coils, height, width, seed)
    expected = parts(image + g * (zero_filled - sense_normal(image, own, mask)))
    for form in Form if lines else (Form.DFT, Form.FFT):
        for any_mask in (False, True):
            operator = sense_operator_tensor(mask, form, any_mask=any_mask, dtype=dtype)
            result = sense_consistency(x, x_u, maps, operator, g, form.value)
            assert result.dtype is dtype
            torch.testing.assert_close(result, expected.to(dtype), rtol=0, atol=8 * tolerance)


@pytest.mark.parametrize("form", Form)
def test_one_coil_of_sensitivity_one_is_data_consistency(form: Form) -> None:
    mask = masked(16, 9, 1, lines=True)
    x, x_u, maps = drawn(2, 1, 16, 9, 0)
    maps = torch.zeros_like(maps)
    maps[:, :, 0] = 1
    ours = sense_consistency(
        x, x_u, maps, sense_operator_tensor(mask, form, dtype=x.dtype), 0.5, form.value
    )
    plain = data_consistency(x, x_u, operator_tensor(mask, form, 2, torch.float64), 0.5, form.value)
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("form", Form)
def test_a_coil_without_sensitivity_changes_nothing(form: Form) -> None:
    x, x_u, maps = drawn(1, 3, 12, 7, 2)
    operator = sense_operator_tensor(masked(12, 7, 2, lines=True), form, dtype=x.dtype)
    more = torch.cat((maps, torch.zeros_like(maps[:, :2])), 1)
    torch.testing.assert_close(
        sense_consistency(x, x_u, more, operator, 1.0, form.value),
        sense_consistency(x, x_u, maps, operator, 1.0, form.value),
    )


@pytest.mark.parametrize("part", [0.2, 0.8])
@pytest.mark.parametrize("form", Form)
def test_gradients(form: Form, part: float) -> None:
    mask = masked(7, 4, 5, lines=True, part=part)
    x, x_u, maps = drawn(2, 2, 7, 4, 0)
    operator = sense_operator_tensor(mask, form, dtype=x.dtype)

    def function(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return sense_consistency(a, b, maps, operator, 0.7, form.value)

    pair = (x.requires_grad_(), x_u.requires_grad_())
    assert torch.autograd.gradcheck(function, pair)
    assert torch.autograd.gradgradcheck(function, pair)


@pytest.mark.parametrize("form", Form)
def test_registration_is_complete(form: Form) -> None:
    x, x_u, maps = drawn(2, 3, 6, 5, 0, torch.float32)
    operator = sense_operator_tensor(masked(6, 5, 0, lines=True), form)
    torch.library.opcheck(
        torch.ops.kdmri.sense_consistency.default,
        (x.requires_grad_(), x_u.requires_grad_(), maps, operator, 1.0, form.value),
    )


def test_autocast_leaves_it_in_float32() -> None:
    x, x_u, maps = drawn(1, 3, 64, 8, 0, torch.float32)
    operator = sense_operator_tensor(masked(64, 8, 0, lines=True), Form.PROJECTION)
    plain = sense_consistency(x, x_u, maps, operator, 1.0, "projection")
    with torch.autocast("cpu", torch.bfloat16):
        cast = sense_consistency(x, x_u, maps, operator, 1.0, "projection")
        from_bf16 = sense_consistency(x.bfloat16(), x_u, maps, operator, 1.0, "projection")
    assert torch.equal(cast, plain)
    assert from_bf16.dtype is torch.float32


def test_one_mask_per_image() -> None:
    masks = [masked(9, 5, seed, lines=True) for seed in (1, 2)]
    x, x_u, maps = drawn(2, 2, 9, 5, 0)
    operators = [sense_operator_tensor(m, Form.PROJECTION, any_mask=True).double() for m in masks]
    both = sense_consistency(x, x_u, maps, torch.stack(operators), 1.0, "projection")
    for i, operator in enumerate(operators):
        one = slice(i, i + 1)
        alone = sense_consistency(x[one], x_u[one], maps[one], operator, 1.0, "projection")
        torch.testing.assert_close(both[one], alone)


def test_strips_of_readout_columns_are_exact_with_maps_cut_along() -> None:
    x, x_u, maps = drawn(1, 3, 20, 30, 0)
    operator = sense_operator_tensor(masked(20, 30, 2, lines=True), Form.PROJECTION).double()
    whole = sense_consistency(x, x_u, maps, operator, 1.0, "projection")
    cut = slice(4, 11)
    strip = sense_consistency(
        x[..., cut], x_u[..., cut], maps[..., cut], operator, 1.0, "projection"
    )
    torch.testing.assert_close(strip, whole[..., cut], rtol=0, atol=1e-12)


def test_network_maps_are_real_and_imaginary_parts() -> None:
    maps = sensitivities(2, 3, 5, 4, 0)
    given = network_maps(maps)
    assert given.dtype == np.float32
    assert given.shape == (2, 3, 2, 5, 4)
    np.testing.assert_array_equal(given[:, :, 0] + 1j * given[:, :, 1], maps)
    assert sense_operator_array(masked(8, 4, 0, lines=False), Form.DFT).shape == (8, 4)


@given(count=st.integers(1, 8), weight=st.floats(0.02, 3), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_chebyshev_steps_shrink_every_error_as_far_as_any_can(
    count: int, weight: float, seed: int
) -> None:
    steps = chebyshev_steps(count, weight)
    assert len(steps) == count
    values = np.append(np.linspace(0, 1, 400), np.random.default_rng(seed).random(20))
    left = np.prod([1 - step * (values + weight) for step in steps], axis=0)
    # 1 / T_n at the place of 0, which no polynomial of the degree that is 1 there falls below
    best = 1 / np.cosh(count * np.arccosh(2 * weight + 1))
    assert np.abs(left).max() == pytest.approx(best, rel=1e-6)
    # rounding that happens on the way is not blown up
    ways = [np.prod([1 - s * (values + weight) for s in steps[n:]], axis=0) for n in range(count)]
    assert max(np.abs(way).max() for way in ways) < 40


def test_no_steps() -> None:
    assert chebyshev_steps(0, 0.1) == ()
