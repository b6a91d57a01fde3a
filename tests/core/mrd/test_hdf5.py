"""MRD's HDF5 files: round trips, and every mistake in one sentence."""

from __future__ import annotations

from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest

from kdmri_edge.data.formats.registry import read_volume
from kdmri_edge.errors import DataError
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.hdf5 import (
    count_readouts,
    read_header,
    read_readouts,
    read_scan,
    write_images,
    write_readouts,
    write_scan,
)
from kdmri_edge.mrd.format.header import write_encoding
from kdmri_edge.physics.fourier import kspace_to_image
from kdmri_edge.physics.masks import Mask
from tests.core.mrd.scans import AFFINE, noise_scan


@pytest.mark.parametrize("oversampling", [1, 2])
def test_round_trip(tmp_path: Path, oversampling: int) -> None:
    mask = Mask(samples=np.array([1, 1, 0, 1, 0, 0, 1], np.bool_), name="drawn")
    rng = np.random.default_rng(1)
    noise = (rng.standard_normal((3, 50)) + 0j).astype(np.complex64)
    scan = noise_scan(4, 3, 7, 9, mask, affine=AFFINE, noise=noise)
    write_scan(tmp_path / "sub-07_T2w.h5", scan, oversampling)
    found = read_scan(tmp_path / "sub-07_T2w.h5")
    np.testing.assert_allclose(found.kspace, scan.kspace, atol=1e-5)
    assert found.mask == mask
    np.testing.assert_array_equal(found.noise, noise)
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-4)
    assert found.voxel_mm == pytest.approx((4.0, 2.0, 1.5))
    assert (found.subject, found.contrast) == ("07", "T2w")
    assert len(found.sha256) == 64


def test_slices_are_put_in_order_of_their_positions(tmp_path: Path) -> None:
    scan = noise_scan(4, affine=AFFINE)
    lines = list(readouts(scan))
    for line in lines:  # numbered in the order of an interleaved scan
        line.idx.slice = [0, 2, 1, 3][line.idx.slice]
    write_readouts(tmp_path / "a.h5", write_encoding(encoding_of(scan)), lines)
    found = read_scan(tmp_path / "a.h5")
    np.testing.assert_allclose(found.kspace, scan.kspace, atol=1e-6)
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-4)


def test_repetitions_follow_one_another(tmp_path: Path) -> None:
    first, second = noise_scan(seed=1), noise_scan(seed=2)
    lines = [*readouts(first), *readouts(second, repetition=1)]
    write_readouts(tmp_path / "a.h5", write_encoding(encoding_of(first), repetitions=2), lines)
    found = read_scan(tmp_path / "a.h5")
    wanted = np.concatenate([first.kspace, second.kspace])
    np.testing.assert_allclose(found.kspace, wanted, atol=1e-6)
    assert found.affine is None


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    scan = noise_scan()
    write_scan(tmp_path / "a.h5", scan)
    written = list(readouts(scan))
    with ismrmrd.Dataset(str(tmp_path / "a.h5"), mode="r") as dataset:
        assert dataset.number_of_acquisitions() == len(written) == count_readouts(tmp_path / "a.h5")
        assert dataset.read_acquisition(3) == written[3]
        assert dataset.read_xml_header().decode() == read_header(tmp_path / "a.h5")


def test_what_the_package_writes_is_read(tmp_path: Path) -> None:
    scan = noise_scan()
    with ismrmrd.Dataset(str(tmp_path / "a.h5"), "elsewhere") as dataset:
        dataset.write_xml_header(write_encoding(encoding_of(scan)).encode())
        for line in readouts(scan):
            dataset.append_acquisition(line)
    assert list(read_readouts(tmp_path / "a.h5")) == list(readouts(scan))
    np.testing.assert_allclose(read_scan(tmp_path / "a.h5").kspace, scan.kspace, atol=1e-6)


def test_one_coil_is_a_volume(tmp_path: Path) -> None:
    scan = noise_scan(coils=1, affine=AFFINE)
    write_scan(tmp_path / "a.h5", scan)
    volume = read_volume(tmp_path / "a.h5")
    np.testing.assert_allclose(volume.image, kspace_to_image(scan.kspace[:, 0]), atol=1e-5)
    assert volume.measured
    assert volume.kspace is None  # fully sampled: it may be undersampled here
    assert volume.voxel_mm == pytest.approx((4.0, 2.0, 1.5))


def test_one_undersampled_coil_keeps_its_kspace(tmp_path: Path) -> None:
    mask = Mask(samples=np.arange(8) % 2 == 0, name="half")
    write_scan(tmp_path / "a.h5", noise_scan(coils=1, mask=mask))
    volume = read_volume(tmp_path / "a.h5")
    assert volume.kspace is not None
    assert volume.kspace_mask == mask


def test_several_coils_are_no_volume(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.h5", noise_scan(coils=2))
    with pytest.raises(DataError, match=r"2 coils.*combine the coils"):
        read_volume(tmp_path / "a.h5")


def test_a_scan_without_geometry_stays_without(tmp_path: Path) -> None:
    """Readouts have to say something of their pixels; of the patient they say nothing."""
    write_scan(tmp_path / "a.h5", noise_scan())
    assert read_scan(tmp_path / "a.h5").affine is None


def test_images(tmp_path: Path) -> None:
    images = []
    for number in range(3):
        image = ismrmrd.Image.from_array(np.full((4, 5), number, np.float32))
        image.meta = {"number": str(number)}
        images.append(image)
    assert write_images(tmp_path / "out.h5", images, "<xml/>") == 3
    with ismrmrd.Dataset(str(tmp_path / "out.h5"), mode="r") as dataset:
        assert dataset.read_image("image_0", 2) == images[2]
        assert dataset.read_xml_header() == b"<xml/>"


def _no_lines(path: Path) -> None:
    write_readouts(path, write_encoding(encoding_of(noise_scan())), [])


def _wrong_line(path: Path) -> None:
    lines = list(readouts(noise_scan()))
    lines[3].idx.kspace_encode_step_1 = 77
    write_readouts(path, write_encoding(encoding_of(noise_scan())), lines)


def _cut(path: Path) -> None:
    write_scan(path, noise_scan())
    path.write_bytes(path.read_bytes()[:3000])


def _two_masks(path: Path) -> None:
    lines = list(readouts(noise_scan()))
    write_readouts(path, write_encoding(encoding_of(noise_scan())), lines[1:])


def _other(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["dataset/xml"] = "x"


def _short_data(path: Path) -> None:
    write_scan(path, noise_scan())
    with h5py.File(path, "r+") as file:
        row = file["dataset/data"][2]
        row["data"] = row["data"][:5]
        file["dataset/data"][2] = row


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_no_lines, "no line of an image"),
        (_wrong_line, "Line 77"),
        (_cut, "damaged or cut short"),
        (_two_masks, "sampled in different ways"),
        (_other, "no readouts of a scan"),
        (_short_data, "cannot be read"),
        (lambda path: None, "does not exist"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, make, said: str) -> None:
    make(tmp_path / "a.h5")
    with pytest.raises(DataError, match=said):
        read_scan(tmp_path / "a.h5")
