"""What pixels are: magnitudes are read, whatever else an image can be is not taken for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from kdmri_edge.cli import main
from kdmri_edge.data.components import Component, intensities
from kdmri_edge.data.conversion import convert
from kdmri_edge.data.formats.registry import read_volume
from kdmri_edge.data.geometry import from_axes
from kdmri_edge.errors import DataError
from tests.core.data.written_dicom import write_enhanced, write_series, write_slice

PIXELS = np.random.default_rng(0).integers(1, 900, (3, 6, 5))
AXIAL = from_axes((0, 0, 4), (0, -1.5, 0), (-0.5, 0, 0), (50, 60, 10))


def refused(path: Path, words: str, remedy: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_volume(path)
    assert remedy in caught.value.remedy


class TestDicom:
    @pytest.mark.parametrize(
        ("tags", "words"),
        [
            ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, "phase images"),
            ({"ImageType": ["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"]}, "phase images"),
            ({"ImageType": ["ORIGINAL", "PRIMARY", "R", "ND"]}, "real-part images"),
            ({"ImageType": ["ORIGINAL", "PRIMARY", "R_FFE", "R", "FFE"]}, "real-part images"),
            ({"ImageType": ["ORIGINAL", "PRIMARY", "I_SE", "I", "SE"]}, "imaginary-part images"),
            ({"ComplexImageComponent": "PHASE"}, "phase images"),
            ({"ComplexImageComponent": "REAL"}, "real-part images"),
            ({"ComplexImageComponent": "IMAGINARY"}, "imaginary-part images"),
        ],
    )
    def test_no_intensities(self, tmp_path: Path, tags: dict[str, object], words: str) -> None:
        """Scanners store them as unsigned numbers, and often without rescaling."""
        write_series(tmp_path, PIXELS, AXIAL, **tags)
        refused(tmp_path, words, "series of the magnitudes")

    @pytest.mark.parametrize(
        "tags",
        [
            {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"]},
            {"ImageType": ["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"]},
            {"ImageType": ["ORIGINAL", "PRIMARY", "OTHER"]},
            {"ImageType": ["DERIVED", "SECONDARY"]},
            {"ImageType": "ORIGINAL"},
            {"ComplexImageComponent": "MAGNITUDE"},
            {},
        ],
    )
    def test_magnitudes_by_any_name(self, tmp_path: Path, tags: dict[str, object]) -> None:
        write_series(tmp_path, PIXELS, AXIAL, **tags)
        np.testing.assert_array_equal(read_volume(tmp_path).image, np.swapaxes(PIXELS, 1, 2))

    @pytest.mark.parametrize(("number", "words"), [(1, "phase"), (2, "real"), (3, "imaginary")])
    def test_ge_says_it_in_a_private_attribute(
        self, tmp_path: Path, number: int, words: str
    ) -> None:
        pydicom = pytest.importorskip("pydicom")
        write_slice(tmp_path / "a.dcm", PIXELS[0], AXIAL, Manufacturer="GE MEDICAL SYSTEMS")
        data = pydicom.dcmread(tmp_path / "a.dcm")
        data.private_block(0x43, "GEMS_PARM_01", create=True)
        data.add_new((0x43, 0x102F), "SS", number)
        data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        refused(tmp_path / "a.dcm", f"{words}.* images", "magnitudes")

    def test_magnitude_and_phase_in_one_series(self, tmp_path: Path) -> None:
        for index, pixels in enumerate(PIXELS):
            write_slice(tmp_path / f"m{index}.dcm", pixels, AXIAL, index,
                        ImageType=["ORIGINAL", "PRIMARY", "M"])  # fmt: skip
            write_slice(tmp_path / f"p{index}.dcm", pixels[::-1], AXIAL, index,
                        ImageType=["ORIGINAL", "PRIMARY", "P"])  # fmt: skip
        volume = read_volume(tmp_path)
        np.testing.assert_array_equal(volume.image, np.swapaxes(PIXELS, 1, 2))
        assert volume.left_out == ("3 phase images",)
        said = CliRunner().invoke(main, ["data", "inspect", str(tmp_path)])
        assert "not read: 3 phase images" in said.output
        assert "3 phase images" in convert(tmp_path, tmp_path / "a.npy").lost

    def test_frame_by_frame(self, tmp_path: Path) -> None:
        """An enhanced file may be MIXED as a whole."""
        pydicom = pytest.importorskip("pydicom")
        file = tmp_path / "a.dcm"
        write_enhanced(file, PIXELS, AXIAL)
        data = pydicom.dcmread(file)
        data.ComplexImageComponent = "MIXED"
        kinds = ["PHASE", "MAGNITUDE", "MAGNITUDE"]
        for kind, frame in zip(kinds, data.PerFrameFunctionalGroupsSequence, strict=True):
            item = pydicom.Dataset()
            item.ComplexImageComponent = kind
            frame.MRImageFrameTypeSequence = [item]
        data.save_as(file, enforce_file_format=True)
        volume = read_volume(file)
        np.testing.assert_array_equal(volume.image, np.swapaxes(PIXELS[:2], 1, 2))
        assert volume.left_out == ("1 phase image",)

    def test_a_frame_that_says_nothing_is_what_its_file_says(self, tmp_path: Path) -> None:
        pydicom = pytest.importorskip("pydicom")
        write_enhanced(tmp_path / "a.dcm", PIXELS, AXIAL)
        data = pydicom.dcmread(tmp_path / "a.dcm")
        data.ComplexImageComponent = "PHASE"
        for frame in data.PerFrameFunctionalGroupsSequence:
            item = pydicom.Dataset()
            item.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
            frame.MRImageFrameTypeSequence = [item]
        data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        refused(tmp_path / "a.dcm", "phase images", "magnitudes")

    def test_mosaic(self, tmp_path: Path) -> None:
        kind = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        write_slice(tmp_path / "a.dcm", PIXELS[0], AXIAL, ImageType=kind)
        refused(tmp_path / "a.dcm", "is a mosaic", "dcm2niix")

    def test_frames_called_a_mosaic_are_frames(self, tmp_path: Path) -> None:
        pydicom = pytest.importorskip("pydicom")
        write_enhanced(tmp_path / "a.dcm", PIXELS, AXIAL)
        data = pydicom.dcmread(tmp_path / "a.dcm")
        data.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE", "MOSAIC"]
        data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        np.testing.assert_array_equal(
            read_volume(tmp_path / "a.dcm").image, np.swapaxes(PIXELS, 1, 2)
        )

    @pytest.mark.parametrize(
        ("shown", "words", "remedy"),
        [
            ("MONOCHROME1", "MONOCHROME1", "as MONOCHROME2"),
            ("PALETTE COLOR", "colour images", "MR images themselves"),
            ("RGB", "colour images", "MR images themselves"),
        ],
    )
    def test_what_grey_values_do_not_show(
        self, tmp_path: Path, shown: str, words: str, remedy: str
    ) -> None:
        write_series(tmp_path, PIXELS, AXIAL, PhotometricInterpretation=shown)
        refused(tmp_path, words, remedy)

    def test_an_intercept_without_a_slope(self, tmp_path: Path) -> None:
        write_series(tmp_path, PIXELS, AXIAL, RescaleIntercept="50")
        assert read_volume(tmp_path).image.max() == PIXELS.max() + 50


class TestMrd:
    @staticmethod
    def written(
        path: Path, kinds: list[tuple[np.ndarray, int, int]], series: str = "image_1"
    ) -> Path:
        """Images as servers write them: (pixels, slice, IMTYPE)."""
        ismrmrd = pytest.importorskip("ismrmrd")
        with ismrmrd.Dataset(str(path), "dataset") as file:
            for pixels, number, kind in kinds:
                image = ismrmrd.Image.from_array(
                    pixels.astype(np.uint16), transpose=False, image_type=kind,
                    field_of_view=(160.0, 160.0, 5.0),
                )  # fmt: skip
                head = image.getHead()
                head.slice, head.position[:] = number, (0, 0, 5.0 * number)
                head.read_dir[:], head.phase_dir[:], head.slice_dir[:] = np.eye(3).tolist()
                image.setHead(head)
                file.append_image(series, image)
        return path

    @pytest.mark.parametrize(("kind", "words"), [(2, "phase"), (3, "real"), (4, "imaginary")])
    def test_no_intensities(self, tmp_path: Path, kind: int, words: str) -> None:
        path = self.written(tmp_path / "a.h5", [(p, s, kind) for s, p in enumerate(PIXELS)])
        refused(path, f"{words}.* images", "series of the magnitudes")

    @pytest.mark.parametrize("kind", [0, 1])
    def test_magnitudes(self, tmp_path: Path, kind: int) -> None:
        """A type that was not set says nothing."""
        path = self.written(tmp_path / "a.h5", [(p, s, kind) for s, p in enumerate(PIXELS)])
        np.testing.assert_array_equal(read_volume(path).image, PIXELS)

    @pytest.mark.parametrize("series", ["cpp", "images_0", "SimpleRecon"])
    def test_a_series_by_any_name(self, tmp_path: Path, series: str) -> None:
        images = [(p, s, 1) for s, p in enumerate(PIXELS)]
        path = self.written(tmp_path / "a.h5", images, series)
        np.testing.assert_array_equal(read_volume(path).image, PIXELS)

    def test_magnitude_and_phase_in_one_series(self, tmp_path: Path) -> None:
        images = [(p * f, s, k) for s, p in enumerate(PIXELS) for f, k in ((1, 1), (2, 2))]
        volume = read_volume(self.written(tmp_path / "a.h5", images))
        np.testing.assert_array_equal(volume.image, PIXELS)
        assert volume.affine is not None
        assert volume.left_out == ("3 phase images",)


def test_two_kinds_of_intensities_are_not_one_volume() -> None:
    with pytest.raises(DataError, match="magnitude and complex"):
        intensities([Component.MAGNITUDE, Component.COMPLEX], Path("a"))
