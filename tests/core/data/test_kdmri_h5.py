"""KD-MRI's HDF5 layout: k-space under our conventions, and every way in which a file can be odd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from kdmri_edge.data.formats.registry import read_volume
from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import kspace_to_image
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import zero_filled
from tests.core.data.written import write_h5


def masked_kspace(pixels: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """[H, W, S] as KD-MRI's own script writes it; `samples` is [H, W]."""
    kspace = np.fft.fft2(pixels, norm="ortho") * samples
    return np.moveaxis(kspace, 0, 2).astype(np.complex64)


@pytest.mark.parametrize("shape", [(3, 12, 10), (2, 9, 11), (2, 12, 9), (1, 7, 8)])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_kdmri_kspace_comes_under_our_conventions(
    tmp_path: Path, shape: tuple[int, int, int], axis: int | None
) -> None:
    rng = np.random.default_rng(5)
    pixels = rng.uniform(0, 900, shape).astype(np.float32)
    height, width = shape[1:]
    samples = np.zeros((height, width), bool)
    if axis == 0:
        samples[[0, 1, 4, height - 1]] = True
    elif axis == 1:
        samples[:, [0, 1, 3, width - 1]] = True
    else:
        samples = rng.random((height, width)) < 0.4
        samples[0, 0] = True
    path = tmp_path / "a.h5"
    write_h5(path, pixels, kspace_volus_5x=masked_kspace(pixels, samples))

    volume = read_volume(path)

    if axis == 1:  # phase encode is brought to H
        pixels, samples = pixels.swapaxes(1, 2), samples.T
    expected = Mask(samples=samples if axis is None else samples[:, 0], name="x")
    np.testing.assert_array_equal(volume.image, pixels)
    assert volume.kspace is not None
    assert volume.kspace_mask == expected
    keep = samples[None] & np.ones_like(pixels, bool)
    assert not volume.kspace[~keep].any()  # exact zeros where nothing was sampled
    np.testing.assert_allclose(
        kspace_to_image(volume.kspace).real, zero_filled(pixels, expected), atol=1e-3
    )


class TestKdmriH5:
    def samples(self, pixels: np.ndarray) -> np.ndarray:
        samples = np.zeros(pixels.shape[1:], bool)
        samples[[0, 1, 5]] = True
        return samples

    def test_magnitude_of_zero_filled_is_never_used(
        self, tmp_path: Path, pixels: np.ndarray
    ) -> None:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file["img_volus_4x"] = np.moveaxis(pixels, 0, 2)
        with pytest.raises(DataError, match=r"only img_volus_.*consistency"):
            read_volume(path)

    def test_img_volus_beside_volfs_is_ignored(self, tmp_path: Path, pixels: np.ndarray) -> None:
        path = tmp_path / "a.h5"
        write_h5(path, pixels, img_volus_4x=np.full((10, 8, 3), np.nan))
        np.testing.assert_array_equal(read_volume(path).image, pixels)

    def test_several_accelerations_leave_the_image_alone(
        self, tmp_path: Path, pixels: np.ndarray
    ) -> None:
        kspace = masked_kspace(pixels, self.samples(pixels))
        path = tmp_path / "a.h5"
        write_h5(path, pixels, kspace_volus_4x=kspace, kspace_volus_8x=kspace)
        assert read_volume(path).kspace is None

    def test_kspace_without_reference(self, tmp_path: Path, pixels: np.ndarray) -> None:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file["kspace_volus_4x"] = masked_kspace(pixels, self.samples(pixels))
        with pytest.raises(DataError, match="no volfs"):
            read_volume(path)

    def test_other_layout(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file["images"] = np.ones((2, 4, 4))
        with pytest.raises(DataError, match="images"):
            read_volume(path)

    def test_empty_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        h5py.File(path, "w").close()
        with pytest.raises(DataError, match="holds nothing"):
            read_volume(path)

    def test_group_under_the_name(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file.create_group("volfs")
        with pytest.raises(DataError, match="layout"):
            read_volume(path)

    def test_complex_volfs(self, tmp_path: Path, pixels: np.ndarray) -> None:
        path = tmp_path / "a.h5"
        write_h5(path, pixels.astype(np.complex64))
        with pytest.raises(DataError, match="complex"):
            read_volume(path)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda k: k[:-1], "shape"),
            (lambda k: k[..., 0], "shape"),
            (lambda k: np.abs(k), "not complex"),
            (lambda k: np.where(k == 0, np.nan, k), "NaN"),
            (lambda k: np.zeros_like(k), "all zero"),
            (lambda k: k * 9, "not the masked k-space"),
            (lambda k: np.fft.fftshift(k, axes=(0, 1)), "not the masked k-space"),
        ],
    )
    def test_bad_kspace(
        self,
        tmp_path: Path,
        pixels: np.ndarray,
        spoil: Callable[[np.ndarray], np.ndarray],
        message: str,
    ) -> None:
        path = tmp_path / "a.h5"
        kspace = spoil(masked_kspace(pixels, self.samples(pixels)))
        write_h5(path, pixels, kspace_volus_4x=kspace)
        with pytest.raises(DataError, match=f"kspace_volus_4x.*{message}"):
            read_volume(path)
