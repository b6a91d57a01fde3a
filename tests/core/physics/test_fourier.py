"""The Fourier transform's conventions, and undersampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_edge.errors import MaskError
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image, lines_to_image
from kdmri_edge.physics.masks import Mask, variable_density_2d, variable_density_lines
from kdmri_edge.physics.operators import projection_matrix, zero_filled

shapes = st.tuples(st.integers(1, 3), st.integers(2, 21), st.integers(2, 21))


def draw(shape: tuple[int, ...], seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal(shape) + 1j * random.standard_normal(shape)


@given(shape=shapes, seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_transform_is_an_isometry_with_its_adjoint_as_inverse(
    shape: tuple[int, int, int], seed: int
) -> None:
    x, y = draw(shape, seed), draw(shape, seed + 1)
    k = image_to_kspace(x)
    assert k.shape == x.shape
    np.testing.assert_allclose(kspace_to_image(k), x, atol=1e-12)
    np.testing.assert_allclose(np.vdot(y, k), np.vdot(kspace_to_image(y), x), atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(k), np.linalg.norm(x))


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (8, 5)])
def test_zero_frequency_is_first_and_the_image_is_centred(size: tuple[int, int]) -> None:
    flat = image_to_kspace(np.ones(size))
    assert flat[0, 0] == pytest.approx(np.sqrt(size[0] * size[1]))
    assert np.abs(flat).sum() == pytest.approx(np.abs(flat[0, 0]))
    point = np.zeros(size)
    point[size[0] // 2, size[1] // 2] = 1
    np.testing.assert_allclose(image_to_kspace(point), 1 / np.sqrt(point.size), atol=1e-12)


def test_single_precision_stays_single() -> None:
    assert image_to_kspace(np.ones((4, 4), np.float32)).dtype == np.complex64
    assert kspace_to_image(np.ones((4, 4), np.complex64)).dtype == np.complex64


@given(height=st.integers(11, 40), width=st.integers(3, 9), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_zero_filling_is_the_projection(height: int, width: int, seed: int) -> None:
    mask = variable_density_lines(height, 2.5, centre_lines=3, seed=seed)
    x = draw((2, height, width), seed)
    p = projection_matrix(mask)
    np.testing.assert_allclose(zero_filled(x, mask), p @ x, atol=1e-5)
    real = zero_filled(x.real, mask)
    assert real.dtype == np.float32
    np.testing.assert_allclose(real, (p @ x.real).real, atol=1e-5)


def test_zero_filling_with_a_point_mask_keeps_its_samples_only() -> None:
    mask = variable_density_2d((20, 18), 3, centre=4)
    k = image_to_kspace(zero_filled(draw((20, 18), 0), mask))
    assert np.abs(k[~mask.samples]).max() < 1e-5
    assert np.abs(k[mask.samples]).min() > 0


def test_another_matrix_is_refused() -> None:
    with pytest.raises(MaskError, match="64 x 64"):
        zero_filled(np.ones((2, 32, 32)), variable_density_lines(64, 2))


def test_a_point_mask_has_no_projection_matrix() -> None:
    with pytest.raises(ValueError, match="line mask"):
        projection_matrix(Mask(samples=np.eye(4, dtype=bool), name="points"))


@given(height=st.integers(2, 40), width=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_lines_alone_give_the_image_of_all(height: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = np.flatnonzero(random.random(height) < random.random())
    kspace = np.zeros((2, height, width), np.complex64)
    kspace[:, rows] = draw((2, len(rows), width), seed)
    images = lines_to_image(kspace[:, rows], rows, height)
    assert images.dtype == np.complex64
    np.testing.assert_allclose(images, kspace_to_image(kspace), atol=1e-5)
