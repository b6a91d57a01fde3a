"""DICOM files whose compression nothing here decodes: that is no damage."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdmri_edge.data.formats.registry import read_volume
from kdmri_edge.errors import DataError

pydicom: Any = pytest.importorskip("pydicom")


def compressed(path: Path, syntax: str, stream: bytes) -> Path:
    """A slice of 8 x 8 whose pixels are a compressed stream."""
    header = pydicom.Dataset()
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3.4.5"
    header.PatientID, header.SeriesInstanceUID, header.Modality = "P", "1.2.3.4", "MR"
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows = header.Columns = 8
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, 0
    header.PixelData = pydicom.encaps.encapsulate([stream])
    header["PixelData"].is_undefined_length, header["PixelData"].VR = True, "OB"
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.TransferSyntaxUID = syntax
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header.save_as(path, enforce_file_format=True)
    return path


LOSSLESS = b"\xff\xd8\xff\xc3" + bytes(100) + b"\xff\xd9\x00\x00"


@pytest.mark.parametrize(
    ("syntax", "name", "plugin"),
    [
        ("JPEGLosslessSV1", "JPEG Lossless", "pylibjpeg pylibjpeg-libjpeg"),
        ("JPEGLSLossless", "JPEG-LS Lossless", "pylibjpeg pylibjpeg-libjpeg"),
    ],
)
def test_the_compression_and_its_decoder_are_named(
    tmp_path: Path, syntax: str, name: str, plugin: str
) -> None:
    uid = getattr(pydicom.uid, syntax)
    if pydicom.pixels.get_decoder(uid).is_available:
        pytest.skip("a decoder is installed")
    path = compressed(tmp_path / "a.dcm", uid, LOSSLESS)
    with pytest.raises(DataError, match=f"compressed as {name}.*no decoder is installed") as told:
        read_volume(path)
    assert told.value.remedy == f"Run `pip install {plugin}`, or export it uncompressed."


def test_a_damaged_stream_of_a_known_compression(tmp_path: Path) -> None:
    path = compressed(tmp_path / "a.dcm", pydicom.uid.RLELossless, bytes(80))
    with pytest.raises(DataError, match=r"RLE Lossless pixels of .* cannot be decoded"):
        read_volume(path)


def test_video_is_no_damage_either(tmp_path: Path) -> None:
    path = compressed(tmp_path / "a.dcm", pydicom.uid.MPEG2MPML, bytes(80))
    with pytest.raises(DataError, match=r"compressed as MPEG2.*which pydicom does not decode"):
        read_volume(path)


def test_short_pixels_are_damage(tmp_path: Path) -> None:
    path = compressed(tmp_path / "a.dcm", pydicom.uid.RLELossless, bytes(80))
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.PixelData = np.zeros(20, "<u2").tobytes()
    header["PixelData"].VR = "OW"
    header["PixelData"].is_undefined_length = False
    header.save_as(path)
    with pytest.raises(DataError, match="cannot be read as DICOM"):
        read_volume(path)
