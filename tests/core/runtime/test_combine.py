"""Coils to one image: what must not change it, and what it must come close to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_edge.errors import MaskError
from kdmri_edge.physics.combining import (
    centre_lines,
    combined,
    is_zero_phase,
    root_sum_of_squares,
    smooth_sensitivities,
)
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.masks import Mask, variable_density_lines
from tests.core.mrd.scans import every_line, noise_scan, phantom_scan


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 50), height=st.integers(4, 9), coils=st.integers(1, 4))
def test_mixing_coils_changes_nothing(seed: int, height: int, coils: int) -> None:
    """Any unitary mix of the coils, their phases among them, gives the same image."""
    mask = every_line(height)
    kspace = noise_scan(1, coils, height, 7, mask, seed).kspace[0]
    rng = np.random.default_rng(seed)
    draw = rng.standard_normal((2, coils, coils))
    unitary = np.linalg.qr(draw[0] + 1j * draw[1])[0]
    mixed = np.einsum("dc,chw->dhw", unitary, kspace).astype(np.complex64)
    np.testing.assert_allclose(combined(mixed, mask), combined(kspace, mask), atol=1e-4)


@pytest.mark.parametrize("coils", [1, 4])
def test_the_image_is_almost_real_and_as_bright_as_the_root_sum_of_squares(coils: int) -> None:
    mask = every_line(48)
    kspace = phantom_scan(mask, slices=1, coils=coils, matrix=48).kspace[0]
    image = combined(kspace, mask)
    wanted = root_sum_of_squares(kspace_to_image(kspace).astype(np.complex64))
    assert np.linalg.norm(image.imag) < 0.05 * np.linalg.norm(image)
    assert np.linalg.norm(image.real - wanted) < 0.05 * np.linalg.norm(wanted)


def test_sensitivities_are_normalised() -> None:
    mask = variable_density_lines(32, 3, centre_lines=6, seed=1)
    kspace = phantom_scan(mask, slices=1).kspace[0]
    strength = root_sum_of_squares(smooth_sensitivities(kspace, mask))
    np.testing.assert_allclose(strength[strength > 0], 1, atol=1e-4)


def test_nothing_gives_nothing() -> None:
    blank = np.zeros((2, 8, 8), np.complex64)
    assert not combined(blank, every_line(8)).any()


def test_an_object_without_phase_is_told_by_its_symmetry() -> None:
    mask = variable_density_lines(32, 2.5, centre_lines=8)
    keep = mask.samples[:, None]
    image = np.random.default_rng(0).standard_normal((32, 31))
    real = image_to_kspace(image).astype(np.complex64)
    turned = image_to_kspace(image * np.exp(0.5j)).astype(np.complex64)
    assert is_zero_phase(real * keep, mask)
    assert not is_zero_phase(turned * keep, mask)
    assert is_zero_phase(np.zeros_like(real), mask)


@pytest.mark.parametrize(
    ("rows", "count"), [([0], 1), ([0, 7], 2), ([0, 7, 1, 3], 3), ([1, 2], 0), (range(8), 8)]
)
def test_centre_lines(rows: list[int], count: int) -> None:
    mask = Mask(samples=np.isin(np.arange(8), list(rows)), name="drawn")
    assert centre_lines(mask) == count


def test_too_few_centre_lines() -> None:
    mask = Mask(samples=np.isin(np.arange(8), [0, 7, 3]), name="sparse")
    kspace = noise_scan(1, 2, mask=mask).kspace[0]
    with pytest.raises(MaskError, match=r"2 line\(s\) around zero frequency"):
        smooth_sensitivities(kspace, mask)
