"""Sensitivities from the centre of k-space, against those that made it."""

from __future__ import annotations

import numpy as np
import pytest

from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.simulation import Coils, coil_maps, complex_noise, smooth_phase
from kdmri_edge.errors import MaskError
from kdmri_edge.physics.coils import combine, compress, compression_matrix, expand, noise_weights
from kdmri_edge.physics.espirit import (
    calibration_block,
    check_calibration,
    espirit_maps,
    sense_slice,
)
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.masks import Mask, variable_density_lines
from tests.sense_inputs import sense_input

SIZE = 64
MASK = variable_density_lines(SIZE, 2, centre_lines=24)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    magnitude = phantom_volume(3, slices=3, matrix=SIZE).image[1]
    phased = magnitude * np.exp(1j * smooth_phase(SIZE, SIZE, seed=4))
    return (phased / magnitude.max()).astype(np.complex64)


def measured(
    image: np.ndarray, maps: np.ndarray, mask: Mask = MASK, noise: float = 0.0
) -> np.ndarray:
    kspace = image_to_kspace(expand(image, maps))
    kspace += noise * complex_noise(kspace.shape, seed=9)
    return (kspace * mask.samples[:, None]).astype(np.complex64)


@pytest.mark.parametrize("kind", Coils)
@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_maps_are_those_that_made_the_scan(image: np.ndarray, kind: Coils, noise: float) -> None:
    truth = coil_maps(6, SIZE, SIZE, seed=1, kind=kind)
    found = espirit_maps(calibration_block(measured(image, truth, noise=noise), MASK), SIZE, SIZE)
    power = (np.abs(found) ** 2).sum(0)
    assert found.dtype == np.complex64
    np.testing.assert_allclose(power[power > 0], 1, atol=1e-4)
    signal = np.abs(image) > 0.1
    assert (power[signal] > 0).mean() > 0.99
    # up to a phase per pixel, which is the image's to have
    same = np.abs(combine(found, truth))[signal & (power > 0)]
    assert np.quantile(same, 0.02) > 0.99
    assert np.median(same) > 0.999


def test_combined_image_is_the_object(image: np.ndarray) -> None:
    full = Mask(samples=np.ones(SIZE, bool), name="full")
    scan = Scan(
        kspace=np.stack([measured(image, coil_maps(12, SIZE, SIZE, seed=s), full) for s in (1, 2)]),
        mask=full,
        name="simulated",
        subject="phantom",
    )
    given = sense_input(scan)
    assert given.zero_filled.shape == (2, SIZE, SIZE)
    assert given.maps.shape == (2, 8, SIZE, SIZE)
    assert given.mask is full
    inside = np.abs(image) > 0.1
    for combined in given.zero_filled:
        error = np.abs(np.abs(combined) - np.abs(image))[inside]
        assert np.quantile(error, 0.95) < 0.02


def test_noise_is_whitened_in_the_unit_of_kspace(image: np.ndarray) -> None:
    coils, level = 4, 1e-3
    mixing = level * (np.eye(coils) + 0.5 * complex_noise((coils, coils), seed=3))
    noise = (mixing @ complex_noise((coils, 4000), seed=5)).astype(np.complex64)
    full = Mask(samples=np.ones(SIZE, bool), name="full")
    clean = image_to_kspace(expand(image, coil_maps(coils, SIZE, SIZE, seed=1)))
    drawn = complex_noise((coils, SIZE * SIZE), seed=6)
    both = clean + (mixing @ drawn).reshape(clean.shape)
    scans = [
        Scan(kspace=k[None].astype(np.complex64), mask=full, name="s", subject="p", noise=noise)
        for k in (both, clean)
    ]
    images = [sense_input(scan) for scan in scans]
    difference = (
        images[0].zero_filled - combine(images[0].maps, images[0].maps) * images[1].zero_filled
    )
    inside = np.abs(image) > 0.3
    unit = np.sqrt(np.mean(np.abs(noise) ** 2))
    assert 0.5 < np.std(difference[0][inside]) / unit < 3  # the maps differ a little, too


