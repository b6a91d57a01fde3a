"""Masks as other programs save them: zero frequency in the middle, lines along the last axis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdmri_edge.errors import MaskError
from kdmri_edge.physics.masks import (
    MASK_FAMILIES,
    Mask,
    check_zero_first,
    equispaced_lines,
    load_mask,
    variable_density_2d,
    variable_density_lines,
)


def saved(path: Path, samples: np.ndarray) -> Path:
    np.save(path, samples.astype(np.float32))
    return path


def every_sixth(size: int = 48) -> np.ndarray:
    """A centre in the middle, and every sixth line, index 0 among them."""
    samples = np.zeros(size, bool)
    samples[size // 2 - 4 : size // 2 + 4] = True
    samples[::6] = True
    return samples


@pytest.mark.parametrize(
    "shape", [(48,), (1, 1, 48, 1), (48, 1), (1, 48), "columns"], ids=["H", "4", "H1", "1W", "HW"]
)
def test_zero_frequency_in_the_middle_is_refused(
    tmp_path: Path, shape: tuple[int, ...] | str
) -> None:
    lines = every_sixth()
    given_as = np.repeat(lines[:, None], 40, 1) if shape == "columns" else lines.reshape(shape)
    with pytest.raises(MaskError, match="whole in the middle") as told:
        load_mask(saved(tmp_path / "a.npy", given_as))
    assert "ifftshift" in told.value.remedy
    axes = (0,) if shape == "columns" else None
    mask = load_mask(saved(tmp_path / "b.npy", np.fft.ifftshift(given_as, axes)))
    np.testing.assert_array_equal(mask.samples, np.fft.ifftshift(lines))


@pytest.mark.parametrize("mask", [equispaced_lines(64, 4), variable_density_2d((48, 40), 4)])
def test_both_ways(tmp_path: Path, mask: Mask) -> None:
    assert load_mask(saved(tmp_path / "a.npy", mask.samples)) == mask
    with pytest.raises(MaskError, match="middle"):
        load_mask(saved(tmp_path / "b.npy", np.fft.fftshift(mask.samples)))


def test_lines_along_the_last_axis_are_no_points(tmp_path: Path) -> None:
    lines = variable_density_lines(48, 4).samples
    path = saved(tmp_path / "a.npy", np.broadcast_to(lines, (40, 48)))
    with pytest.raises(MaskError, match="lines along its last axis") as told:
        load_mask(path)
    assert "first row" in told.value.remedy
    assert load_mask(saved(path, np.load(path)[0])).is_lines


@given(
    st.sampled_from(sorted(MASK_FAMILIES)),
    st.integers(32, 96),
    st.sampled_from([2.0, 4.0]),
    st.integers(0, 99),
)
def test_what_is_drawn_here_is_never_refused(
    family: str, size: int, acceleration: float, seed: int
) -> None:
    try:
        mask = MASK_FAMILIES[family].draw(size, acceleration, seed, 0)
    except MaskError:
        return
    assert check_zero_first(mask, "it") is mask


def test_fully_sampled_is_the_same_either_way() -> None:
    mask = Mask(samples=np.ones(16, bool), name="all")
    assert check_zero_first(mask, "it") is mask
