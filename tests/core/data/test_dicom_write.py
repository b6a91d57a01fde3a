"""DICOM that we write: geometry, intensities, and whose images they say they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from kdmri_edge import __version__
from kdmri_edge.data.conversion import convert
from kdmri_edge.data.formats.registry import (
    format_of,
    read_volume,
    write_image,
    write_image_record,
)
from kdmri_edge.data.geometry import Affine, directions, from_axes, voxel_size
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.errors import OutputError
from kdmri_edge.runtime.files import plan_jobs
from tests.core.data.strategies import affines, check_places, images
from tests.core.data.written_dicom import write_series

pydicom: Any = pytest.importorskip("pydicom")
AXIAL = from_axes((0, 0, 4), (-1.5, 0, 0), (0, 0.5, 0), (50, 60, 10))
IMAGE = np.random.default_rng(0).uniform(0, 900, (3, 6, 5)).astype(np.float32)
STUDY = ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber")


def headers(folder: Path) -> list[Any]:
    return [pydicom.dcmread(file) for file in sorted(folder.iterdir())]


@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(image=images(complex_values=False), affine=affines())
def test_every_pixel_keeps_its_place_and_intensity(
    image: np.ndarray, affine: Affine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("out") / "image.dcm"
    write_image(path, image, voxel_size(affine), affine)
    again = read_volume(path)
    check_places(again, image, affine, tolerance=float(image.max()) / 65535)
    assert (np.array(again.matrix) == image.shape[1:]).all()  # phase encode is H again


@settings(deadline=None, max_examples=8)
@given(affine=affines())
def test_the_view_is_the_usual_one(
    affine: Affine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("out") / "image.dcm"
    write_image(path, IMAGE, voxel_size(affine), affine)
    again = read_volume(path)
    assert again.affine is not None
    assert set(directions(again.affine)[1:]) <= set("LPI")


def test_without_geometry_it_is_a_secondary_capture(tmp_path: Path) -> None:
    write_image(tmp_path / "a.dcm", IMAGE, (4.0, 1.0, 1.5))
    (first, *_) = headers(tmp_path / "a.dcm")
    assert first.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert "ImagePositionPatient" not in first
    again = read_volume(tmp_path / "a.dcm")
    np.testing.assert_allclose(again.image, IMAGE, atol=IMAGE.max() / 65535)
    assert again.voxel_mm == (4.0, 1.0, 1.5)


def test_nobody_is_invented(tmp_path: Path) -> None:
    write_image(tmp_path / "a.dcm", IMAGE, None, AXIAL)
    for header in headers(tmp_path / "a.dcm"):
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate"):
            assert keyword in header
            assert not header.get(keyword)


def test_derived_by_what_and_how(tmp_path: Path) -> None:
    picture = ImageRecord(image=IMAGE, affine=AXIAL, derivation="Reconstructed with bundle b.")
    write_image_record(tmp_path / "a.dcm", picture)
    files = headers(tmp_path / "a.dcm")
    assert len({h.SOPInstanceUID for h in files}) == len(files) == 3
    for header in files:
        assert list(header.ImageType)[:2] == ["DERIVED", "SECONDARY"]
        assert (header.ManufacturerModelName, header.SoftwareVersions) == (
            "kdmri-edge",
            __version__,
        )
        assert header.DerivationDescription == "Reconstructed with bundle b."
        assert header.LossyImageCompression == "00"
        assert header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID


def test_patient_and_study_are_those_of_the_source(tmp_path: Path) -> None:
    write_series(tmp_path / "in", IMAGE.astype(int), AXIAL, EchoTime="1.42",
                 LossyImageCompression="01")  # fmt: skip
    source = read_volume(tmp_path / "in")
    picture = ImageRecord(image=source.image, affine=source.affine, dicom=tmp_path / "in")
    write_image_record(tmp_path / "out.dcm", picture)
    before, after = headers(tmp_path / "in")[0], headers(tmp_path / "out.dcm")[0]
    for keyword in (*STUDY, "EchoTime", "LossyImageCompression"):
        assert after[keyword].value == before[keyword].value
    assert after.SeriesInstanceUID != before.SeriesInstanceUID
    again = read_volume(tmp_path / "out.dcm")
    assert source.affine is not None
    check_places(again, source.image, source.affine, tolerance=0.01)


def test_one_slice_is_a_file(tmp_path: Path) -> None:
    write_image(tmp_path / "a.dcm", IMAGE[:1], None, AXIAL)
    assert (tmp_path / "a.dcm").is_file()


def test_blank_images(tmp_path: Path) -> None:
    write_image(tmp_path / "a.dcm", np.zeros((2, 3, 3), np.float32))
    assert not headers(tmp_path / "a.dcm")[0].pixel_array.any()


def test_negative_pixels_are_counted_as_they_are_clipped(tmp_path: Path) -> None:
    row = format_of(".dcm")
    assert row is not None
    ringing = IMAGE.copy()
    ringing[0, :2, :3] = -50.0
    ringing[1, 0, 0] = -1e-6 * IMAGE.max()  # rounds to 0
    write_image(tmp_path / "a.dcm", ringing)
    again = read_volume(tmp_path / "a.dcm").image
    assert np.count_nonzero(again == 0) == 7
    assert row.unsupported_values(ringing) == ["negative values (6.7 % of the pixels, now 0)"]
    assert row.unsupported_values(IMAGE) == []
    many = np.ones((1, 60, 60), np.float32)
    many[0, 0, 0] = -1
    (said,) = row.unsupported_values(many)
    assert "less than 0.1 %" in said
    nifti = format_of(".nii")
    assert nifti is not None
    assert nifti.unsupported_values(ringing) == []


def test_an_image_without_a_positive_pixel_is_black(tmp_path: Path) -> None:
    write_image(tmp_path / "a.dcm", -IMAGE - 1)
    for header in headers(tmp_path / "a.dcm"):
        assert float(header.RescaleSlope) > 0
        assert not header.pixel_array.any()


def test_phase_is_not_lost_silently(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="phase"):
        write_image(tmp_path / "a.dcm", IMAGE.astype(np.complex64))
    assert not list(tmp_path.iterdir())


def test_an_acquired_series_is_never_replaced(tmp_path: Path) -> None:
    write_series(tmp_path / "brain.dcm", IMAGE.astype(np.uint16), AXIAL)
    names = sorted(f.name for f in (tmp_path / "brain.dcm").iterdir())
    with pytest.raises(OutputError, match="did not write"):
        write_image(tmp_path / "brain.dcm", IMAGE, None, AXIAL)
    with pytest.raises(OutputError, match="holds it"):
        convert(tmp_path / "brain.dcm" / names[0], tmp_path / "brain.dcm")
    with pytest.raises(OutputError, match="holds one"):
        plan_jobs([tmp_path / "brain.dcm" / names[0]], tmp_path / "brain.dcm")
    assert sorted(f.name for f in (tmp_path / "brain.dcm").iterdir()) == names


def test_a_series_is_replaced_but_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "a.dcm"
    write_image(folder, IMAGE, None, AXIAL)
    write_image(folder, IMAGE[:1], None, AXIAL)
    assert [f.name for f in folder.iterdir()] == ["0001.dcm"]
    (folder / "thesis.txt").write_text("years")
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        write_image(folder, IMAGE, None, AXIAL)
    assert (folder / "thesis.txt").exists()
    assert [f.name for f in tmp_path.iterdir()] == ["a.dcm"]
