"""The images inside DICOM files, classic or enhanced, with where each of them lies.

Attribute names are those of DICOM PS3.6; the enhanced objects hold them in functional groups, of
all frames together and of each (PS3.3, C.7.6.16).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import DataError
from kdmri_edge.utils import extras

__all__ = ["AGAIN", "Frame", "Place", "frames_of", "group", "is_image", "open_dicom"]

AGAIN: Final = "The file is damaged or cut short: copy it again."


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Place:
    """Where an image lies, millimetres in LPS+.

    Attributes:
        position: Of the first pixel.
        rows: From a row to the next.
        columns: From a column to the next.
    """

    position: NDArray[np.float64]
    rows: NDArray[np.float64]
    columns: NDArray[np.float64]

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector across the image."""
        across = np.cross(self.columns, self.rows)
        return across / (float(np.linalg.norm(across)) or 1.0)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frame:
    """One image.

    Attributes:
        pixels: float32 [rows, columns], slope and intercept applied.
        place: None where the header does not tell all of it.
        spacing: Millimetres between rows and between columns, None where the header is silent.
        between: Millimetres from slice to slice as the header says, None where it does not.
        number: Its order where no places tell.
    """

    pixels: NDArray[np.float32]
    place: Place | None
    spacing: tuple[float, float] | None
    between: float | None
    number: int


def open_dicom(path: Path, *, pixels: bool = True) -> Any:
    """Open a file as a pydicom Dataset; without `pixels` its header alone.

    Raises:
        DataError: Not DICOM, or damaged.
        MissingExtraError: pydicom is not installed.
    """
    pydicom: Any = extras.require("pydicom", extra="formats")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that we do not look at
            return pydicom.dcmread(path, stop_before_pixels=not pixels)
    # pydicom lets errors of any type through for bytes that make no sense
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as DICOM ({type(error).__name__}).", AGAIN
        ) from error


def is_image(header: Any) -> bool:
    """Whether a file should hold pixels; reports and presentation states hold none.

    It goes by the class that the file declares first, since a file may be cut short after that.
    """
    declared = header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID")
    return "Rows" in header or "Image Storage" in str(getattr(declared, "name", ""))


def group(holder: Any, *names: str) -> Any | None:
    """The first item of a sequence in the first item of a sequence..., None where one lacks."""
    for name in names:
        items = holder.get(name) if holder is not None else None
        holder = items[0] if items else None
    return holder


def frames_of(file: Path, header: Any) -> Iterator[Frame]:
    """All images of one file, intensities with slope and intercept."""
    if int(header.get("SamplesPerPixel", 1)) != 1:
        raise DataError(f"{file} holds colour images.", "Give the MR images themselves.")
    try:
        pixels = np.asarray(header.pixel_array)
    except ImportError as error:
        raise DataError(
            f"{file} is compressed in a way that pydicom cannot open by itself.",
            "Install pylibjpeg and pylibjpeg-openjpeg, or export it uncompressed.",
        ) from error
    except Exception as error:  # as above: of any type
        raise DataError(
            f"{file} cannot be read as DICOM ({type(error).__name__}).", AGAIN
        ) from error
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    for index, image in enumerate(pixels):
        own = per_frame[index] if per_frame and index < len(per_frame) else None
        yield _frame(file, header, own, image, index)


def _frame(file: Path, header: Any, own: Any | None, image: NDArray[Any], index: int) -> Frame:
    shared = group(header, "SharedFunctionalGroupsSequence")

    def value(keyword: str, sequence: str) -> Any | None:
        """An attribute of the frame, of all frames, or of the classic header."""
        for holder in (group(own, sequence), group(shared, sequence), header):
            if holder is not None and holder.get(keyword) not in (None, ""):
                return holder.get(keyword)
        return None

    def vector(keyword: str, sequence: str, size: int) -> NDArray[np.float64] | None:
        stored = value(keyword, sequence)
        if stored is None:
            return None
        numbers = np.array([float(number) for number in stored])
        if numbers.shape != (size,) or not np.isfinite(numbers).all():
            raise ValueError(f"{keyword} is not {size} numbers")
        return numbers

    try:
        slope = value("RescaleSlope", "PixelValueTransformationSequence")
        intercept = value("RescaleIntercept", "PixelValueTransformationSequence")
        position = vector("ImagePositionPatient", "PlanePositionSequence", 3)
        cosines = vector("ImageOrientationPatient", "PlaneOrientationSequence", 6)
        spacing = vector("PixelSpacing", "PixelMeasuresSequence", 2)
        between = value("SpacingBetweenSlices", "PixelMeasuresSequence") or value(
            "SliceThickness", "PixelMeasuresSequence"
        )
        scaled = image.astype(np.float32)
        if slope is not None:
            scaled = scaled * np.float32(slope) + np.float32(intercept or 0)
        place = None
        if position is not None and cosines is not None and spacing is not None:
            place = Place(
                position=position, rows=cosines[3:] * spacing[0], columns=cosines[:3] * spacing[1]
            )
        return Frame(
            pixels=scaled,
            place=place,
            spacing=None if spacing is None else (float(spacing[0]), float(spacing[1])),
            between=None if between is None else abs(float(between)) or None,
            number=int(header.get("InstanceNumber") or 0) * 100_000 + index,
        )
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{file} has a header that makes no sense ({error}).", "Export it again."
        ) from error
