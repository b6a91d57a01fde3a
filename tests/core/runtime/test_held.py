"""Sensitivities that are known from an earlier slice at the same place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.simulation import coil_maps, complex_noise
from kdmri_edge.errors import MaskError
from kdmri_edge.models.shipped import resolve_weights
from kdmri_edge.physics.coils import noise_weights
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import equispaced_lines, variable_density_lines
from kdmri_edge.runtime.inputs import HeldCoils, read_input_spec, slice_input

SIZE = 64
MASK = variable_density_lines(SIZE, 2, centre_lines=24)
READS = read_input_spec(
    resolve_weights(Path("dccnn-d3c5-sense@measured-4x")), any_matrix=True
).at((SIZE, SIZE))  # fmt: skip


def repetition(number: int, coils: int = 10) -> NDArray[np.complex64]:
    """The same object and coils, other noise and brightness."""
    image = phantom_volume(3, slices=3, matrix=SIZE).image[1]
    kspace = image_to_kspace(image * coil_maps(coils, SIZE, SIZE, seed=1))
    noise = 0.01 * image.max() * complex_noise(kspace.shape, seed=number)
    return ((1 + number) * kspace + noise).astype(np.complex64)


def test_later_repetitions_use_what_the_first_has_told() -> None:
    held = HeldCoils()
    first, later = (repetition(n) * MASK.grid for n in (0, 1))
    one = slice_input(first, MASK, READS, held=held)
    np.testing.assert_array_equal(one.zero_filled, slice_input(first, MASK, READS).zero_filled)
    two = slice_input(later, MASK, READS, held=held)
    assert two.maps is one.maps
    alone = slice_input(later, MASK, READS)
    apart = np.linalg.norm(np.abs(two.zero_filled) - np.abs(alone.zero_filled))
    assert apart < 0.01 * np.linalg.norm(alone.zero_filled)  # noise alone is between them


def test_a_repetition_need_not_sample_the_centre() -> None:
    sparse = equispaced_lines(SIZE, 3, centre_fraction=0.1)
    held = HeldCoils()
    slice_input(repetition(0) * MASK.grid, MASK, READS, held=held)
    given = slice_input(repetition(1) * sparse.grid, sparse, READS, held=held)
    assert np.abs(given.zero_filled).max() > 0
    with pytest.raises(MaskError, match="samples out"):
        slice_input(repetition(1) * sparse.grid, sparse, READS)


def test_other_coils_are_estimated_anew() -> None:
    held = HeldCoils()
    for coils in (10, 9):
        kspace = repetition(0, coils) * MASK.grid
        found = slice_input(kspace, MASK, READS, held=held)
        np.testing.assert_array_equal(found.maps, slice_input(kspace, MASK, READS).maps)


def blank() -> NDArray[np.complex64]:
    return np.zeros_like(repetition(0))


def only_noise() -> NDArray[np.complex64]:
    """As large as that of a repetition, without the object."""
    size = 0.01 * phantom_volume(3, slices=3, matrix=SIZE).image[1].max()
    return (size * complex_noise(blank().shape, seed=9)).astype(np.complex64) * MASK.grid


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("first", [blank, only_noise])
def test_a_first_slice_that_tells_nothing_is_not_held(
    first: Callable[[], NDArray[np.complex64]], whitened: bool
) -> None:
    """A dummy repetition, or one before the coil was plugged in: the next one is not lost."""
    held = HeldCoils()
    weights = noise_weights(complex_noise((10, 500), seed=5)) if whitened else None
    slice_input(first(), MASK, READS, whitening=weights, held=held)
    kspace = repetition(0) * MASK.grid
    found = slice_input(kspace, MASK, READS, whitening=weights, held=held)
    wanted = slice_input(kspace, MASK, READS, whitening=weights, held=HeldCoils())
    assert found.maps is not None
    assert np.abs(found.zero_filled).max() > 0
    np.testing.assert_array_equal(found.maps, wanted.maps)
    np.testing.assert_array_equal(found.zero_filled, wanted.zero_filled)
    # what is held now is that of the object, and noise does not take its place
    assert slice_input(first(), MASK, READS, whitening=weights, held=held).maps is found.maps
    again = slice_input(repetition(1) * MASK.grid, MASK, READS, whitening=weights, held=held)
    assert again.maps is found.maps


def test_after_a_blank_slice_the_centre_has_to_be_sampled() -> None:
    """Nothing is known that could stand for it."""
    sparse = equispaced_lines(SIZE, 3, centre_fraction=0.1)
    held = HeldCoils()
    slice_input(blank(), MASK, READS, held=held)
    with pytest.raises(MaskError, match="samples out"):
        slice_input(repetition(1) * sparse.grid, sparse, READS, held=held)
