"""DICOM series of MR images, classic or enhanced (pydicom, extra `formats`).

A folder is one volume: one file per slice, or one file of many frames. H is the columns' index
(x), as for NIfTI, unless the header says that phase encode runs along the columns. Geometry is
that of Image Position, Image Orientation and Pixel Spacing (DICOM PS3.3, C.7.6.2), brought to
RAS+. Of the patient's identification nothing is kept but a key that tells subjects apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdmri_edge.data.components import intensities
from kdmri_edge.data.formats.dicom.files import DICOM_SUFFIXES, dicom_files
from kdmri_edge.data.formats.dicom.frames import (
    AGAIN,
    frames_of,
    group,
    is_image,
    open_dicom,
    pixel_bytes,
    reading_dicom,
)
from kdmri_edge.data.formats.dicom.stacking import stacked
from kdmri_edge.data.geometry import voxel_size
from kdmri_edge.data.sources import parse_name, source_sha256
from kdmri_edge.data.volume import Volume, checked_image
from kdmri_edge.errors import DataError
from kdmri_edge.utils.reading import check_claim

__all__ = ["dicom_name", "dicom_subject", "read_dicom"]


def dicom_name(path: Path) -> str:
    """A series is called as its folder, or its single file, without suffix."""
    known = path.suffix.lower() in DICOM_SUFFIXES
    return path.stem if known else path.name


def dicom_subject(path: Path) -> str:
    """A key that is the same for all series of a patient: `sub-NN` of the name, else a hash.

    The hash is a pseudonym, so that splits by subject hold without a patient's identification in
    tables and manifests.

    Raises:
        DataError: Not DICOM.
        MissingExtraError: pydicom is not installed.
    """
    name = dicom_name(path)
    if name.startswith("sub-"):
        return parse_name(name).subject
    files = dicom_files(path)
    header = open_dicom(files[0], pixels=False)
    with reading_dicom(files[0]):
        identity = str(header.get("PatientID") or header.get("StudyInstanceUID") or "")
    return f"dicom-{hashlib.sha256(identity.encode()).hexdigest()[:8]}" if identity else name


def read_dicom(path: Path) -> Volume:
    """Read a series.

    Args:
        path: A folder of DICOM files of one series, or one file (a slice, or enhanced).

    Returns:
        float32 magnitude volume, slices in the order that `stacking` finds, with voxel sizes and
        affine where the headers tell. Of a series with other components beside the magnitudes, the
        magnitudes.

    Raises:
        DataError: Unreadable or truncated, several series, several images of one position,
            slices that differ in matrix or orientation, are unevenly spaced or of unknown order,
            colour images, mosaics, negatives (MONOCHROME1), negative values, phases or parts of
            complex images alone, or no image at all.
        MissingExtraError: pydicom, or what it needs for a compressed file, is not installed.
    """
    with reading_dicom(path):
        return _read(Path(path))


def _read(path: Path) -> Volume:
    files = dicom_files(path)
    headers = [(file, open_dicom(file)) for file in files]
    images = [(file, header) for file, header in headers if is_image(header)]
    if not images:
        raise DataError(f"{path} holds no DICOM image.", "Give a folder of one series of images.")
    for file, header in images:
        if "PixelData" not in header and "FloatPixelData" not in header:
            raise DataError(f"{file} cannot be read as DICOM (no pixels).", AGAIN)
    _check_one_series(path, [header for _, header in images])
    check_claim(sum(pixel_bytes(header) for _, header in images), path)
    frames = [frame for file, header in images for frame in frames_of(file, header)]
    kept, left_out = intensities([frame.component for frame in frames], path)
    frames, affine = stacked(path, [frames[index] for index in kept])
    stack = np.stack([frame.pixels for frame in frames])
    spacing, between = frames[0].spacing, frames[0].between
    voxel = None
    if between is not None and spacing is not None:
        voxel = between, float(spacing[0]), float(spacing[1])
    if affine is not None:
        voxel = voxel_size(affine)
    if not _phase_encode_is_down(images[0][1]):
        stack = np.swapaxes(stack, 1, 2)
        affine = None if affine is None else affine[:, [0, 2, 1, 3]]
        voxel = None if voxel is None else (voxel[0], voxel[2], voxel[1])
    name = dicom_name(path)
    return Volume(
        image=checked_image(stack, path),
        name=name,
        subject=dicom_subject(path),
        contrast=parse_name(name).contrast,
        sha256=source_sha256(path),
        voxel_mm=voxel,
        affine=affine,
        left_out=left_out,
    )


def _check_one_series(path: Path, headers: Sequence[Any]) -> None:
    def series(header: Any) -> tuple[str, ...]:
        uid = header.get("SeriesInstanceUID")
        # Some archives drop the UID; then the study and the series' number have to do.
        alternative = (header.get("StudyInstanceUID"), header.get("SeriesNumber"))
        return (str(uid),) if uid else tuple(str(part) for part in alternative)

    found = {series(header) for header in headers}
    if len(found) > 1:
        raise DataError(
            f"{path} holds {len(found)} DICOM series.", "Give each series a folder of its own."
        )


def _phase_encode_is_down(header: Any) -> bool:
    """Whether phase was encoded along the columns, so that H is the rows' index."""
    kinds = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    places = (header, *(group(header, kind, "MRFOVGeometrySequence") for kind in kinds))
    found = (place.get("InPlanePhaseEncodingDirection") for place in places if place is not None)
    said = next((value for value in found if value), "")
    return str(said).startswith("COL")  # the enhanced object says COLUMN
