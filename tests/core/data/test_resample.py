from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_edge.data.resample import crop_kspace, pad_centred, to_matrix
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.masks import Mask

SIZES = st.integers(8, 33)


def volume(image: np.ndarray, **fields: object) -> Volume:
    return Volume(image=image, name="a", subject="01", **fields)  # type: ignore[arg-type]


def waves(size: int, orders: range, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A periodic signal and the same one as a function: coefficients by integer frequency."""
    rng = np.random.default_rng([seed, size])
    return rng.normal(size=len(orders)) + 1j * rng.normal(size=len(orders)), np.array(orders)


def sample(coefficients: np.ndarray, orders: np.ndarray, size: int) -> np.ndarray:
    """The signal at `size` points over one field of view whose centre is index size // 2."""
    position = (np.arange(size) - size // 2) / size
    return np.exp(2j * np.pi * position[:, None] * orders) @ coefficients


@settings(deadline=None, max_examples=60)
@given(SIZES, SIZES, st.integers(0, 9))
def test_band_limited_object_keeps_place_and_intensity(big: int, small: int, seed: int) -> None:
    """Odd and even sizes: the object, sampled at either size, is the same function of space."""
    big, small = max(big, small), min(big, small)
    reach = (small - 1) // 2  # strictly inside the smaller matrix's band
    a, orders = waves(small, range(-reach, reach + 1), seed)
    b, _ = waves(small + 1, range(-reach, reach + 1), seed)

    def image(size: int) -> np.ndarray:
        return np.outer(sample(a, orders, size), sample(b, orders, size))[None]

    result = to_matrix(volume(image(big).astype(np.complex64)), small)

    expected = image(small)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(result.image / scale, expected / scale, atol=2e-5)


@settings(deadline=None, max_examples=40)
@given(SIZES, SIZES, st.data())
def test_crop_is_direct_evaluation_of_the_low_frequencies(
    height: int, width: int, data: st.DataObject
) -> None:
    new_h, new_w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    rng = np.random.default_rng([height, width])
    image = rng.normal(size=(height, width)) + 1j * rng.normal(size=(height, width))

    cropped = crop_kspace(image_to_kspace(image), (new_h, new_w))

    for size, old, axis in ((new_h, height, 0), (new_w, width, 1)):
        assert cropped.shape[axis] == size <= old
    k_h = np.fft.ifftshift(np.arange(new_h) - new_h // 2)
    k_w = np.fft.ifftshift(np.arange(new_w) - new_w // 2)
    y, x = np.arange(height) - height // 2, np.arange(width) - width // 2
    left = np.exp(-2j * np.pi * np.outer(k_h, y) / height)
    right = np.exp(-2j * np.pi * np.outer(x, k_w) / width)
    np.testing.assert_allclose(cropped, left @ image @ right / np.sqrt(height * width), atol=1e-10)


@given(SIZES, SIZES, st.data())
def test_padding_keeps_the_centre_and_every_pixel(
    height: int, width: int, data: st.DataObject
) -> None:
    shape = height + data.draw(st.integers(0, 9)), width + data.draw(st.integers(0, 9))
    image = np.arange(1, height * width + 1.0).reshape(1, height, width)
    padded = pad_centred(image, shape)
    assert padded.shape[1:] == shape
    assert padded[0, shape[0] // 2, shape[1] // 2] == image[0, height // 2, width // 2]
    assert padded.sum() == image.sum()


@pytest.mark.parametrize("shape", [(24, 32), (32, 24), (25, 32), (32, 31)])
def test_short_side_is_padded_not_stretched(shape: tuple[int, int]) -> None:
    image = np.full((2, *shape), 5.0, np.float32)

    result = to_matrix(volume(image), 16).image

    assert result.shape == (2, 16, 16)
    assert result[:, 8, 8] == pytest.approx(5.0, rel=0.1)
    assert result.mean() == pytest.approx(5.0 * shape[0] * shape[1] / 32**2, rel=0.05)


def test_field_of_view_is_squared_in_millimetres() -> None:
    image = np.ones((1, 40, 20), np.float32)  # 40 mm x 40 mm: square already
    result = to_matrix(volume(image, voxel_mm=(3.0, 1.0, 2.0)), 20)
    np.testing.assert_allclose(result.image, 1.0, atol=1e-6)
    assert result.voxel_mm == (3.0, 2.0, 2.0)


def test_rounded_headers_do_not_add_a_column() -> None:
    image = np.ones((1, 320, 320), np.float32)
    result = to_matrix(volume(image, voxel_mm=(3.0, 0.71875, 0.72)), 240)
    np.testing.assert_allclose(result.image, 1.0, atol=1e-5)


def test_magnitude_stays_a_magnitude() -> None:
    image = np.zeros((1, 32, 32), np.float32)
    image[0, 10:20, 10:20] = 100  # rings below zero when cropped
    result = to_matrix(volume(image), 20).image
    assert result.dtype == np.float32
    assert (result >= 0).all()


def test_complex_keeps_its_phase() -> None:
    image = np.full((1, 32, 32), 2j, np.complex64)
    np.testing.assert_allclose(to_matrix(volume(image), 20).image, 2j, atol=1e-6)


def test_crop_equals_acquiring_fewer_samples() -> None:
    rng = np.random.default_rng(0)
    image = (rng.normal(size=(2, 30, 30)) + 1j * rng.normal(size=(2, 30, 30))).astype(np.complex64)
    result = to_matrix(volume(image), 21).image
    back = crop_kspace(image_to_kspace(image), (21, 21))
    np.testing.assert_allclose(kspace_to_image(back) * 21 / 30, result, atol=1e-5)


def test_size_wanted_already_is_returned_as_it_is() -> None:
    same = volume(np.ones((2, 16, 16), np.float32))
    assert to_matrix(same, 16) is same


@pytest.mark.parametrize("shape", [(15, 15), (15, 10), (16, 15), (4, 4)])
def test_never_upsampled(shape: tuple[int, int]) -> None:
    small = volume(np.ones((1, *shape), np.float32))
    if max(shape) >= 16:  # only the field of view is short: air is added, no pixel is invented
        assert to_matrix(small, 16).image.shape == (1, 16, 16)
        return
    with pytest.raises(DataError, match="never upsampled") as caught:
        to_matrix(small, 16)
    assert f"matrix of {max(shape)}" in caught.value.remedy


def test_kspace_with_its_own_mask_is_not_resampled() -> None:
    mask = Mask(samples=np.ones(16, bool), name="file")
    image = np.ones((1, 16, 16), np.float32)
    own = volume(image, kspace=image_to_kspace(image), kspace_mask=mask)
    assert to_matrix(own, 16) is own
    with pytest.raises(DataError, match="carries undersampled k-space"):
        to_matrix(own, 12)


@pytest.mark.parametrize("matrix", [0, -4])
def test_senseless_matrix(matrix: int) -> None:
    with pytest.raises(DataError, match="matrix of"):
        to_matrix(volume(np.ones((1, 8, 8), np.float32)), matrix)
