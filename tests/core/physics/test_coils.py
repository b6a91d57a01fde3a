"""Coils in numpy: adjointness, combination, whitening, compression, oversampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_edge.data.simulation import Coils, coil_maps, complex_noise
from kdmri_edge.errors import DataError
from kdmri_edge.physics.coils import (
    combine,
    compress,
    compression_matrix,
    expand,
    factor_is_cheaper,
    noise_weights,
    remove_oversampling,
    sense_normal,
    sense_operator_array,
    sense_zero_filled,
    whitening_matrix,
)
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import Form, operator_array, zero_filled

sizes = st.integers(2, 13)
numbers = st.integers(1, 5)
seeds = st.integers(0, 999)


def line_mask(height: int, seed: int, part: float = 0.4) -> Mask:
    samples = np.random.default_rng(seed).random(height) < part
    samples[0] = True
    return Mask(samples=samples, name="lines")


def maps_of(coils: int, height: int, width: int, seed: int) -> np.ndarray:
    """Sensitivities with sum |s|^2 <= 1, of any shape, not smooth, with a hole."""
    maps = complex_noise((coils, height, width), seed=seed).astype(np.complex128)
    maps /= np.maximum(np.linalg.norm(maps, axis=0), 1)
    maps[:, 0, 0] = 0
    return maps


@given(coils=numbers, height=sizes, width=sizes, seed=seeds)
@settings(max_examples=40, deadline=None)
def test_combination_is_the_adjoint_of_expansion(
    coils: int, height: int, width: int, seed: int
) -> None:
    maps = maps_of(coils, height, width, seed)
    x = complex_noise((height, width), seed=seed)
    z = complex_noise((coils, height, width), seed=seed + 1)
    assert expand(x, maps).shape == z.shape
    assert combine(z, maps).shape == x.shape
    np.testing.assert_allclose(
        np.vdot(z, expand(x, maps)), np.vdot(combine(z, maps), x), rtol=1e-5, atol=1e-5
    )


def test_shapes_are_checked_before_numpy_broadcasts() -> None:
    maps = maps_of(3, 6, 5, 0)
    with pytest.raises(DataError, match="per coil"):
        combine(maps[:1], maps)
    with pytest.raises(DataError, match="matrix"):
        expand(maps[0, :1], maps)


@given(coils=numbers, height=sizes, width=sizes, seed=seeds, kind=st.sampled_from(Coils))
@settings(max_examples=30, deadline=None)
def test_simulated_coils_are_normalised_and_follow_from_the_seed(
    coils: int, height: int, width: int, seed: int, kind: Coils
) -> None:
    maps = coil_maps(coils, height, width, seed=seed, kind=kind)
    assert maps.dtype == np.complex64
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(maps, coil_maps(coils, height, width, seed=seed, kind=kind))
    x = complex_noise((height, width), seed=seed)
    np.testing.assert_allclose(combine(expand(x, maps), maps), x, atol=1e-5)  # S^H S = 1


@given(coils=numbers, height=sizes, width=sizes, seed=seeds)
@settings(max_examples=40, deadline=None)
def test_sense_operator_is_self_adjoint_positive_and_at_most_one(
    coils: int, height: int, width: int, seed: int
) -> None:
    maps, mask = maps_of(coils, height, width, seed), line_mask(height, seed)
    x = complex_noise((height, width), seed=seed).astype(np.complex128)
    y = complex_noise((height, width), seed=seed + 7).astype(np.complex128)
    ax, ay = sense_normal(x, maps, mask), sense_normal(y, maps, mask)
    np.testing.assert_allclose(np.vdot(y, ax), np.vdot(ay, x), atol=1e-4)
    quadratic = np.vdot(x, ax).real
    assert -1e-4 <= quadratic <= np.vdot(x, x).real + 1e-4
    assert np.linalg.norm(ax) <= np.linalg.norm(x) * (1 + 1e-5)


def test_a_step_lowers_the_distance_to_the_measurement() -> None:
    maps, mask = coil_maps(4, 24, 20, seed=1), line_mask(24, 1)
    truth, x = (complex_noise((24, 20), seed=seed) for seed in (0, 5))
    x_u = sense_normal(truth, maps, mask)

    def distance(image: np.ndarray) -> float:
        return float(np.linalg.norm(zero_filled(expand(image - truth, maps), mask)))

    before = distance(x)
    after = distance(x + x_u - sense_normal(x, maps, mask))
    assert after < before
    assert after > 1e-3 * before  # no projection: measured samples do not come out exactly


@given(height=sizes, width=sizes, seed=seeds)
@settings(max_examples=25, deadline=None)
def test_one_coil_of_sensitivity_one_is_single_coil_consistency(
    height: int, width: int, seed: int
) -> None:
    mask, maps = line_mask(height, seed), np.ones((1, height, width), np.complex64)
    x = complex_noise((height, width), seed=seed)
    np.testing.assert_allclose(sense_normal(x, maps, mask), zero_filled(x, mask), atol=1e-6)
    y = image_to_kspace(x) * mask.samples[:, None]
    np.testing.assert_allclose(sense_zero_filled(y[None], maps), zero_filled(x, mask), atol=1e-5)


@given(height=st.integers(3, 30), seed=seeds)
@settings(max_examples=40, deadline=None)
def test_factor_of_the_projection(height: int, seed: int) -> None:
    mask = line_mask(height, seed, part=0.3)
    factor = sense_operator_array(mask, Form.PROJECTION)
    whole = operator_array(mask, Form.PROJECTION, 2)
    sampled = int(mask.samples.sum())
    if factor_is_cheaper(sampled, height):
        assert factor.shape == (2 * sampled, 2 * height)
        np.testing.assert_allclose(factor.T @ factor, whole, atol=1e-12)
        np.testing.assert_allclose(factor @ factor.T, np.eye(2 * sampled), atol=1e-12)
    else:
        np.testing.assert_array_equal(factor, whole)
    np.testing.assert_array_equal(sense_operator_array(mask, Form.PROJECTION, any_mask=True), whole)


@given(coils=st.integers(1, 6), seed=seeds)
@settings(max_examples=25, deadline=None)
def test_whitening_gives_unit_covariance(coils: int, seed: int) -> None:
    mixing = complex_noise((coils, coils), seed=seed) + 2 * np.eye(coils)
    noise = 1e-5 * mixing @ complex_noise((coils, 400), seed=seed)
    white = whitening_matrix(noise) @ noise
    np.testing.assert_allclose(white @ white.conj().T / 400, np.eye(coils), atol=1e-6)


@given(coils=st.integers(1, 6), seed=seeds)
@settings(max_examples=25, deadline=None)
def test_noise_weights_keep_the_unit(coils: int, seed: int) -> None:
    mixing = complex_noise((coils, coils), seed=seed) + 2 * np.eye(coils)
    noise = 1e-5 * mixing @ complex_noise((coils, 400), seed=seed)
    white = noise_weights(noise) @ noise
    power = np.mean(np.abs(noise) ** 2)
    np.testing.assert_allclose(white @ white.conj().T / 400, power * np.eye(coils), atol=1e-6)
    whitened = noise_weights(white)
    np.testing.assert_allclose(whitened, np.eye(coils), atol=1e-6)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (np.ones((4, 3), np.complex64), "samples"),
        (np.zeros((2, 50), np.complex64), "covariance"),
        (np.ones((2, 50), np.complex64), "covariance"),
        (np.full((2, 50), np.nan, np.complex64), "noise"),
    ],
)
def test_noise_that_tells_no_covariance_is_refused(noise: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        whitening_matrix(noise)


@given(coils=st.integers(1, 6), kept=st.integers(1, 8), seed=seeds)
@settings(max_examples=25, deadline=None)
def test_compression_is_orthonormal_and_keeps_the_most_energy(
    coils: int, kept: int, seed: int
) -> None:
    kspace = complex_noise((coils, 5, 6), seed=seed) * np.arange(1, coils + 1)[:, None, None]
    matrix = compression_matrix(kspace, kept)
    number = min(coils, kept)
    np.testing.assert_allclose(matrix @ matrix.conj().T, np.eye(number), atol=1e-6)
    virtual = compress(kspace, matrix)
    assert virtual.shape == (number, 5, 6)
    energies = np.linalg.svd(kspace.reshape(coils, -1), compute_uv=False)[:number] ** 2
    np.testing.assert_allclose(
        [np.linalg.norm(v) ** 2 for v in virtual], energies, rtol=1e-3, atol=1e-3
    )


def test_smooth_coils_lose_little_by_compression() -> None:
    images = expand(complex_noise((32, 32)), coil_maps(16, 32, 32, seed=2))
    virtual = compress(images, compression_matrix(images, 8))
    assert np.linalg.norm(virtual) ** 2 > 0.95 * np.linalg.norm(images) ** 2
    with pytest.raises(DataError, match="1 coil"):
        compression_matrix(images, 0)


@pytest.mark.parametrize("width", [12, 14])
def test_oversampling_is_cut_off_in_the_image(width: int) -> None:
    image = complex_noise((2, 5, width), seed=3)
    cut = kspace_to_image(remove_oversampling(image_to_kspace(image)))
    start = width // 2 - width // 4
    np.testing.assert_allclose(cut, image[..., start : start + width // 2], atol=1e-5)
    with pytest.raises(DataError, match="times"):
        remove_oversampling(image, 5)