def test_a_single_coil_keeps_its_image_whole(image: np.ndarray) -> None:
    ones = np.ones((1, SIZE, SIZE), np.complex64)
    block = calibration_block(measured(image, ones), MASK)
    np.testing.assert_array_equal(espirit_maps(block, SIZE, SIZE), ones)


def test_a_blank_slice_has_no_sensitivities() -> None:
    assert not espirit_maps(np.zeros((3, 24, 24), np.complex64), 30, 31).any()


def test_odd_and_small_matrices(image: np.ndarray) -> None:
    for height, width in ((25, 31), (12, 9)):
        part = image[16 : 16 + height, 16 : 16 + width]
        full = Mask(samples=np.ones(height, bool), name="full")
        kspace = measured(part, coil_maps(3, height, width), full)
        maps = espirit_maps(calibration_block(kspace, full), height, width)
        assert maps.shape == (3, height, width)
        assert (np.abs(maps) ** 2).sum(0).max() < 1.001


def test_a_gap_in_the_centre_is_refused() -> None:
    with pytest.raises(MaskError, match="24 lines around zero frequency"):
        check_calibration(variable_density_lines(SIZE, 4, centre_lines=10))
    check_calibration(variable_density_lines(SIZE, 2, centre_lines=24))
    points = np.zeros((SIZE, SIZE), bool)
    points[:12, :12] = True  # a quarter of the block, zero frequency at a corner
    with pytest.raises(MaskError, match="samples out"):
        check_calibration(Mask(samples=points, name="points"))


