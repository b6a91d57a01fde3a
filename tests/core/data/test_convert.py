"""Between formats: what fits arrives, what does not is refused or said."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from kdmri_edge.data.conversion import convert
from kdmri_edge.data.formats.measured import root_sum_of_squares
from kdmri_edge.data.formats.registry import read_scan, read_volume, write_image
from kdmri_edge.data.geometry import from_axes
from kdmri_edge.errors import DataError, OutputError
from kdmri_edge.physics.fourier import image_to_kspace
from tests.core.data.strategies import check_places
from tests.core.data.written_dicom import write_series
from tests.core.data.written_twix import line, whole, write_twix

AXIAL = from_axes((0, 0, 4), (-1.5, 0, 0), (0, 0.5, 0), (50, 60, 10))
IMAGE = np.random.default_rng(0).uniform(1, 900, (3, 10, 8)).astype(np.float32)
COMPLEX = (IMAGE * np.exp(1j * IMAGE)).astype(np.complex64)


def drawn(*shape: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two coils, three slices, a noise scan, undersampled."""
    path = tmp_path / "meas.dat"
    lines = [item for item in whole(drawn(3, 2, 10, 8)) if item.mdh.Counter.Lin != 2]
    write_twix(path, [line(drawn(2, 32), flags=["NOISEADJSCAN"]), *lines])
    return path


def test_raw_data_to_bart_keeps_kspace_and_says_what_is_lost(raw: Path, tmp_path: Path) -> None:
    done = convert(raw, tmp_path / "k.cfl")
    assert done.lost == ("position and orientation", "voxel size", "noise scan")
    before, after = read_scan(raw), read_scan(tmp_path / "k.cfl")
    np.testing.assert_array_equal(after.kspace, before.kspace)
    assert after.mask == before.mask


@pytest.mark.parametrize("name", ["a.nii.gz", "a.npy", "a.dcm"])
def test_coils_are_not_lost_in_silence(raw: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="k-space of 2 coil") as caught:
        convert(raw, tmp_path / name)
    assert "--magnitude" in caught.value.remedy
    assert not (tmp_path / name).exists()


def test_coils_combined_when_asked(raw: Path, tmp_path: Path) -> None:
    done = convert(raw, tmp_path / "a.nii.gz", magnitude=True)
    assert done.lost == ("k-space and phase", "noise scan")
    scan, volume = read_scan(raw), read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(volume.image, root_sum_of_squares(scan.kspace), rtol=1e-6)
    np.testing.assert_allclose(volume.affine, scan.affine, atol=1e-4)


def test_one_coil_becomes_complex_images_that_hold_its_kspace(tmp_path: Path) -> None:
    kspace = drawn(3, 1, 10, 8)
    write_twix(tmp_path / "meas.dat", whole(kspace))
    done = convert(tmp_path / "meas.dat", tmp_path / "a.nii.gz")
    assert done.lost == ()
    image = read_volume(tmp_path / "a.nii.gz").image
    expected = read_scan(tmp_path / "meas.dat").kspace[:, 0]
    np.testing.assert_allclose(image_to_kspace(image), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["b.nii", "b.npy", "b.cfl"])
def test_phase_arrives(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "a.nii.gz", COMPLEX, None, AXIAL)
    convert(tmp_path / "a.nii.gz", tmp_path / name)
    np.testing.assert_array_equal(read_volume(tmp_path / name).image, COMPLEX)


def test_phase_is_not_lost_in_silence(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii.gz", COMPLEX, None, AXIAL)
    with pytest.raises(OutputError, match="phase"):
        convert(tmp_path / "a.nii.gz", tmp_path / "b.dcm")
    done = convert(tmp_path / "a.nii.gz", tmp_path / "b.dcm", magnitude=True)
    assert done.lost == ("phase",)
    check_places(read_volume(tmp_path / "b.dcm"), np.abs(COMPLEX), AXIAL, 0.01)


def test_dicom_to_nifti_leaves_the_patient_behind(tmp_path: Path) -> None:
    write_series(tmp_path / "knee", IMAGE.astype(int), AXIAL)
    done = convert(tmp_path / "knee", tmp_path / "a.nii")
    assert done.lost == ("patient and study, on purpose",)
    raw = (tmp_path / "a.nii").read_bytes()
    assert b"4711" not in raw
    assert b"Doe" not in raw
    check_places(read_volume(tmp_path / "a.nii"), IMAGE.astype(int), AXIAL)


def test_geometry_without_a_place_is_said(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii", IMAGE, None, AXIAL)
    assert convert(tmp_path / "a.nii", tmp_path / "b.npy").lost == (
        "position and orientation",
        "voxel size",
    )


def test_kdmri_file_has_images_and_kspace(tmp_path: Path) -> None:
    sampled = np.isin(np.arange(10), (0, 1, 5))[:, None]
    kspace = np.fft.fft2(IMAGE, norm="ortho") * sampled
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["volfs"] = np.moveaxis(IMAGE, 0, 2)
        file["kspace_volus_3x"] = np.moveaxis(kspace, 0, 2).astype(np.complex64)
    with pytest.raises(OutputError, match="k-space"):
        convert(tmp_path / "a.h5", tmp_path / "a.nii")
    assert convert(tmp_path / "a.h5", tmp_path / "k.cfl").lost == ("fully sampled images",)
    scan = read_scan(tmp_path / "k.cfl")
    assert scan.mask == read_volume(tmp_path / "a.h5").kspace_mask
    convert(tmp_path / "a.h5", tmp_path / "a.nii", magnitude=True)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").image, IMAGE)


def test_bart_kspace_of_one_coil_when_the_user_says_so(tmp_path: Path) -> None:
    write_twix(tmp_path / "meas.dat", whole(drawn(1, 1, 10, 8)))
    convert(tmp_path / "meas.dat", tmp_path / "k.cfl")
    convert(tmp_path / "k.cfl", tmp_path / "a.npy", kspace=True)
    expected = read_volume(tmp_path / "meas.dat").image
    np.testing.assert_allclose(read_volume(tmp_path / "a.npy").image, expected, atol=1e-6)


def test_raw_data_to_mrd_keeps_all_of_it(raw: Path, tmp_path: Path) -> None:
    """What `kdmri-edge send` streams to a server."""
    assert convert(raw, tmp_path / "scan.h5").lost == ()
    there, back = read_scan(raw), read_scan(tmp_path / "scan.h5")
    np.testing.assert_allclose(back.kspace, there.kspace, atol=1e-5)
    assert back.mask == there.mask
    np.testing.assert_array_equal(back.noise, there.noise)
    if there.affine is None:
        assert back.affine is None
    else:
        np.testing.assert_allclose(back.affine, there.affine, atol=1e-3)


def test_noise_has_no_place_among_images(raw: Path, tmp_path: Path) -> None:
    lost = convert(raw, tmp_path / "image.h5", magnitude=True).lost
    assert {"k-space and phase", "noise scan"} <= set(lost)
    expected = root_sum_of_squares(read_scan(raw).kspace)
    np.testing.assert_allclose(read_volume(tmp_path / "image.h5").image, expected, rtol=1e-5)


def test_onto_itself(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGE)
    with pytest.raises(OutputError, match="is the input"):
        convert(tmp_path / "a.npy", tmp_path / "a.npy")


def test_unknown_destination(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGE)
    with pytest.raises(OutputError, match="no writer knows"):
        convert(tmp_path / "a.npy", tmp_path / "a.mat")


def test_missing_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        convert(tmp_path / "a.npy", tmp_path / "b.nii")
