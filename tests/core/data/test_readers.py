from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from kdmri_edge import extras
from kdmri_edge.data.names import parse_name
from kdmri_edge.data.readers import READERS, read_volume, stem_of
from kdmri_edge.errors import DataError, MissingExtraError
from kdmri_edge.files import sha256_file
from kdmri_edge.physics.fourier import kspace_to_image
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.projection import zero_filled


@pytest.fixture
def pixels() -> np.ndarray:
    """[S, H, W] with three different lengths, so that a swapped axis shows."""
    return np.random.default_rng(3).uniform(0, 900, (3, 10, 8)).astype(np.float32)


def write_nifti(path: Path, pixels: np.ndarray, zooms: tuple[float, ...] = (1, 2, 3)) -> None:
    nibabel = pytest.importorskip("nibabel")
    data = np.moveaxis(pixels, 0, 2) if pixels.ndim == 3 else pixels
    image = nibabel.Nifti1Image(data, np.diag([*zooms[:3], 1]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def write_h5(path: Path, pixels: np.ndarray, **extra: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["volfs"] = np.moveaxis(pixels, 0, 2) if pixels.ndim == 3 else pixels
        for name, value in extra.items():
            file[name] = value


def write_npy(path: Path, pixels: np.ndarray) -> None:
    np.save(path, pixels)


WRITERS: dict[str, Callable[..., None]] = {
    ".nii.gz": write_nifti,
    ".nii": write_nifti,
    ".h5": write_h5,
    ".hdf5": write_h5,
    ".npy": write_npy,
}
SUFFIXES = sorted(WRITERS)


def test_every_format_of_the_table_is_tested() -> None:
    assert set(WRITERS) == set(READERS)


@pytest.mark.parametrize("suffix", SUFFIXES)
class TestEveryFormat:
    """The same cases for every reader; a new one joins by its writer above."""

    def test_round_trip(self, tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
        path = tmp_path / f"sub-07_ses-2_T2w{suffix}"
        WRITERS[suffix](path, pixels)

        volume = read_volume(path)

        np.testing.assert_array_equal(volume.image, pixels)
        assert volume.image.dtype == np.float32
        assert volume.image.flags.c_contiguous
        assert (volume.name, volume.subject, volume.contrast) == (
            "sub-07_ses-2_T2w",
            "07",
            "T2w",
        )
        assert volume.sha256 == sha256_file(path)
        assert not volume.measured
        assert volume.kspace is None
        assert volume.kspace_mask is None

    def test_suffix_in_capitals(self, tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
        lower = tmp_path / f"scan{suffix}"
        WRITERS[suffix](lower, pixels)
        upper = lower.rename(tmp_path / f"SCAN{suffix.upper()}")
        assert read_volume(upper).name == "SCAN"

    def test_truncated(self, tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
        path = tmp_path / f"cut{suffix}"
        WRITERS[suffix](path, pixels)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match=r"cut.*cannot be read"):
            read_volume(path)

    @pytest.mark.parametrize("content", [b"", b"not an image at all" * 50])
    def test_not_that_format(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        path = tmp_path / f"junk{suffix}"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"junk.*cannot be read"):
            read_volume(path)

    def test_missing(self, tmp_path: Path, suffix: str) -> None:
        with pytest.raises(DataError, match="does not exist"):
            read_volume(tmp_path / f"absent{suffix}")

    def test_folder_of_that_name(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / f"folder{suffix}").mkdir()
        with pytest.raises(DataError, match="is a folder"):
            read_volume(tmp_path / f"folder{suffix}")

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_nan_or_infinite(
        self, tmp_path: Path, suffix: str, pixels: np.ndarray, bad: float
    ) -> None:
        pixels[1, 2, 3] = bad
        path = tmp_path / f"nan{suffix}"
        WRITERS[suffix](path, pixels)
        with pytest.raises(DataError, match=r"nan.*NaN or infinite"):
            read_volume(path)

    def test_all_zero(self, tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
        path = tmp_path / f"blank{suffix}"
        WRITERS[suffix](path, np.zeros_like(pixels))
        with pytest.raises(DataError, match=r"blank.*all zero"):
            read_volume(path)

    def test_negative_magnitude(self, tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
        pixels[0, 0, 0] = -50
        path = tmp_path / f"signed{suffix}"
        WRITERS[suffix](path, pixels)
        with pytest.raises(DataError, match=r"signed.*negative"):
            read_volume(path)

    def test_rounding_below_zero_is_zero(
        self, tmp_path: Path, suffix: str, pixels: np.ndarray
    ) -> None:
        pixels[0, 0, 0] = -1e-5
        path = tmp_path / f"rounded{suffix}"
        WRITERS[suffix](path, pixels)
        assert read_volume(path).image[0, 0, 0] == 0

    def test_wrong_rank(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"series{suffix}"
        WRITERS[suffix](path, np.ones((4, 4, 3, 2), np.float32))
        with pytest.raises(DataError, match=r"series.*\[4, 4, 3, 2\]"):
            read_volume(path)

    def test_every_message_has_a_remedy(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"blank{suffix}"
        WRITERS[suffix](path, np.zeros((2, 4, 4), np.float32))
        with pytest.raises(DataError) as caught:
            read_volume(path)
        assert caught.value.remedy.endswith(".")


def test_unknown_suffix_names_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "scan.mat"
    path.write_bytes(b"1")
    with pytest.raises(DataError) as caught:
        read_volume(path)
    assert all(suffix in caught.value.remedy for suffix in READERS)


@pytest.mark.parametrize(
    ("stem", "subject", "contrast"),
    [
        ("sub-01_ses-1_FLAIR", "01", "FLAIR"),
        ("sub-101_cine", "101", "cine"),
        ("sub-20_ses-2", "20", None),
        ("sub-20", "20", None),
        ("head_T1w", "head_T1w", None),
        ("mysub-01_T1w", "mysub-01_T1w", None),
    ],
)
def test_names(stem: str, subject: str, contrast: str | None) -> None:
    assert parse_name(stem) == (subject, contrast)


def test_stem_drops_the_whole_suffix() -> None:
    assert stem_of(Path("a/b.c_T1w.nii.gz")) == "b.c_T1w"


class TestNifti:
    def test_voxels_follow_the_axes(self, tmp_path: Path, pixels: np.ndarray) -> None:
        path = tmp_path / "a.nii.gz"
        write_nifti(path, pixels, zooms=(0.5, 0.75, 4.0))
        assert read_volume(path).voxel_mm == (4.0, 0.5, 0.75)

    def test_slope_and_intercept_are_applied(self, tmp_path: Path) -> None:
        nibabel = pytest.importorskip("nibabel")
        image = nibabel.Nifti1Image(np.full((4, 5, 2), 10, np.int16), np.eye(4))
        path = tmp_path / "a.nii"
        nibabel.save(image, path)
        raw = bytearray(path.read_bytes())
        raw[112:120] = np.array([2.5, 3.0], "<f4").tobytes()  # scl_slope, scl_inter
        path.write_bytes(raw)
        np.testing.assert_array_equal(read_volume(path).image, 28.0)

    def test_trailing_singleton_is_dropped(self, tmp_path: Path) -> None:
        path = tmp_path / "a.nii.gz"
        write_nifti(path, np.ones((6, 5, 3, 1), np.float32))
        assert read_volume(path).image.shape == (3, 6, 5)

    def test_one_slice_without_third_axis_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.nii.gz"
        write_nifti(path, np.ones((6, 5), np.float32))
        with pytest.raises(DataError, match=r"\[6, 5\]"):
            read_volume(path)

    def test_complex_keeps_its_phase(self, tmp_path: Path, pixels: np.ndarray) -> None:
        path = tmp_path / "a.nii.gz"
        values = (pixels * np.exp(1j * pixels)).astype(np.complex64)
        write_nifti(path, values)
        volume = read_volume(path)
        assert volume.is_complex
        np.testing.assert_array_equal(volume.image, values)

    def test_damaged_inside_the_compressed_stream(self, tmp_path: Path, pixels: np.ndarray) -> None:
        path = tmp_path / "a.nii.gz"
        write_nifti(path, pixels)
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2 : len(raw) // 2 + 40] = bytes(40)
        path.write_bytes(raw)
        with pytest.raises(DataError):
            read_volume(path)

    def test_compressed_but_not_nifti(self, tmp_path: Path) -> None:
        path = tmp_path / "a.nii.gz"
        path.write_bytes(gzip.compress(b"hello" * 200))
        with pytest.raises(DataError, match="cannot be read as NIfTI"):
            read_volume(path)

    def test_without_nibabel_the_extra_is_named(
        self, tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a.nii.gz"
        write_nifti(path, pixels)

        def absent(module: str, *, extra: str) -> Any:
            raise MissingExtraError(module, extra)

        monkeypatch.setattr(extras, "require", absent)
        with pytest.raises(MissingExtraError, match=r"kdmri-edge\[formats\]"):
            read_volume(path)


class TestNpy:
    def test_single_slice(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.ones((6, 5)))
        assert read_volume(tmp_path / "a.npy").image.shape == (1, 6, 5)

    def test_complex(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.full((2, 6, 5), -1 + 2j))
        volume = read_volume(tmp_path / "a.npy")
        assert volume.image.dtype == np.complex64

    @pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4)])
    def test_empty(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        np.save(tmp_path / "a.npy", np.ones(shape))
        with pytest.raises(DataError, match="empty"):
            read_volume(tmp_path / "a.npy")

    def test_text(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.full((2, 3, 3), "x"))
        with pytest.raises(DataError, match="not numbers"):
            read_volume(tmp_path / "a.npy")

    def test_pickled_objects_are_never_loaded(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
        with pytest.raises(DataError, match="pickled"):
            read_volume(tmp_path / "a.npy")

    def test_archive_under_this_name(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=np.ones(3))
        (tmp_path / "a.npz").rename(tmp_path / "a.npy")
        with pytest.raises(DataError, match="archive"):
            read_volume(tmp_path / "a.npy")

    def test_values_beyond_float32(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.full((2, 3, 3), 1e300))
        with pytest.raises(DataError, match="infinite"):
            read_volume(tmp_path / "a.npy")


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
