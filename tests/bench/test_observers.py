"""Model observers and areas under ROC curves, against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, norm

from kdmri_bench.assessment.observers import (
    Hotelling,
    NonPrewhitening,
    detectability,
    difference_of_gaussians,
    eye_filter,
    roc_area,
)
from kdmri_edge.errors import BenchError

SIZE = 33
Values = NDArray[np.float64]


def _signal(width: float = 3.0) -> Values:
    x = np.arange(SIZE) - SIZE // 2
    return np.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / (2 * width**2))


def _noise(count: int, seed: int) -> Values:
    return np.random.default_rng(seed).standard_normal((count, SIZE, SIZE))


@settings(deadline=None, max_examples=50)
@given(
    absent=st.lists(st.integers(-5, 5), min_size=1, max_size=20),
    present=st.lists(st.integers(-5, 5), min_size=1, max_size=20),
)
def test_the_area_is_mann_whitneys(absent: list[int], present: list[int]) -> None:
    expected = mannwhitneyu(present, absent).statistic / (len(absent) * len(present))
    assert roc_area(np.array(absent), np.array(present)) == pytest.approx(expected)
    assert roc_area(np.array(absent), np.array(absent)) == 0.5
    assert roc_area(np.array(absent), np.array(absent) + 11) == 1.0


def test_an_area_needs_responses() -> None:
    with pytest.raises(BenchError, match="both kinds"):
        roc_area(np.array([]), np.array([1.0]))
    with pytest.raises(BenchError, match="NaN"):
        roc_area(np.array([0.0]), np.array([np.nan]))
    assert detectability(np.array([1.0]), np.array([2.0])) is None
    assert detectability(np.ones(3), np.ones(3)) is None


def test_the_eye_sees_four_cycles_a_degree_best() -> None:
    eye = eye_filter(257, 0.5)
    assert eye[0, 0] == 0
    assert eye.max() == pytest.approx(1.0, abs=1e-3)
    at = np.abs(np.fft.fftfreq(257, 0.5)[np.argmax(eye[0])])
    assert at * 500 * np.tan(np.deg2rad(1)) == pytest.approx(4.0, abs=0.05)


def test_channels_are_bands_around_the_middle() -> None:
    channels = difference_of_gaussians(SIZE)
    assert channels.shape == (10, SIZE, SIZE)
    np.testing.assert_allclose(np.linalg.norm(channels, axis=(1, 2)), 1.0)
    np.testing.assert_allclose(channels.sum((1, 2)), 0.0, atol=1e-9)  # blind to a constant
    np.testing.assert_allclose(channels, channels[:, ::-1, ::-1], atol=1e-9)  # centred


@pytest.mark.parametrize("contrast", [0.1, 0.3])
def test_a_hotelling_observer_in_white_noise(contrast: float) -> None:
    """In white noise of variance 1 its d' is that of the signal's part within the channels."""
    signal, channels = contrast * _signal(), difference_of_gaussians(SIZE)
    flat = channels.reshape(len(channels), -1)
    seen = flat @ signal.ravel()
    expected = float(np.sqrt(seen @ np.linalg.pinv(flat @ flat.T) @ seen))
    observer = Hotelling.trained(_noise(3000, 1), _noise(3000, 2) + signal)
    absent = observer.responses(_noise(3000, 3))
    present = observer.responses(_noise(3000, 4) + signal)
    assert detectability(absent, present) == pytest.approx(expected, rel=0.08, abs=0.05)
    assert roc_area(absent, present) == pytest.approx(norm.cdf(expected / np.sqrt(2)), abs=0.02)


def test_a_non_prewhitening_observer_in_white_noise() -> None:
    signal = 0.3 * _signal()
    observer = NonPrewhitening.of(signal, 1.0)
    template = observer.template
    expected = float(np.sum(template * signal) / np.linalg.norm(template))
    absent, present = (
        observer.responses(_noise(4000, 1)),
        observer.responses(_noise(4000, 2) + signal),
    )
    assert detectability(absent, present) == pytest.approx(expected, rel=0.05)
    constant = np.ones((2, SIZE, SIZE))
    np.testing.assert_allclose(observer.responses(constant), 0.0, atol=1e-9)


def test_mistakes() -> None:
    with pytest.raises(BenchError, match="more than 10 positions"):
        Hotelling.trained(_noise(10, 0), _noise(10, 1))
    with pytest.raises(BenchError, match="odd n"):
        NonPrewhitening.of(np.ones((4, 4)), 1.0)
    flat = np.ones((12, SIZE, SIZE))
    blind = Hotelling.trained(flat, flat)  # nothing varies, and nothing is there
    assert roc_area(blind.responses(flat), blind.responses(flat)) == 0.5
