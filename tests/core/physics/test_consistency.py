"""The data-consistency operator: equal forms, projection properties, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_edge.errors import MaskError
from kdmri_edge.physics.consistency import data_consistency, gain, operator_tensor
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import Form, choose_form, projection_matrix

LINE_FORMS = list(Form)
POINT_FORMS = [Form.DFT, Form.FFT]
sizes = st.integers(3, 24)


def line_mask(height: int, seed: int) -> Mask:
    samples = np.random.default_rng(seed).random(height) < 0.4
    samples[0] = True
    return Mask(samples=samples, name="lines")


def point_mask(height: int, width: int, seed: int) -> Mask:
    samples = np.random.default_rng(seed).random((height, width)) < 0.4
    samples[0, 0] = True
    return Mask(samples=samples, name="points")


def images(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)
    )


def apply(form: Form, mask: Mask, x: torch.Tensor, x_u: torch.Tensor, g: float) -> torch.Tensor:
    operator = operator_tensor(mask, form, x.shape[1], x.dtype)
    return data_consistency(x, x_u, operator, g, form.value)


def as_complex(x: torch.Tensor) -> np.ndarray:
    return (x[:, 0] + 1j * x[:, 1]).numpy()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("channels", [1, 2])
@given(height=sizes, width=sizes, seed=st.integers(0, 999), g=st.sampled_from([1.0, 0.5, 0.03]))
@settings(max_examples=25, deadline=None)
def test_forms_agree_on_line_masks(
    dtype: torch.dtype,
    tolerance: float,
    channels: int,
    height: int,
    width: int,
    seed: int,
    g: float,
) -> None:
    mask = line_mask(height, seed)
    x, x_u = images(seed, (2, channels, height, width), dtype)
    results = [apply(form, mask, x, x_u, g) for form in LINE_FORMS]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=tolerance * 8)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("channels", [1, 2])
@given(height=sizes, width=sizes, seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_forms_agree_on_point_masks(
    dtype: torch.dtype, tolerance: float, channels: int, height: int, width: int, seed: int
) -> None:
    mask = point_mask(height, width, seed)
    x, x_u = images(seed, (2, channels, height, width), dtype)
    dft, fft = (apply(form, mask, x, x_u, 1.0) for form in POINT_FORMS)
    torch.testing.assert_close(dft, fft, rtol=0, atol=tolerance * 8)


@pytest.mark.parametrize("size", [(240, 61), (241, 60), (128, 128), (75, 75)])
def test_forms_agree_at_the_sizes_of_real_images(size: tuple[int, int]) -> None:
    mask = line_mask(size[0], 3)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        x, x_u = images(1, (1, 1, *size), dtype)
        x, x_u = x / x.abs().max(), x_u / x_u.abs().max()
        reference = apply(Form.FFT, mask, x.double(), x_u.double(), 1.0)
        for form in LINE_FORMS:
            error = (apply(form, mask, x, x_u, 1.0) - reference).abs().max().item()
            assert error < tolerance, (form, dtype)


@given(height=st.integers(2, 40), seed=st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_p_is_a_self_adjoint_idempotent_circulant(height: int, seed: int) -> None:
    p = projection_matrix(line_mask(height, seed))
    np.testing.assert_allclose(p, p.conj().T, atol=1e-12)
    np.testing.assert_allclose(p @ p, p, atol=1e-12)
    np.testing.assert_allclose(np.roll(p, (1, 1), (0, 1)), p, atol=1e-12)


@pytest.mark.parametrize("form", LINE_FORMS)
@given(height=sizes, width=sizes, seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_hard_consistency_reproduces_acquired_samples(
    form: Form, height: int, width: int, seed: int
) -> None:
    mask = line_mask(height, seed)
    x, truth = images(seed, (1, 2, height, width), torch.float64)
    x_u = projection_matrix(mask) @ as_complex(truth)
    given_ = torch.from_numpy(np.stack([x_u.real, x_u.imag], 1))
    result = as_complex(apply(form, mask, x, given_, 1.0))
    acquired = np.fft.fft(np.fft.ifftshift(result, axes=-2), axis=-2, norm="ortho")
    wanted = np.fft.fft(np.fft.ifftshift(x_u, axes=-2), axis=-2, norm="ortho")
    np.testing.assert_allclose(acquired[:, mask.samples], wanted[:, mask.samples], atol=1e-10)
    # and what was not acquired is left as the network gave it
    free = np.fft.fft(np.fft.ifftshift(as_complex(x), axes=-2), axis=-2, norm="ortho")
    np.testing.assert_allclose(acquired[:, ~mask.samples], free[:, ~mask.samples], atol=1e-10)


@given(height=sizes, seed=st.integers(0, 999), weight=st.floats(0.01, 100))
@settings(max_examples=25, deadline=None)
def test_noise_weight_blends_measured_and_predicted_samples(
    height: int, seed: int, weight: float
) -> None:
    mask = line_mask(height, seed)
    x, truth = images(seed, (1, 2, height, 4), torch.float64)
    x_u = apply(Form.FFT, mask, torch.zeros_like(truth), truth, 1.0)  # any image: see below
    x_u = x_u - apply(
        Form.FFT, mask, x_u, torch.zeros_like(x_u), 1.0
    )  # P x_u = x_u - (x_u - P x_u)
    result = as_complex(apply(Form.PROJECTION, mask, x, x_u, gain(weight)))

    def k(image: np.ndarray) -> np.ndarray:
        return np.fft.fft(image, axis=-2, norm="ortho")[:, mask.samples]

    blend = (k(as_complex(x)) + weight * k(as_complex(x_u))) / (1 + weight)  # Schlemper, eq. 8
    np.testing.assert_allclose(k(result), blend, atol=1e-10)


def test_a_line_without_its_mirror_is_half_enforced_on_magnitude_networks() -> None:
    samples = np.zeros(8, dtype=bool)
    samples[[0, 1, 2, 6]] = True  # line 1 lacks its mirror 7; lines 2 and 6 mirror each other
    mask = Mask(samples=samples, name="half")
    operator = operator_tensor(mask, Form.PROJECTION, 1, torch.float64).numpy()
    weights = (samples.astype(float) + np.roll(samples[::-1], 1)) / 2
    spectrum = np.fft.fft(np.eye(8), axis=0, norm="ortho")
    diagonal = np.diag(spectrum @ operator @ spectrum.conj().T)
    np.testing.assert_allclose(diagonal, weights, atol=1e-12)
    assert sorted(set(np.round(np.linalg.eigvalsh(operator), 12))) == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("form", LINE_FORMS)
def test_gradients(form: Form, channels: int) -> None:
    mask = line_mask(7, 5)
    x, x_u = (t.requires_grad_() for t in images(0, (2, channels, 7, 4), torch.float64))
    operator = operator_tensor(mask, form, channels, torch.float64)

    def function(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return data_consistency(a, b, operator, 0.7, form.value)

    assert torch.autograd.gradcheck(function, (x, x_u))
    assert torch.autograd.gradgradcheck(function, (x, x_u))


@pytest.mark.parametrize("form", POINT_FORMS)
def test_gradients_on_point_masks(form: Form) -> None:
    operator = operator_tensor(point_mask(5, 6, 1), form, 2, torch.float64)
    x, x_u = (t.requires_grad_() for t in images(0, (1, 2, 5, 6), torch.float64))
    assert torch.autograd.gradcheck(
        lambda a, b: data_consistency(a, b, operator, 1.0, form.value), (x, x_u)
    )


@pytest.mark.parametrize("form", LINE_FORMS)
def test_registration_is_complete(form: Form) -> None:
    x, x_u = (t.requires_grad_() for t in images(0, (2, 2, 6, 5), torch.float32))
    operator = operator_tensor(line_mask(6, 0), form, 2)
    torch.library.opcheck(
        torch.ops.kdmri.data_consistency.default, (x, x_u, operator, 1.0, form.value)
    )


def test_autocast_leaves_data_consistency_in_float32() -> None:
    mask = line_mask(64, 0)
    x, x_u = images(0, (1, 1, 64, 8), torch.float32)
    operator = operator_tensor(mask, Form.PROJECTION, 1)
    plain = data_consistency(x, x_u, operator, 1.0, "projection")
    with torch.autocast("cpu", torch.bfloat16):
        cast = data_consistency(x, x_u, operator, 1.0, "projection")
        from_bf16 = data_consistency(x.bfloat16(), x_u, operator, 1.0, "projection")
    assert torch.equal(cast, plain)
    assert from_bf16.dtype is torch.float32


def test_one_mask_per_image() -> None:
    masks = [line_mask(9, seed) for seed in (1, 2)]
    x, x_u = images(0, (2, 1, 9, 5), torch.float64)
    operators = [operator_tensor(m, Form.PROJECTION, 1, torch.float64) for m in masks]
    both = data_consistency(x, x_u, torch.stack(operators), 1.0, "projection")
    for i, operator in enumerate(operators):
        alone = data_consistency(x[i : i + 1], x_u[i : i + 1], operator, 1.0, "projection")
        torch.testing.assert_close(both[i : i + 1], alone)


def test_strips_of_readout_columns_are_exact() -> None:
    mask = line_mask(20, 2)
    x, x_u = images(0, (1, 1, 20, 30), torch.float64)
    whole = apply(Form.FFT, mask, x, x_u, 1.0)
    strip = apply(Form.PROJECTION, mask, x[..., 4:11], x_u[..., 4:11], 1.0)
    torch.testing.assert_close(strip, whole[..., 4:11], rtol=0, atol=1e-12)


def test_form_choice() -> None:
    lines, points = line_mask(8, 0), point_mask(8, 8, 0)
    assert choose_form(lines) is Form.PROJECTION
    assert choose_form(points) is Form.DFT
    assert choose_form(lines, "fft") is Form.FFT
    with pytest.raises(MaskError, match="form dft"):
        choose_form(points, "projection")
