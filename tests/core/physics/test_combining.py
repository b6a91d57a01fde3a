"""Coils are combined for networks of one image where that suits them, and refused where not."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.simulation import coil_maps
from kdmri_edge.errors import DataError
from kdmri_edge.models.shipped import resolve_weights
from kdmri_edge.physics.combining import combined, left_out, misfit, root_sum_of_squares
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.masks import Mask, variable_density_lines
from kdmri_edge.runtime.inputs import InputSpec, read_input_spec, slice_input
from kdmri_edge.runtime.pipeline import Pipeline

EVERY = Mask(samples=np.ones(128, bool), name="every line")


@pytest.fixture(scope="module")
def network() -> Pipeline:
    pytest.importorskip("torch")
    weights = resolve_weights(Path("dccnn-d3c5-complex@measured-4x"))
    return Pipeline(weights, backend="torch", threads=1)


def phantom(coils: int, seed: int = 0) -> NDArray[np.complex64]:
    image = phantom_volume(3, slices=3, matrix=128, complex_phase=True).image[1]
    return image_to_kspace(image * coil_maps(coils, 128, 128, seed=seed)).astype(np.complex64)


def measured(real_data: Path) -> NDArray[np.complex64]:
    with h5py.File(real_data / "kspace" / "invivo_brain_16coil.h5") as file:
        return np.fft.ifftshift(file["kspace"][()], axes=(-2, -1)).astype(np.complex64)


def error(image: NDArray[np.generic], kspace: NDArray[np.complex64]) -> float:
    """Return the relative error of a magnitude image within the object."""
    wanted = root_sum_of_squares(kspace_to_image(kspace).astype(np.complex64))
    inside = wanted > 0.1 * np.percentile(wanted, 99)
    wrong = np.linalg.norm((np.abs(image) - wanted)[inside])
    return float(wrong / np.linalg.norm(wanted[inside]))


@pytest.mark.parametrize("coils", [3, 8])
def test_a_complex_network_improves_on_combined_coils(network: Pipeline, coils: int) -> None:
    kspace, mask = phantom(coils), network.reads.mask
    sampled = kspace * mask.grid
    outcome = network.reconstruct(sampled, mask)
    assert outcome.fallback is None
    zero_filled = combined(sampled, mask)
    assert error(outcome.image, kspace) < 0.6 * error(zero_filled, kspace)


@pytest.mark.parametrize("turned", [False, True])
def test_never_worse_than_zero_filled_without_a_word(
    network: Pipeline, real_data: Path, turned: bool
) -> None:
    """Coils whose sensitivities vary fast; with the object's own phase that is all the more so."""
    kspace, mask = measured(real_data), network.reads.mask
    if turned:
        kspace = np.ascontiguousarray(kspace.swapaxes(-1, -2))
    outcome = network.reconstruct(kspace * mask.grid, mask)
    assert "outside the mask" in (outcome.fallback or "")
    assert error(outcome.image, kspace) < 0.3
    with pytest.raises(DataError, match="does not suit a network of one image"):
        network.image(kspace * mask.grid, mask)


@pytest.mark.parametrize("acceleration", [2.0, 4.0])
def test_what_stands_in_the_way_is_told_apart(real_data: Path, acceleration: float) -> None:
    mask = variable_density_lines(128, acceleration)
    for kspace, suits in ((phantom(8), True), (measured(real_data), False)):
        sampled = kspace * mask.grid
        real = misfit(combined(sampled, mask), mask, real=True)
        kept = misfit(combined(sampled, mask, keeps_phase=True), mask, real=False)
        assert (real <= 0.22, kept <= 0.03) == (suits, suits)


def test_phase_of_the_object_is_kept_and_that_between_coils_is_not() -> None:
    """Fully sampled, one coil's phase more or less changes nothing but a constant."""
    kspace = phantom(4)
    image = combined(kspace, EVERY, keeps_phase=True)
    kspace[2] *= np.exp(1.3j)
    other = combined(kspace, EVERY, keeps_phase=True)
    inside = np.abs(image) > 0.2 * np.abs(image).max()
    turn = np.angle((other * image.conj())[inside].sum())
    np.testing.assert_allclose(
        other[inside], (image * np.exp(1j * turn))[inside], atol=2e-3 * np.abs(image).max()
    )
    np.testing.assert_allclose(np.abs(image), np.abs(combined(kspace, EVERY)), rtol=1e-3, atol=1e-6)
    assert np.ptp(np.angle(image[inside] * np.exp(-1j * np.angle(image[64, 64])))) > 0.5


@pytest.mark.parametrize("acceleration", [2.0, 4.0])
@pytest.mark.parametrize("centre", [10, 24])
def test_what_a_mask_left_out_is_estimated(acceleration: float, centre: int) -> None:
    mask = variable_density_lines(128, acceleration, centre_lines=centre, seed=2)
    kspace = phantom(4)
    truth = np.linalg.norm(kspace * ~mask.grid) / np.linalg.norm(kspace)
    assert left_out(kspace * mask.grid, mask) == pytest.approx(truth, rel=0.15)
    assert left_out(kspace, EVERY) == 0
    assert left_out(np.zeros_like(kspace), mask) == 0
    points = Mask(samples=np.ones((128, 128), bool), name="points")
    assert left_out(kspace, points) == 1  # nothing is known of it


def magnitude() -> InputSpec:
    weights = resolve_weights(Path("dccnn-d3c5@brain-any-mask"))
    return read_input_spec(weights, any_matrix=True).at((128, 128))


def test_a_network_of_real_images_must_lose_less_than_the_mask_did(real_data: Path) -> None:
    """Where half of the lines are there, the zero-filled image is better than a fifth lost."""
    mask = variable_density_lines(128, 2.0, centre_lines=24, seed=1)
    for turned in (False, True):
        kspace = measured(real_data)
        kspace = np.ascontiguousarray(kspace.swapaxes(-1, -2)) if turned else kspace
        with pytest.raises(DataError, match="of it is imaginary"):
            slice_input(kspace * mask.grid, mask, magnitude())


def test_of_a_fully_sampled_slice_next_to_nothing_may_be_lost(real_data: Path) -> None:
    given = slice_input(phantom(4), EVERY, magnitude())
    assert given.zero_filled.dtype == np.float32
    with pytest.raises(DataError, match="does not suit a network of one image"):
        slice_input(measured(real_data), EVERY, magnitude())
