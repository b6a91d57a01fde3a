"""DICOM files as a scanner would write them, made with pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdmri_edge.data.geometry import LPS, Affine, voxel_size

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED = "1.2.840.10008.5.1.4.1.1.4.1"
SERIES = "1.2.826.0.1.3680043.2.1143.1"


def _dataset(sop_class: str, pixels: np.ndarray) -> Any:
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = sop_class, pydicom.uid.generate_uid()
    data.PatientName, data.PatientID, data.PatientBirthDate = "Doe^Jane", "MRN-4711", "19660101"
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", SERIES
    data.StudyDate, data.AccessionNumber = "20240206", "A-99"
    data.Modality, data.SamplesPerPixel, data.PhotometricInterpretation = "MR", 1, "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, int(pixels.min() < 0)
    data.PixelData = pixels.astype("<i2" if pixels.min() < 0 else "<u2").tobytes()
    data["PixelData"].VR = "OW"
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return data


def _geometry(affine: Affine, index: int) -> dict[str, list[float]]:
    """Attributes of slice `index`, for an affine of [slice, row, column]."""
    lps, steps = LPS @ affine, voxel_size(affine)
    position = lps @ [index, 0, 0, 1]
    cosines = [*(lps[:3, 2] / steps[2]), *(lps[:3, 1] / steps[1])]
    return {
        "ImagePositionPatient": [round(float(x), 8) for x in position[:3]],
        "ImageOrientationPatient": [round(float(x), 10) for x in cosines],
        "PixelSpacing": [round(float(x), 8) for x in steps[1:]],
    }


def write_slice(
    path: Path, pixels: np.ndarray, affine: Affine | None = None, index: int = 0, **tags: Any
) -> None:
    """One classic file; `pixels` [rows, columns]; a tag of None is taken out."""
    data = _dataset(MR_IMAGE, pixels)
    data.InstanceNumber = index + 1
    if affine is not None:
        for keyword, value in _geometry(affine, index).items():
            setattr(data, keyword, value)
        data.SliceThickness = round(voxel_size(affine)[0], 8)
    for keyword, value in tags.items():
        if value is not None:
            setattr(data, keyword, value)
        elif keyword in data:
            delattr(data, keyword)
    data.save_as(path, enforce_file_format=True)


def write_series(
    folder: Path, pixels: np.ndarray, affine: Affine | None = None, **tags: Any
) -> None:
    """A classic series whose names, numbers and positions are in different orders."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(1).permutation(len(pixels))
    for number, index in enumerate(order):
        write_slice(folder / f"IM{number:03d}.dcm", pixels[index], affine, int(index), **tags)


def write_enhanced(path: Path, pixels: np.ndarray, affine: Affine | None = None) -> None:
    """One enhanced file of all slices, [slice, row, column], frames in reversed order."""
    pydicom = pytest.importorskip("pydicom")
    data = _dataset(ENHANCED, np.asarray(pixels)[::-1])
    data.NumberOfFrames = len(pixels)

    def item(**values: Any) -> Any:
        holder = pydicom.Dataset()
        for keyword, value in values.items():
            setattr(holder, keyword, value)
        return holder

    scale = item(RescaleSlope="1", RescaleIntercept="0")
    shared, frames = item(PixelValueTransformationSequence=[scale]), []
    for index in reversed(range(len(pixels))):
        values = _geometry(affine, index) if affine is not None else {}
        frame = item()
        for sequence, keyword in (
            ("PlanePositionSequence", "ImagePositionPatient"),
            ("PlaneOrientationSequence", "ImageOrientationPatient"),
            ("PixelMeasuresSequence", "PixelSpacing"),
        ):
            if keyword in values:
                setattr(frame, sequence, [item(**{keyword: values[keyword]})])
        frames.append(frame)
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = frames
    data.save_as(path, enforce_file_format=True)
