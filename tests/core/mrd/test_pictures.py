"""MRD's files of images: what a round trip keeps, what servers write, and what is refused."""

from __future__ import annotations

from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest

from kdmri_edge.data.formats.hdf5.layouts import layout_of
from kdmri_edge.data.formats.registry import read_volume, write_image_record
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.inspection import inspect
from kdmri_edge.errors import DataError
from kdmri_edge.mrd.format.assembler import Assembler
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.hdf5 import write_images
from kdmri_edge.mrd.format.images import ImageMaker
from kdmri_edge.runtime.pipeline import Outcome, zero_filled_magnitude
from kdmri_edge.utils.console import get_console
from tests.core.mrd.scans import AFFINE, noise_scan

IMAGE = np.random.default_rng(5).uniform(1, 900, (4, 10, 7)).astype(np.float32)
OBLIQUE = np.array(
    [[0.6, 0.0, 1.2, -20.0], [3.0, 0.5, -0.2, 30.0], [0.0, -2.0, 0.1, 7.0], [0.0, 0.0, 0.0, 1.0]]
)


@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE])
@pytest.mark.parametrize("slices", [1, 4])
def test_round_trip_keeps_place_and_phase(tmp_path: Path, affine: np.ndarray, slices: int) -> None:
    image = (IMAGE * np.exp(1j * IMAGE)).astype(np.complex64)[:slices]
    picture = ImageRecord(image=image, affine=affine, derivation="Made by hand.")
    write_image_record(tmp_path / "sub-07_T2w.h5", picture)
    volume = read_volume(tmp_path / "sub-07_T2w.h5")
    np.testing.assert_array_equal(volume.image, image)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
    assert volume.voxel_mm == pytest.approx(tuple(np.linalg.norm(affine[:3, :3], axis=0)), rel=1e-5)
    assert (volume.subject, volume.contrast) == ("07", "T2w")
    facts = inspect(tmp_path / "sub-07_T2w.h5")
    assert (facts.format, facts.holds) == ("ISMRMRD HDF5 of images", "complex images")


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    write_image_record(
        tmp_path / "a.h5", ImageRecord(image=IMAGE, affine=AFFINE, derivation="By hand.")
    )
    with ismrmrd.Dataset(str(tmp_path / "a.h5"), mode="r") as dataset:
        assert dataset.number_of_images("image_1") == 4
        image = dataset.read_image("image_1", 2)
    np.testing.assert_array_equal(image.data[0, 0], IMAGE[2])
    assert (image.slice, image.image_type) == (2, ismrmrd.IMTYPE_MAGNITUDE)
    place = AFFINE @ [2, 5, 3, 1]  # the middle of the slice; LPS+ there
    np.testing.assert_allclose(image.position, place[:3] * [-1, -1, 1], atol=1e-4)
    np.testing.assert_allclose(image.field_of_view, (7 * 1.5, 10 * 2, 4))
    assert image.meta["ImageComment"] == "By hand."
    assert [float(v) for v in image.meta["ImageColumnDir"]] == [0, 1, 0]


@pytest.mark.parametrize("int16", [False, True])
def test_what_the_server_sends_is_read_in_the_unit_of_kspace(tmp_path: Path, int16: bool) -> None:
    """In whatever order the slices came."""
    scan = noise_scan(4, affine=AFFINE)
    assembler = Assembler(encoding_of(scan))
    maker = ImageMaker(assembler.encoding, int16=int16)
    parts = [part for line in readouts(scan) if (part := assembler.add(line)) is not None]
    wanted = np.stack([zero_filled_magnitude(part.kspace) for part in parts])
    images = [
        maker.make(parts[n], Outcome(image=wanted[n])) for n in (2, 0, 3, 1)
    ]  # fmt: skip
    write_images(tmp_path / "a.h5", images)
    volume = read_volume(tmp_path / "a.h5")
    np.testing.assert_allclose(volume.image, wanted, atol=1e-3 * wanted.max() if int16 else 0)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-4)


def test_repetitions_follow_one_another_without_an_affine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = []
    for repetition in (1, 0):
        image = ismrmrd.Image.from_array(IMAGE[repetition])
        image.repetition, image.image_series_index = repetition, 1
        images.append(image)
    write_images(tmp_path / "a.h5", images)
    get_console.cache_clear()  # it would hold on to another test's standard error
    volume = read_volume(tmp_path / "a.h5")
    assert "a.h5 holds 2 stacks" in capsys.readouterr().err
    np.testing.assert_array_equal(volume.image, IMAGE[:2])
    assert volume.affine is None
    assert volume.voxel_mm is None


def _two_series(path: Path) -> None:
    images = [ismrmrd.Image.from_array(IMAGE[n], image_series_index=n) for n in (1, 2)]
    write_images(path, images)


def _channels(path: Path) -> None:
    write_images(path, [ismrmrd.Image.from_array(IMAGE[:, None])])


def _no_headers(path: Path) -> None:
    write_image_record(path, ImageRecord(image=IMAGE))
    with h5py.File(path, "r+") as file:
        del file["dataset/image_1/header"]


def _no_xml(path: Path) -> None:
    write_image_record(path, ImageRecord(image=IMAGE))
    with h5py.File(path, "r+") as file:
        file["dataset/image_1/attributes"][1] = "<not"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_two_series, "2 series of images"),
        (_channels, r"shape \[1, 4, 1, 10, 7\]"),
        (_no_headers, "cannot be read as MRD images"),
        (_no_xml, "cannot be read as MRD images"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, make, said: str) -> None:
    make(tmp_path / "a.h5")
    assert layout_of(tmp_path / "a.h5").name == "ISMRMRD HDF5 of images"
    with pytest.raises(DataError, match=said):
        read_volume(tmp_path / "a.h5")
