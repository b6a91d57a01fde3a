"""Metrics against scikit-image, against formulas written out by hand, and against known errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.filters import laplace
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from kdmri_edge.errors import DataError
from kdmri_edge.metrics import METRICS, hfn, nmse, psnr, ssim, volume_metrics

Array = NDArray[np.float32]


def volume(seed: int, shape: tuple[int, int, int] = (3, 16, 18)) -> Array:
    """Smooth structure in [0, 400] with air around it."""
    rng = np.random.default_rng(seed)
    s, h, w = shape
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    waves = [np.cos(a * x + b * y + c) for a, b, c in rng.uniform(1, 6, (2, 3))]
    body = (x**2 + y**2 < 0.8) * (2.5 + waves[0] + 0.5 * waves[1])
    return (100 * body * np.linspace(0.7, 1, s)[:, None, None]).astype(np.float32)


def noisy(target: Array, sigma: float, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return (target + sigma * rng.standard_normal(target.shape)).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scikit_image_and_fastmri(seed: int) -> None:
    target, image = volume(seed), noisy(volume(seed), 12.0, seed)
    top = target.max()
    t64, x64 = target.astype(np.float64), image.astype(np.float64)
    assert psnr(target, image) == pytest.approx(
        peak_signal_noise_ratio(t64, x64, data_range=float(top)), rel=1e-9
    )
    # fastMRI's evaluate.py: mean over slices, the volume's maximum as data range.
    per_slice = [
        structural_similarity(t, x, data_range=float(top)) for t, x in zip(t64, x64, strict=True)
    ]
    assert ssim(target, image) == pytest.approx(np.mean(per_slice), rel=1e-9)
    assert nmse(target, image) == pytest.approx(
        np.linalg.norm(t64 - x64) ** 2 / np.linalg.norm(t64) ** 2, rel=1e-9
    )


def test_hfn_agrees_with_the_formula_written_out() -> None:
    target, image = volume(4), noisy(volume(4), 30.0, 5)
    target[1] = 0.0  # blank: left out
    t = target.astype(np.float64) / target.max()
    x = np.clip(image.astype(np.float64) / target.max(), 0, 1)
    expected = []
    for index in (0, 2):
        # The five-point stencil on an image mirrored at its edges.
        a, b = (np.pad(v[index], 1, mode="symmetric") for v in (t, x))
        la, lb = (
            4 * p[1:-1, 1:-1] - p[:-2, 1:-1] - p[2:, 1:-1] - p[1:-1, :-2] - p[1:-1, 2:]
            for p in (a, b)
        )
        np.testing.assert_allclose(la, laplace(t[index]), atol=1e-12)
        expected.append(np.sum((la - lb) ** 2) / np.sum(la**2))
    assert hfn(target, image) == pytest.approx(np.mean(expected), rel=1e-9)


def test_hfn_does_not_punish_values_outside_the_range() -> None:
    target = volume(6)
    peak = target.argmax()
    image = target.copy()
    image.ravel()[peak] *= 5  # clipped back to the maximum
    image[target == 0] = -7  # clipped back to air
    assert hfn(target, image) == pytest.approx(0.0, abs=1e-12)
    assert nmse(target, image) > 0


def test_an_exact_copy_is_perfect() -> None:
    target = volume(0)
    found = volume_metrics(target, target.copy())
    assert list(found) == list(METRICS)
    assert found["psnr"] == math.inf
    assert found["ssim"] == pytest.approx(1.0)
    assert found["nmse"] == found["hfn"] == 0.0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), weak=st.floats(1.0, 10.0), ratio=st.floats(1.5, 8.0))
def test_a_larger_known_error_is_ranked_lower_by_every_measure(
    seed: int, weak: float, ratio: float
) -> None:
    target = volume(seed)
    good = volume_metrics(target, noisy(target, weak, seed))
    bad = volume_metrics(target, noisy(target, weak * ratio, seed))
    for name, metric in METRICS.items():
        assert (good[name] > bad[name]) is metric.higher_is_better, name


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), unit=st.floats(1e-3, 1e4))
def test_the_unit_of_intensity_does_not_matter(seed: int, unit: float) -> None:
    target = volume(seed)
    image = noisy(target, 8.0, seed)
    before = volume_metrics(target, image)
    after = volume_metrics(target * np.float32(unit), image * np.float32(unit))
    for name, value in before.items():
        assert after[name] == pytest.approx(value, rel=1e-4), name


def test_a_constant_shift_gives_the_known_psnr() -> None:
    target = volume(2)
    shift = float(target.max()) / 100
    assert psnr(target, target + np.float32(shift)) == pytest.approx(40.0, abs=1e-4)


def test_complex_images_are_compared_by_magnitude() -> None:
    target = volume(1)
    image = noisy(target, 5.0, 1)
    turned = np.abs(image) * np.exp(1j * 0.7)
    assert psnr(target * np.exp(-0.2j), turned) == pytest.approx(
        psnr(target, np.abs(image)), rel=1e-6
    )


@pytest.mark.parametrize(
    ("target", "image", "words"),
    [
        (volume(0), volume(0)[:2], "one shape"),
        (volume(0)[0], volume(0)[0], "one shape"),
        (np.zeros((0, 8, 8)), np.zeros((0, 8, 8)), "one shape"),
        (np.full((1, 8, 8), np.nan), np.ones((1, 8, 8)), "target volume holds NaN"),
        (np.ones((1, 8, 8)), np.full((1, 8, 8), np.inf), "image volume holds NaN"),
        (np.zeros((1, 8, 8)), np.ones((1, 8, 8)), "nowhere above zero"),
        (np.ones((1, 6, 8)), np.ones((1, 6, 8)), "smaller than SSIM"),
        (np.ones((1, 8, 8)), np.ones((1, 8, 8)), "no edge"),
    ],
)
def test_what_has_no_quality_is_refused(target: Array, image: Array, words: str) -> None:
    with pytest.raises(DataError, match=words):
        volume_metrics(target, image)
