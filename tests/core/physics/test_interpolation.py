"""Interpolation by zeros around k-space: nothing that was measured changes."""

from __future__ import annotations

import numpy as np
import pytest

from kdmri_edge.errors import DataError
from kdmri_edge.physics.interpolation import interpolated


@pytest.mark.parametrize(("old", "new"), [((8, 6), (16, 12)), ((7, 6), (9, 13)), ((5, 8), (5, 9))])
def test_a_wave_of_low_frequency_is_exact(old: tuple[int, int], new: tuple[int, int]) -> None:
    """Sampled more finely over the same field of view, about pixel N // 2."""

    def wave(matrix: tuple[int, int]) -> np.ndarray:
        h, w = ((np.arange(n) - n // 2) / n for n in matrix)
        return np.exp(2j * np.pi * (2 * h[:, None] - w[None, :])).astype(np.complex64)

    np.testing.assert_allclose(interpolated(wave(old), new), wave(new), atol=1e-5)


def test_pixels_that_were_there_stay() -> None:
    image = np.random.default_rng(0).uniform(0, 1, (8, 7)).astype(np.float32)
    fine = interpolated(image, (24, 21))
    assert fine.dtype == np.float32
    np.testing.assert_allclose(fine[::3, 1::3][:, : image.shape[1]], image, atol=1e-5)
    np.testing.assert_allclose(interpolated(image, (8, 7)), image, atol=1e-6)


def test_a_magnitude_stays_one() -> None:
    image = np.zeros((8, 8), np.float32)
    image[3:5, 3:5] = 1
    assert interpolated(image, (32, 32)).min() == 0


def test_a_coarser_matrix_is_refused() -> None:
    with pytest.raises(DataError, match="not interpolated to 8 x 4"):
        interpolated(np.ones((8, 8), np.float32), (8, 4))
