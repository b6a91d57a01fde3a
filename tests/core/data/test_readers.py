from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdmri_edge.data.formats.registry import READERS, read_scan, read_volume, stem_of, write_image
from kdmri_edge.data.sources import parse_name, source_sha256
from kdmri_edge.errors import DataError
from kdmri_edge.utils.files import sha256_file
from tests.core.data.written import write_h5, write_nifti, write_npy
from tests.core.data.written_dicom import write_enhanced
from tests.core.data.written_twix import whole, write_twix

WRITERS: dict[str, Callable[..., None]] = {
    ".nii.gz": write_nifti,
    ".nii": write_nifti,
    ".h5": write_h5,
    ".hdf5": write_h5,
    ".mrd": write_h5,
    ".ismrmrd": write_h5,
    ".npy": write_npy,
}
SUFFIXES = sorted(WRITERS)
# Formats that cannot hold just any array; what they can hold wrongly is in tests of their own.
STRICT: dict[str, Callable[..., None]] = {
    ".dcm": write_enhanced,
    ".cfl": lambda path, pixels: write_image(path, pixels),
    ".dat": lambda path, pixels: write_twix(path, whole(pixels[:, None])),
}
ALL = WRITERS | STRICT


def test_every_format_of_the_table_is_tested() -> None:
    assert set(ALL) == set(READERS)


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


@pytest.mark.parametrize("suffix", sorted(ALL))
class TestEveryFile:
    """What can be wrong with a file of any format."""

    def test_truncated(self, tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
        path = tmp_path / f"cut{suffix}"
        ALL[suffix](path, pixels)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match=r"cut.*cannot be read"):
            read_volume(path)

    @pytest.mark.parametrize("content", [b"", b"not an image at all" * 50])
    def test_not_that_format(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        path = tmp_path / f"junk{suffix}"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"junk.*cannot be read"):
            read_volume(path)

    def test_its_hash_is_known_before_it_is_read(
        self, tmp_path: Path, suffix: str, pixels: np.ndarray
    ) -> None:
        path = tmp_path / f"a{suffix}"
        ALL[suffix](path, pixels)
        read = read_scan if suffix == ".dat" else read_volume
        assert read(path).sha256 == source_sha256(path)

    def test_missing(self, tmp_path: Path, suffix: str) -> None:
        with pytest.raises(DataError, match="does not exist"):
            read_volume(tmp_path / f"absent{suffix}")

    def test_folder_of_that_name(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / f"folder{suffix}").mkdir()
        with pytest.raises(DataError, match="is a folder"):
            read_volume(tmp_path / f"folder{suffix}")


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


class TestNegativeMagnitudes:
    """Interpolated volumes, as registration to a template makes them, undershoot their edges."""

    @pytest.fixture
    def edge(self) -> np.ndarray:
        image = np.zeros((12, 16, 16), np.float32)
        image[:, 4:12, 4:12] = 200.0
        return image

    def test_ringing_beside_an_edge_is_zero_and_said(
        self, tmp_path: Path, edge: np.ndarray, capsys: pytest.CaptureFixture[str]
    ) -> None:
        edge[3, 3, 5] = -23.0
        write_npy(tmp_path / "mni.npy", edge)
        image = read_volume(tmp_path / "mni.npy").image
        np.testing.assert_array_equal(image, np.maximum(edge, 0))
        told = capsys.readouterr().err
        assert "0.03 % of the pixels of mni.npy are negative, down to 12 % of the maximum" in told

    @pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
    @pytest.mark.parametrize(
        ("many", "value"),
        [
            (1, -40.0),  # deeper than any interpolation goes: a wrapped integer, say
            (700, -12.0),  # too many: the real part of noise
        ],
    )
    def test_more_than_ringing_is_refused(
        self, tmp_path: Path, edge: np.ndarray, scale: float, many: int, value: float
    ) -> None:
        edge[edge == 0] = np.where(np.arange((edge == 0).sum()) < many, value, 0)
        write_npy(tmp_path / "signed.npy", edge * np.float32(scale))
        with pytest.raises(DataError, match=r"signed.*negative"):
            read_volume(tmp_path / "signed.npy")