@pytest.mark.parametrize(("lines", "taken"), [(24, 24), (19, 19), (16, 16), (31, 24)])
def test_sixteen_lines_will_do(image: np.ndarray, lines: int, taken: int) -> None:
    """What is there is used; smooth coils need no more."""
    samples = np.zeros(SIZE, bool)
    samples[np.arange(lines) - lines // 2] = True
    mask = Mask(samples=samples, name="reference lines")
    truth = coil_maps(4, SIZE, SIZE, seed=1)
    block = calibration_block(measured(image, truth, mask), mask)
    assert block.shape == (4, taken, 24)
    maps = espirit_maps(block, SIZE, SIZE)
    inside = np.abs(image) > 0.2 * np.abs(image).max()
    alike = np.abs((maps.conj() * truth).sum(0))[inside]  # 1 where they differ by a phase
    assert alike.mean() > 0.995


def test_fewer_than_sixteen_will_not(image: np.ndarray) -> None:
    samples = np.zeros(SIZE, bool)
    samples[np.arange(15) - 7] = True
    mask = Mask(samples=samples, name="fifteen")
    with pytest.raises(MaskError, match="the 16 lines around zero frequency") as refused:
        calibration_block(measured(image, coil_maps(4, SIZE, SIZE), mask), mask)
    assert refused.value.cause == "calibration"


def test_partial_fourier_is_a_scan_with_unsampled_lines(image: np.ndarray) -> None:
    frequency = np.fft.fftfreq(SIZE) * SIZE
    partial = Mask(samples=frequency >= -12, name="partial Fourier")
    truth = coil_maps(4, SIZE, SIZE, seed=1)
    scan = Scan(kspace=measured(image, truth, partial)[None], mask=partial, name="s", subject="p")
    maps = sense_input(scan, coils=None).maps[0]
    signal = (np.abs(image) > 0.1) & (np.abs(maps).sum(0) > 0)
    assert np.quantile(np.abs(combine(maps, truth))[signal], 0.02) > 0.99


def test_against_sigpy(image: np.ndarray) -> None:
    sigpy = pytest.importorskip("sigpy", reason="sigpy is not installed")
    from sigpy.mri.app import EspiritCalib

    truth = coil_maps(6, SIZE, SIZE, seed=1)
    kspace = measured(image, truth)
    centred = np.fft.fftshift(kspace, (-2, -1))
    theirs = EspiritCalib(centred, calib_width=24, show_pbar=False, crop=0.95).run()
    ours = espirit_maps(calibration_block(kspace, MASK), SIZE, SIZE)
    both = (np.abs(theirs).sum(0) > 0) & (np.abs(ours).sum(0) > 0)
    signal = np.abs(image) > 0.1
    assert sigpy.__version__
    assert (both & signal).sum() > 0.97 * signal.sum()
    assert np.quantile(np.abs(combine(ours, theirs))[both & signal], 0.02) > 0.995


def direct_maps(block: np.ndarray, height: int, width: int) -> np.ndarray:
    """The textbook's way, in float64: an eigenvector at every pixel, none from its neighbours."""
    coils, high, wide = len(block), 6, 6
    windows = np.lib.stride_tricks.sliding_window_view(block, (high, wide), axis=(1, 2))
    patches = windows.transpose(0, 3, 4, 1, 2).reshape(coils * high * wide, -1)
    vectors, values, _ = np.linalg.svd(patches.astype(np.complex128), full_matrices=False)
    kernels = vectors[:, values > 0.02 * values[0]].reshape(coils, high, wide, -1)
    # each kernel as an image: correlating patches with it is a product there
    waves = [
        np.exp(2j * np.pi * np.outer(np.arange(n) - n // 2, np.arange(k)) / n)
        for n, k in ((height, high), (width, wide))
    ]
    images = np.einsum("yh,chwr,xw->yxcr", waves[0], kernels, waves[1], optimize=True)
    matrices = images @ images.conj().swapaxes(-1, -2) / (high * wide)
    found, solutions = np.linalg.eigh(matrices)
    maps = solutions[..., -1] * (found[..., -1:] >= 0.95)
    principal = compression_matrix(block, 1)[0]
    reference = maps @ principal
    return (maps * np.exp(-1j * np.angle(reference))[..., None]).transpose(2, 0, 1)


def test_refined_maps_are_those_of_every_pixel() -> None:
    """Images that are combined with them agree to a thousandth of their maximum."""
    height, width = 90, 107  # no multiples of the grid
    image = phantom_volume(3, slices=3, matrix=max(height, width)).image[1][:height, :width]
    image = image / image.max() * np.exp(1j * smooth_phase(height, width, seed=4))
    truth = coil_maps(4, height, width, seed=2)
    mask = variable_density_lines(height, 2, centre_lines=24)
    kspace = measured(image.astype(np.complex64), truth, mask, noise=0.01)
    block = calibration_block(kspace, mask)
    found, wanted = espirit_maps(block, height, width), direct_maps(block, height, width)
    supports = [maps.any(0) for maps in (found, wanted)]
    np.testing.assert_array_equal(*supports)
    images = [combine(kspace_to_image(kspace), maps) for maps in (found, wanted)]
    np.testing.assert_allclose(images[0], images[1], atol=1e-3 * np.abs(images[1]).max())


def test_a_slice_is_whitened_and_compressed_by_its_lines_alone(image: np.ndarray) -> None:
    """As of its coils one step after the other, unsampled lines included."""
    kspace = measured(image, coil_maps(7, SIZE, SIZE, seed=1), noise=0.01)
    weights = noise_weights(np.diag(np.arange(1.0, 8)) @ complex_noise((7, 900), seed=2))
    x_u, maps = sense_slice(kspace, MASK, coils=4, whitening=weights)
    white = compress(kspace, weights)
    matrix = compression_matrix(calibration_block(white, MASK), 4)
    virtual = compress(white, matrix)
    np.testing.assert_allclose(
        maps, espirit_maps(calibration_block(virtual, MASK), SIZE, SIZE), atol=1e-3
    )
    wanted = combine(kspace_to_image(virtual), maps)
    np.testing.assert_allclose(x_u, wanted, atol=1e-5 * np.abs(wanted).max())
