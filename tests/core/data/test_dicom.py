"""DICOM series, in files that the tests write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from kdmri_edge.data.datasets import find_volumes
from kdmri_edge.data.formats.registry import read_volume
from kdmri_edge.data.geometry import Affine, from_axes, voxel_size
from kdmri_edge.data.sources import source_sha256
from kdmri_edge.errors import DataError, MissingExtraError
from kdmri_edge.utils import extras
from tests.core.data.strategies import affines, check_places
from tests.core.data.written_dicom import write_enhanced, write_series, write_slice

PIXELS = np.random.default_rng(0).integers(1, 900, (3, 6, 5))
AXIAL = from_axes((0, 0, 4), (0, -1.5, 0), (-0.5, 0, 0), (50, 60, 10))  # columns to the left


@settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(affine=affines())
def test_oblique_series_in_any_order_of_files(
    affine: Affine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Slices of a stack lie across the image, as on a scanner; only oblique as a whole.
    folder = tmp_path_factory.mktemp("series")
    write_series(folder, PIXELS, affine)
    volume = read_volume(folder)
    check_places(volume, PIXELS, affine)
    assert volume.sha256 == source_sha256(folder)
    assert volume.voxel_mm == pytest.approx(np.array(voxel_size(affine))[[0, 2, 1]], rel=1e-5)
    assert volume.image.dtype == np.float32


def test_enhanced_is_the_same_volume_as_classic(tmp_path: Path) -> None:
    write_series(tmp_path / "classic", PIXELS, AXIAL)
    write_enhanced(tmp_path / "enhanced.dcm", PIXELS, AXIAL)
    classic, enhanced = (read_volume(tmp_path / n) for n in ("classic", "enhanced.dcm"))
    np.testing.assert_array_equal(classic.image, enhanced.image)
    np.testing.assert_allclose(classic.affine, enhanced.affine, atol=1e-6)


def test_h_is_x_as_for_nifti_unless_the_header_says_otherwise(tmp_path: Path) -> None:
    for name, tags, shape in (
        ("silent", {}, (3, 5, 6)),
        ("row", {"InPlanePhaseEncodingDirection": "ROW"}, (3, 5, 6)),
        ("col", {"InPlanePhaseEncodingDirection": "COL"}, (3, 6, 5)),
    ):
        write_series(tmp_path / name, PIXELS, AXIAL, **tags)
        volume = read_volume(tmp_path / name)
        assert volume.image.shape == shape
        check_places(volume, PIXELS, AXIAL)


def test_phase_encoding_told_frame_by_frame(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    file = tmp_path / "a.dcm"
    write_enhanced(file, PIXELS, AXIAL)
    plain = read_volume(file)
    data = pydicom.dcmread(file)
    for frame in data.PerFrameFunctionalGroupsSequence:
        said = pydicom.Dataset()
        said.InPlanePhaseEncodingDirection = "COLUMN"
        frame.MRFOVGeometrySequence = [said]
    data.save_as(file, enforce_file_format=True)
    assert read_volume(file).matrix == plain.matrix[::-1]


def test_slope_and_intercept(tmp_path: Path) -> None:
    write_series(tmp_path / "a", PIXELS, AXIAL, RescaleSlope="0.5", RescaleIntercept="3")
    assert read_volume(tmp_path / "a").image.max() == PIXELS.max() * 0.5 + 3


def test_single_slice_takes_the_header_s_thickness(tmp_path: Path) -> None:
    write_slice(tmp_path / "a.dcm", PIXELS[0], AXIAL, SpacingBetweenSlices="7")
    volume = read_volume(tmp_path / "a.dcm")
    assert volume.image.shape == (1, 5, 6)
    assert volume.voxel_mm == pytest.approx((7, 0.5, 1.5))


def test_without_geometry_the_order_is_that_of_the_numbers(tmp_path: Path) -> None:
    write_series(tmp_path / "a", PIXELS)
    volume = read_volume(tmp_path / "a")
    np.testing.assert_array_equal(volume.image, np.swapaxes(PIXELS, 1, 2))
    assert (volume.affine, volume.voxel_mm) == (None, None)


class TestSubjects:
    def test_no_identification_but_a_key(self, tmp_path: Path) -> None:
        write_series(tmp_path / "knee", PIXELS, AXIAL)
        volume = read_volume(tmp_path / "knee")
        told = repr([volume.name, volume.subject, volume.contrast])
        assert volume.name == "knee"
        assert volume.subject.startswith("dicom-")
        assert "4711" not in told
        assert "Doe" not in told

    def test_series_of_one_patient_are_one_subject(self, tmp_path: Path) -> None:
        for name, tags in (("t1", {}), ("t2", {}), ("other", {"PatientID": "MRN-1"})):
            write_series(tmp_path / name, PIXELS, AXIAL, **tags)
        other, t1, t2 = find_volumes(tmp_path)
        assert t1.subject == t2.subject != other.subject

    def test_bids_name_wins(self, tmp_path: Path) -> None:
        write_series(tmp_path / "sub-07_T2w", PIXELS, AXIAL)
        (file,) = find_volumes(tmp_path)
        assert (file.subject, file.contrast) == ("07", "T2w")

    def test_anonymous(self, tmp_path: Path) -> None:
        write_series(tmp_path / "head", PIXELS, AXIAL, PatientID=None, StudyInstanceUID=None)
        assert read_volume(tmp_path / "head").subject == "head"


class TestFinding:
    def test_a_folder_is_one_volume_beside_other_files(self, tmp_path: Path) -> None:
        write_series(tmp_path, PIXELS, AXIAL)
        np.save(tmp_path / "sub-01_T1w.npy", PIXELS)
        assert [f.path for f in find_volumes(tmp_path)] == [
            tmp_path,
            tmp_path / "sub-01_T1w.npy",
        ]

    def test_files_without_suffix_and_with_uids_as_names(self, tmp_path: Path) -> None:
        for index, name in enumerate(("IM0", "IM1", "1.2.840.5")):
            write_slice(tmp_path / "series" / name if (tmp_path / "series").exists() else
                        (tmp_path / "series").mkdir() or tmp_path / "series" / name,
                        PIXELS[index], AXIAL, index)  # fmt: skip
        (tmp_path / "series" / "README").write_text("notes")
        (tmp_path / "series" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
        check_places(read_volume(tmp_path / "series"), PIXELS, AXIAL)
        assert read_volume(tmp_path / "series" / "IM0").image.shape == (1, 5, 6)

    def test_a_loose_file_does_not_hide_the_series_beside_it(self, tmp_path: Path) -> None:
        write_series(tmp_path / "sub-01", PIXELS, AXIAL)
        write_slice(tmp_path / "localiser.dcm", PIXELS[0], AXIAL, 0)
        assert [f.path for f in find_volumes(tmp_path)] == [tmp_path, tmp_path / "sub-01"]

    def test_folder_of_folders(self, tmp_path: Path) -> None:
        write_series(tmp_path / "a", PIXELS, AXIAL)
        write_series(tmp_path / "b", PIXELS, AXIAL)
        (tmp_path / "notes").mkdir()
        assert [f.name for f in find_volumes(tmp_path)] == ["a", "b"]


def refused(path: Path, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_volume(path)
    assert caught.value.remedy.endswith(".")


class TestRefusals:
    def test_two_series(self, tmp_path: Path) -> None:
        write_slice(tmp_path / "a.dcm", PIXELS[0], AXIAL, 0)
        write_slice(tmp_path / "b.dcm", PIXELS[1], AXIAL, 1, SeriesInstanceUID="1.2.9")
        refused(tmp_path, "2 DICOM series")

    def test_two_series_told_by_their_numbers_alone(self, tmp_path: Path) -> None:
        for number in (1, 2):
            write_slice(tmp_path / f"{number}.dcm", PIXELS[0], AXIAL, number,
                        SeriesInstanceUID=None, SeriesNumber=number)  # fmt: skip
        refused(tmp_path, "2 DICOM series")

    def test_several_echoes(self, tmp_path: Path) -> None:
        for echo in (1, 2):
            for index in range(2):
                write_slice(tmp_path / f"{echo}{index}.dcm", PIXELS[0], AXIAL, index)
        refused(tmp_path, "several images of one position")

    def test_missing_slice(self, tmp_path: Path) -> None:
        for index in (0, 1, 3):
            write_slice(tmp_path / f"{index}.dcm", PIXELS[0], AXIAL, index)
        refused(tmp_path, "4 to 8 mm apart")

    def test_localiser(self, tmp_path: Path) -> None:
        write_slice(tmp_path / "a.dcm", PIXELS[0], AXIAL)
        write_slice(tmp_path / "b.dcm", PIXELS[0], AXIAL[:, [1, 0, 2, 3]])
        refused(tmp_path, "several orientations")

    def test_different_matrices(self, tmp_path: Path) -> None:
        write_slice(tmp_path / "a.dcm", PIXELS[0], AXIAL)
        write_slice(tmp_path / "b.dcm", PIXELS[0, :4], AXIAL, 1)
        refused(tmp_path, "different matrices")

    def test_phase_images(self, tmp_path: Path) -> None:
        write_series(tmp_path, PIXELS, AXIAL, ImageType=["ORIGINAL", "PRIMARY", "P", "ND"])
        refused(tmp_path, "phase images")

    def test_negative_values(self, tmp_path: Path) -> None:
        write_series(tmp_path, PIXELS, AXIAL, RescaleSlope="1", RescaleIntercept="-4096")
        refused(tmp_path, "negative")

    def test_colour(self, tmp_path: Path) -> None:
        write_slice(tmp_path / "a.dcm", PIXELS[0], AXIAL, SamplesPerPixel=3)
        refused(tmp_path / "a.dcm", "colour")

    def test_impossible_orientation(self, tmp_path: Path) -> None:
        write_slice(tmp_path / "a.dcm", PIXELS[0], AXIAL, ImageOrientationPatient=[1, 0, 0] * 2)
        refused(tmp_path / "a.dcm", "orientation that makes no sense")

    def test_impossible_numbers(self, tmp_path: Path) -> None:
        write_slice(tmp_path / "a.dcm", PIXELS[0], AXIAL, PixelSpacing=[1.0])
        refused(tmp_path / "a.dcm", "header that makes no sense")

    def test_no_image(self, tmp_path: Path) -> None:
        write_slice(tmp_path / "a.dcm", PIXELS[0], AXIAL, PixelData=None, Rows=None,
                    SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")  # fmt: skip
        refused(tmp_path / "a.dcm", "holds no DICOM image")

    def test_cut_short_before_the_pixels(self, tmp_path: Path) -> None:
        write_series(tmp_path, PIXELS, AXIAL)
        file = tmp_path / "IM001.dcm"
        file.write_bytes(file.read_bytes()[:450])
        refused(tmp_path, r"IM001\.dcm cannot be read as DICOM")

    def test_one_of_the_files_is_cut_short(self, tmp_path: Path) -> None:
        write_series(tmp_path, PIXELS, AXIAL)
        file = tmp_path / "IM001.dcm"
        file.write_bytes(file.read_bytes()[:-20])
        refused(tmp_path, r"IM001\.dcm cannot be read as DICOM")

    def test_without_pydicom_the_extra_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_series(tmp_path, PIXELS, AXIAL)

        def absent(module: str, *, extra: str) -> Any:
            raise MissingExtraError(module, extra)

        monkeypatch.setattr(extras, "require", absent)
        with pytest.raises(MissingExtraError, match=r"kdmri-edge\[formats\]"):
            read_volume(tmp_path)


def test_real_brain_series(real_data: Path) -> None:
    folder = real_data / "dicom" / "brain_t1w"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    volume = read_volume(folder)
    assert volume.image.shape == (10, 274, 384)
    assert volume.voxel_mm == pytest.approx((1.3333, 0.7, 0.6667), abs=1e-3)


def test_real_series_without_uid(real_data: Path) -> None:
    folder = real_data / "dicom" / "cardiac_lge"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    volume = read_volume(folder)
    assert volume.image.shape == (2, 640, 640)
    assert volume.voxel_mm == pytest.approx((2.5, 0.625, 0.625), abs=1e-3)
