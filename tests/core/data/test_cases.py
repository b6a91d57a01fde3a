from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_edge.data.case import make_case
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError, MaskError
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask, centre_block

rng = np.random.default_rng(11)
IMAGE = rng.uniform(0, 500, (3, 12, 10)).astype(np.float32)
LINES = Mask(samples=np.isin(np.arange(12), [0, 1, 2, 5, 11]), name="lines")
POINTS = Mask(samples=rng.random((12, 10)) < 0.5, name="points")


def volume(image: np.ndarray = IMAGE, **fields: object) -> Volume:
    return Volume(image=image, name="a", subject="01", contrast="T1w", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("mask", [LINES, POINTS], ids=["lines", "points"])
def test_zero_filled_is_the_real_part_not_the_magnitude(mask: Mask) -> None:
    case = make_case(volume(), mask)
    samples = mask.samples[:, None] if mask.is_lines else mask.samples
    plain = np.fft.fftn(IMAGE, axes=(1, 2)) * samples
    np.testing.assert_allclose(case.zero_filled, np.fft.ifftn(plain, axes=(1, 2)).real, atol=1e-2)
    assert case.zero_filled.dtype == case.target.dtype == np.float32
    np.testing.assert_array_equal(case.target, IMAGE)
    np.testing.assert_array_equal(case.scale, np.abs(case.zero_filled).max(axis=(1, 2)))
    assert (case.name, case.subject, case.contrast) == ("a", "01", "T1w")


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-3, 1e5))
def test_network_input_does_not_depend_on_the_intensity_unit(factor: float) -> None:
    one, other = make_case(volume(), LINES), make_case(volume(IMAGE * np.float32(factor)), LINES)
    for field in ("zero_filled", "target"):
        a = getattr(one, field) / one.scale[:, None, None]
        b = getattr(other, field) / other.scale[:, None, None]
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_blank_slice_stays_blank() -> None:
    image = IMAGE.copy()
    image[1] = 0
    case = make_case(volume(image), LINES)
    assert case.scale[1] == 1
    assert not case.zero_filled[1].any()


def test_kspace_of_the_file_is_what_is_used() -> None:
    kspace = (image_to_kspace(IMAGE) * LINES.samples[:, None]).astype(np.complex64)
    own = volume(kspace=kspace * 2, kspace_mask=LINES)  # doubled, to tell it from a fresh one
    np.testing.assert_allclose(
        make_case(own, LINES).zero_filled, 2 * make_case(volume(), LINES).zero_filled, atol=1e-2
    )


def test_kspace_sampled_with_another_mask() -> None:
    kspace = image_to_kspace(IMAGE) * LINES.samples[:, None]
    own = volume(kspace=kspace.astype(np.complex64), kspace_mask=LINES)
    full = Mask(samples=np.ones(12, bool), name="full")
    with pytest.raises(DataError, match="another mask than 'full'"):
        make_case(own, full)


def test_two_channels_keep_the_phase() -> None:
    image = (IMAGE * np.exp(1j * IMAGE)).astype(np.complex64)
    case = make_case(volume(image), LINES, channels=2)
    assert case.zero_filled.dtype == case.target.dtype == np.complex64
    np.testing.assert_allclose(
        image_to_kspace(case.zero_filled),
        image_to_kspace(image) * LINES.samples[:, None],
        atol=1e-2,
    )


def test_complex_volume_for_a_magnitude_network() -> None:
    with pytest.raises(DataError, match=r"complex.*numpy\.abs"):
        make_case(volume(IMAGE.astype(np.complex64)), LINES)


def test_mask_of_another_matrix() -> None:
    with pytest.raises(MaskError, match="10 x 12"):
        make_case(volume(np.ascontiguousarray(IMAGE.swapaxes(1, 2))), LINES)


@pytest.mark.parametrize("channels", [0, 3])
def test_unknown_channels(channels: int) -> None:
    with pytest.raises(DataError, match="channels"):
        make_case(volume(), LINES, channels)


@pytest.mark.parametrize("mask", [centre_block((12, 10), (6, 4)), LINES], ids=["centre", "lines"])
def test_super_resolution_starts_from_the_magnitude(mask: Mask) -> None:
    case = make_case(volume(), mask, magnitude=True)
    samples = mask.samples[:, None] if mask.is_lines else mask.samples
    expected = np.abs(np.fft.ifftn(np.fft.fftn(IMAGE, axes=(1, 2)) * samples, axes=(1, 2)))
    np.testing.assert_allclose(case.zero_filled, expected, atol=1e-2)
    assert case.zero_filled.dtype == np.float32
    np.testing.assert_array_equal(case.target, IMAGE)
    np.testing.assert_array_equal(case.scale, case.zero_filled.max(axis=(1, 2)))
    real = make_case(volume(), mask)
    assert np.abs(real.zero_filled - case.zero_filled).max() > 1  # of 500: they are not the same


def test_magnitude_of_the_files_own_kspace() -> None:
    kspace = (image_to_kspace(IMAGE) * LINES.samples[:, None]).astype(np.complex64)
    own = make_case(volume(kspace=kspace, kspace_mask=LINES), LINES, magnitude=True)
    fresh = make_case(volume(), LINES, magnitude=True)
    np.testing.assert_allclose(own.zero_filled, fresh.zero_filled, atol=1e-2)


def test_a_magnitude_of_two_channels_is_refused() -> None:
    with pytest.raises(DataError, match="second channel"):
        make_case(volume(IMAGE.astype(np.complex64)), LINES, 2, magnitude=True)


def test_magnitude_network_gets_the_magnitude_of_measured_kspace() -> None:
    image = (IMAGE * np.exp(1j * IMAGE)).astype(np.complex64)
    case = make_case(volume(image, measured=True), LINES)
    plain = make_case(volume(np.abs(image)), LINES)
    np.testing.assert_array_equal(case.target, plain.target)
    np.testing.assert_array_equal(case.zero_filled, plain.zero_filled)
