"""Written reconstructions come back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdmri_edge.data.formats.registry import WRITERS, read_volume, write_image, writer_suffix
from kdmri_edge.errors import OutputError

IMAGE = np.random.default_rng(3).uniform(0, 900, (3, 10, 8)).astype(np.float32)


EXACT = [suffix for suffix in WRITERS if suffix != ".dcm"]  # 16 bits; see test_dicom_write


@pytest.mark.parametrize("suffix", EXACT)
@pytest.mark.parametrize("image", [IMAGE, (IMAGE + 1j * IMAGE[::-1]).astype(np.complex64)])
def test_round_trip(tmp_path: Path, suffix: str, image: np.ndarray) -> None:
    path = tmp_path / f"image{suffix}"
    write_image(path, image, (4.0, 1.0, 1.5))
    again = read_volume(path)
    np.testing.assert_array_equal(again.image, image)
    assert again.image.dtype == image.dtype
    assert again.voxel_mm == (None if suffix in (".npy", ".cfl") else (4.0, 1.0, 1.5))
    written = {path.name, "image.hdr"} if suffix == ".cfl" else {path.name}
    assert {file.name for file in tmp_path.iterdir()} == written


def test_voxel_size_may_be_unknown(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii.gz", IMAGE)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").image, IMAGE)


def test_unknown_suffix_names_the_known_ones(tmp_path: Path) -> None:
    assert writer_suffix(tmp_path / "A.NII.GZ") == ".nii.gz"
    assert writer_suffix(tmp_path / ".npy") is None
    with pytest.raises(OutputError, match=r"\.nii\.gz"):
        write_image(tmp_path / "a.png", IMAGE)
    assert not list(tmp_path.iterdir())
