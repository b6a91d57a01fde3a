"""Order, place and axes: what one header of many, or one field of many, still tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from kdmri_edge.data.formats.hdf5.attributes import attribute_text
from kdmri_edge.data.formats.registry import read_scan, read_volume
from kdmri_edge.data.geometry import Affine, from_axes
from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from tests.core.data.written_dicom import write_enhanced, write_slice

N = 5
PIXELS = np.arange(1, N + 1)[:, None, None] * 100 + np.arange(6)[:, None] + np.zeros((N, 6, 4), int)
AXIAL = from_axes((0, 0, 4), (0, -1.5, 0), (-0.5, 0, 0), (50, 60, 10))
WANTED = np.swapaxes(PIXELS, 1, 2)  # H is x


def series(folder: Path, tags: list[dict[str, Any]], affine: Affine | None = AXIAL) -> Path:
    """Slice n with tags[n]; names run against the slices."""
    folder.mkdir()
    for index, own in enumerate(tags):
        write_slice(folder / f"IM{N - index}.dcm", PIXELS[index], affine, index, **own)
    return folder


def check(folder: Path, *, placed: bool) -> None:
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.image, WANTED)
    if placed:
        np.testing.assert_allclose(volume.affine, AXIAL[:, [0, 2, 1, 3]], atol=1e-5)
    else:
        assert volume.affine is None


def refused(folder: Path, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_volume(folder)
    assert caught.value.remedy.startswith("Export the series again")


class TestDicom:
    @pytest.mark.parametrize("silent", range(N))
    def test_one_header_without_position(self, tmp_path: Path, silent: int) -> None:
        """Numbers run against the positions, and still tell where the silent one lies."""
        tags = [{"InstanceNumber": N - n} for n in range(N)]
        tags[silent]["ImagePositionPatient"] = None
        check(series(tmp_path / "a", tags), placed=True)

    def test_its_place_by_slice_location(self, tmp_path: Path) -> None:
        tags: list[dict[str, Any]] = [
            {"InstanceNumber": 1, "SliceLocation": 4.0 * n - 7} for n in range(N)
        ]
        tags[1]["ImagePositionPatient"] = tags[2]["ImagePositionPatient"] = None
        check(series(tmp_path / "a", tags), placed=True)

    def test_a_place_that_nothing_tells(self, tmp_path: Path) -> None:
        tags: list[dict[str, Any]] = [{"InstanceNumber": n} for n in (1, 4, 2, 5, 3)]
        tags[2]["ImagePositionPatient"] = None
        refused(series(tmp_path / "a", tags), r"1 of 5 images .* no position \(IM3\.dcm\)")

    def test_slice_location_goes_before_the_numbers(self, tmp_path: Path) -> None:
        tags = [{"InstanceNumber": N - n, "SliceLocation": 4.0 * n} for n in range(N)]
        check(series(tmp_path / "a", tags, affine=None), placed=False)

    def test_slice_location_alone(self, tmp_path: Path) -> None:
        tags = [{"InstanceNumber": None, "SliceLocation": 4.0 * n} for n in range(N)]
        check(series(tmp_path / "a", tags, affine=None), placed=False)

    def test_one_location_for_all_is_none(self, tmp_path: Path) -> None:
        tags = [{"InstanceNumber": n + 1, "SliceLocation": 0.0} for n in range(N)]
        check(series(tmp_path / "a", tags, affine=None), placed=False)

    @pytest.mark.parametrize("numbers", [[None] * N, [1] * N, [1, 2, None, 4, 5]])
    def test_names_of_files_are_not_believed(
        self, tmp_path: Path, numbers: list[int | None]
    ) -> None:
        tags = [{"InstanceNumber": number} for number in numbers]
        refused(series(tmp_path / "a", tags, affine=None), "Nothing tells the order of the 5")

    def test_the_frames_of_one_file_are_in_order(self, tmp_path: Path) -> None:
        write_enhanced(tmp_path / "a.dcm", PIXELS)
        np.testing.assert_array_equal(read_volume(tmp_path / "a.dcm").image, WANTED[::-1])

    @pytest.mark.parametrize("missing", ["PixelSpacing", "ImageOrientationPatient"])
    def test_positions_order_without_an_affine(self, tmp_path: Path, missing: str) -> None:
        tags = [{"InstanceNumber": N - n, missing: None} for n in range(N)]
        check(series(tmp_path / "a", tags), placed=False)

    def test_orientation_and_spacing_of_the_others(self, tmp_path: Path) -> None:
        """Slices of one stack have them in common."""
        tags: list[dict[str, Any]] = [{} for _ in range(N)]
        tags[3] = {"PixelSpacing": None, "ImageOrientationPatient": None}
        check(series(tmp_path / "a", tags), placed=True)


class TestNifti:
    STORED = np.random.default_rng(0).integers(1, 900, (6, 7, 5)).astype(np.int16)
    THEIRS = np.array([[-0.9, 0, 0, 10], [0, 0.8, 0, -20], [0, 0, 4.0, 30], [0, 0, 0, 1]])

    def written(self, path: Path, stored: np.ndarray | None = None, **dim_info: int) -> Path:
        nibabel = pytest.importorskip("nibabel")
        image = nibabel.Nifti1Image(self.STORED if stored is None else stored, self.THEIRS)
        image.header.set_dim_info(**dim_info)
        nibabel.save(image, path)
        return path

    @pytest.mark.parametrize(
        ("told", "axes"),
        [
            ({}, (2, 0, 1)),
            ({"freq": 0, "phase": 1, "slice": 2}, (2, 1, 0)),
            ({"freq": 1, "phase": 0, "slice": 2}, (2, 0, 1)),
            ({"freq": 2, "phase": 1, "slice": 0}, (0, 1, 2)),
            ({"slice": 0}, (0, 1, 2)),
            ({"slice": 1}, (1, 0, 2)),
            ({"phase": 1}, (2, 1, 0)),
            ({"freq": 0}, (2, 1, 0)),
            ({"phase": 2}, (1, 2, 0)),
            ({"freq": 1, "phase": 1, "slice": 2}, (2, 0, 1)),  # contradicts itself
        ],
    )
    def test_dim_info(
        self, tmp_path: Path, told: dict[str, int], axes: tuple[int, int, int]
    ) -> None:
        volume = read_volume(self.written(tmp_path / "a.nii", **told))
        np.testing.assert_array_equal(volume.image, self.STORED.transpose(axes))
        assert volume.affine is not None
        index = [1, 2, 3]
        place = np.zeros(3)
        place[list(axes)] = index
        np.testing.assert_allclose(volume.affine @ [*index, 1], self.THEIRS @ [*place, 1])
        assert volume.voxel_mm == pytest.approx([(0.9, 0.8, 4.0)[axis] for axis in axes])

    @pytest.mark.parametrize("code", [0, 2])
    def test_qform_where_the_sform_is_none(self, tmp_path: Path, code: int) -> None:
        nibabel = pytest.importorskip("nibabel")
        image = nibabel.Nifti1Image(self.STORED, None)
        image.set_qform(self.THEIRS, 1)
        image.header["sform_code"] = code
        for row in ("srow_x", "srow_y", "srow_z"):
            image.header[row] = 0
        nibabel.save(image, tmp_path / "a.nii")
        affine = read_volume(tmp_path / "a.nii").affine
        assert affine is not None
        np.testing.assert_allclose(affine[:, [1, 2, 0, 3]], self.THEIRS, atol=1e-5)

    @pytest.mark.parametrize("value", [0, np.nan, np.inf])
    def test_a_coded_geometry_that_is_none_is_said(
        self, tmp_path: Path, value: float, capsys: pytest.CaptureFixture[str]
    ) -> None:
        nibabel = pytest.importorskip("nibabel")
        image = nibabel.Nifti1Image(self.STORED, None)
        image.header["sform_code"], image.header["qform_code"] = 1, 0
        for row in ("srow_x", "srow_y", "srow_z"):
            image.header[row] = value
        nibabel.save(image, tmp_path / "a.nii")
        assert read_volume(tmp_path / "a.nii").affine is None
        assert "a.nii has a geometry (sform, qform) that is none" in capsys.readouterr().err

    @pytest.mark.parametrize("more", [(1,), (1, 1), (1, 1, 1, 1)])
    def test_trailing_ones(self, tmp_path: Path, more: tuple[int, ...]) -> None:
        path = self.written(tmp_path / "a.nii", self.STORED.reshape(*self.STORED.shape, *more))
        np.testing.assert_array_equal(read_volume(path).image, np.moveaxis(self.STORED, 2, 0))

    @pytest.mark.parametrize("more", [(2,), (1, 3)])
    def test_a_series_is_no_volume(self, tmp_path: Path, more: tuple[int, ...]) -> None:
        shape = (*self.STORED.shape, *more)
        path = self.written(tmp_path / "a.nii", np.ones(shape, np.int16))
        with pytest.raises(DataError, match="not a volume of three axes"):
            read_volume(path)


class TestHdf5:
    @staticmethod
    def kspace() -> np.ndarray:
        """Centred [S, C, H, W]."""
        random = np.random.default_rng(0)
        image = random.normal(size=(2, 3, 8, 6)) + 1j * random.normal(size=(2, 3, 8, 6))
        return np.fft.fftshift(image_to_kspace(image), (-2, -1)).astype(np.complex64)

    @pytest.mark.parametrize("as_bytes", [False, True])
    def test_axes_that_are_told_go_before_a_name(self, tmp_path: Path, as_bytes: bool) -> None:
        """fastMRI calls its dataset kspace, too, with readout before phase encode."""
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["kspace"] = self.kspace()
            file["kspace"].attrs["axes"] = np.bytes_("schw") if as_bytes else "schw"
        for name in ("a.h5", "a.h5:kspace"):
            scan = read_scan(tmp_path / name)
            images = kspace_to_image(scan.kspace)
            np.testing.assert_allclose(
                images, kspace_to_image(np.fft.ifftshift(self.kspace(), (-2, -1))), atol=1e-5
            )

    @pytest.mark.parametrize(
        "stored",
        ["pat", np.bytes_("pat"), np.array(["pat"], dtype=h5py.string_dtype()),
         np.array([b"pat"]), np.array([["pat"]], dtype=h5py.string_dtype())],
        ids=["text", "bytes", "array", "array-of-bytes", "matrix"],
    )  # fmt: skip
    def test_identifiers_however_they_are_stored(self, tmp_path: Path, stored: object) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["kspace"] = np.swapaxes(self.kspace(), -1, -2)
            file.attrs["patient_id"] = file.attrs["acquisition"] = stored
        scan = read_scan(tmp_path / "a.h5")
        assert (scan.subject, scan.contrast) == ("pat", "pat")

    @pytest.mark.parametrize("value", [None, "", b"\0\0", np.array([]), np.array(["a", "b"])])
    def test_what_is_no_text(self, value: object) -> None:
        assert attribute_text(value) is None


class TestMrd:
    def test_a_header_without_directions_does_not_move_its_slice(self, tmp_path: Path) -> None:
        ismrmrd = pytest.importorskip("ismrmrd")
        with ismrmrd.Dataset(str(tmp_path / "a.h5"), "dataset") as file:
            for number, pixels in enumerate(PIXELS):
                image = ismrmrd.Image.from_array(pixels.astype(np.uint16), image_type=1)
                head = image.getHead()
                head.slice = number
                if number != 2:
                    head.position[:] = (0, 0, 5.0 * number + 20)
                    head.read_dir[:], head.phase_dir[:], head.slice_dir[:] = np.eye(3).tolist()
                image.setHead(head)
                file.append_image("image_1", image)
        np.testing.assert_array_equal(read_volume(tmp_path / "a.h5").image, PIXELS)
