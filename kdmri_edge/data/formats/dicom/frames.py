"""The images inside DICOM files, classic or enhanced, with where each of them lies.

Attribute names are those of DICOM PS3.6; the enhanced objects hold them in functional groups, of
all frames together and of each (PS3.3, C.7.6.16).
"""

from __future__ import annotations

import contextlib
import math
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.components import Component
from kdmri_edge.errors import DataError
from kdmri_edge.utils import extras
from kdmri_edge.utils.reading import check_claim, reading

__all__ = ["AGAIN", "Frame", "frames_of", "group", "is_image", "open_dicom", "pixel_bytes",
           "reading_dicom"]  # fmt: skip

AGAIN: Final = "The file is damaged or cut short: copy it again."


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frame:
    """One image.

    Attributes:
        file: That it comes from.
        pixels: float32 [rows, columns], slope and intercept applied.
        component: What the pixels are.
        position: Of the first pixel, millimetres in LPS+; like all that follows, None where the
            header is silent.
        cosines: Directions along a row and along a column, [6], LPS+.
        spacing: Millimetres between rows and between columns, [2].
        between: Millimetres from slice to slice as the header says.
        location: SliceLocation, millimetres.
        number: Its order by InstanceNumber and frame.
    """

    file: Path
    pixels: NDArray[np.float32]
    component: Component
    position: NDArray[np.float64] | None
    cosines: NDArray[np.float64] | None
    spacing: NDArray[np.float64] | None
    between: float | None
    location: float | None
    number: float | None


def open_dicom(path: Path, *, pixels: bool = True) -> Any:
    """Open a file as a pydicom Dataset; without `pixels` its header alone.

    Raises:
        DataError: Not DICOM, or damaged.
        MissingExtraError: pydicom is not installed.
    """
    pydicom: Any = extras.require("pydicom", extra="formats")
    with reading_dicom(path):
        try:
            _check_deflated(path)
            return pydicom.dcmread(path, stop_before_pixels=not pixels)
        except pydicom.errors.InvalidDicomError as error:
            raise DataError(
                f"{path} cannot be read as DICOM (it does not begin with the header of its files).",
                "Copy it again; old files without that header dcmtk's dcmconv writes with one.",
            ) from error


@contextlib.contextmanager
def reading_dicom(path: Path) -> Iterator[None]:
    """Read a file, or values of its header, which pydicom interprets when they are asked for.

    Raises:
        DataError: Whatever pydicom raises, of any type, for bytes that make no sense.
    """
    with reading(path, "DICOM", remedy=AGAIN), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of values that are read nevertheless
        yield


_DEFLATED: Final = "1.2.840.10008.1.2.1.99"
_BEFORE_META: Final = 132 + 12  # preamble, prefix, and the element that gives the length
_PIECE: Final = 1 << 24


def _check_deflated(path: Path) -> None:
    """Compare the size of what a file holds in compressed form as a whole with what is allowed.

    pydicom would unpack all of it at once.
    """
    reader: Any = extras.require("pydicom.filereader", extra="formats")
    meta = reader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != _DEFLATED:
        return
    with path.open("rb") as stream:
        stream.seek(_BEFORE_META + int(meta.FileMetaInformationGroupLength))
        unpacker, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not unpacker.eof and (data := unpacker.unconsumed_tail or stream.read(_PIECE)):
            size += len(unpacker.decompress(data, _PIECE))
            check_claim(size, path)


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
    """All images of one file, intensities with slope and intercept.

    Raises:
        DataError: Colour, an inverted grey scale, a mosaic, damage, or a header that makes no
            sense.
        MissingExtraError: What pydicom needs for a compressed file is not installed.
    """
    _check_pixels(file, header)
    check_claim(pixel_bytes(header), file)
    try:
        pixels = np.asarray(header.pixel_array)
    except Exception as error:  # of any type, for bytes that make no sense
        raise _undecoded(file, header, error) from error
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    for index, image in enumerate(pixels):
        own = per_frame[index] if per_frame and index < len(per_frame) else None
        yield _frame(file, header, own, image, index)


def pixel_bytes(header: Any) -> int:
    """Bytes of all images of a file, as they are read."""
    counts = [header.get(name) for name in ("Rows", "Columns", "NumberOfFrames")]
    pixels = math.prod(1 if count in (None, "") else int(count) for count in counts)
    return pixels * np.dtype(np.float32).itemsize


def _undecoded(file: Path, header: Any, error: Exception) -> DataError:
    """Why a file's pixels cannot be had: no decoder of their compression, or damage."""
    pixels: Any = extras.require("pydicom.pixels", extra="formats")
    syntax = header.file_meta.get("TransferSyntaxUID")
    damaged = DataError(f"{file} cannot be read as DICOM ({type(error).__name__}).", AGAIN)
    try:
        if not syntax.is_compressed:
            return damaged
        decoder = pixels.get_decoder(syntax)
    except (AttributeError, ValueError):  # none is named, or it is no transfer syntax
        return damaged
    except NotImplementedError:
        return DataError(
            f"{file} is compressed as {syntax.name}, which pydicom does not decode.",
            "Export it uncompressed.",
        )
    install = _plugins(decoder.missing_dependencies)
    if decoder.is_available:
        return DataError(
            f"The {syntax.name} pixels of {file} cannot be decoded ({type(error).__name__}).",
            f"The file is damaged, or needs another decoder (`{install}`): copy it again, or export"
            " it uncompressed."
            if install
            else AGAIN,
        )
    return DataError(
        f"{file} is compressed as {syntax.name}, for which no decoder is installed.",
        f"Run `{install}`, or export it uncompressed." if install else "Export it uncompressed.",
    )


def _plugins(missing: list[str]) -> str:
    """How to install a decoder, of what pydicom says of those that are not there."""
    for line in missing:
        if line.startswith("pylibjpeg - requires "):
            names = [part.split(">")[0] for part in line.partition("requires ")[2].split(" and ")]
            return f"pip install {' '.join(names)}"
    return ""


def _check_pixels(file: Path, header: Any) -> None:
    """Refuse what stored numbers do not show by themselves."""
    shown = str(header.get("PhotometricInterpretation") or "MONOCHROME2")
    if shown == "MONOCHROME1":
        raise DataError(
            f"{file} is MONOCHROME1: its lowest values are the brightest, as in a negative.",
            "Export it as MONOCHROME2.",
        )
    if int(header.get("SamplesPerPixel", 1)) != 1 or shown != "MONOCHROME2":
        raise DataError(f"{file} holds colour images.", "Give the MR images themselves.")
    # Enhanced files of Siemens' later software keep the word, and have a frame for each slice.
    mosaic = "MOSAIC" in _words(header.get("ImageType"))
    if mosaic and int(header.get("NumberOfFrames") or 1) == 1:
        raise DataError(
            f"{file} is a mosaic: many slices in one picture.",
            "Take it apart with dcm2niix, and give the .nii.gz; or export it without mosaic.",
        )


_COMPONENTS: Final = {
    "P": Component.PHASE, "PHASE": Component.PHASE, "PHASE MAP": Component.PHASE,
    "R": Component.REAL, "REAL": Component.REAL,
    "I": Component.IMAGINARY, "IMAGINARY": Component.IMAGINARY,
}  # fmt: skip
"""Words of ImageType, FrameType and ComplexImageComponent; Philips adds the sequence (R_FFE)."""

_GE_COMPONENT: Final = (0x0043, 0x102F)
_GE_COMPONENTS: Final = {1: Component.PHASE, 2: Component.REAL, 3: Component.IMAGINARY}


def _words(values: Any) -> list[str]:
    if values is None or isinstance(values, str):
        return [values.upper()] if values else []
    return [str(value).strip().upper() for value in values]


def _component(header: Any, frame_type: list[Any]) -> Component:
    """What pixels are, by whatever in the headers says that they are no magnitudes.

    Args:
        header: Of the file.
        frame_type: Items of MRImageFrameTypeSequence, of the frame and of all frames.
    """
    for holder in (*frame_type, header):
        told = _words(holder.get("ComplexImageComponent"))
        said = list(told)
        for keyword in ("ImageType", "FrameType"):
            said += _words(holder.get(keyword))[2:4]
        for word in said:
            known = _COMPONENTS.get(word) or _COMPONENTS.get(word.partition("_")[0])
            if known is not None:
                return known
        if holder is not header and "MAGNITUDE" in told:
            return Component.MAGNITUDE  # the frame knows better than its file
    private = header.get(_GE_COMPONENT)
    if private is not None and str(header.get("Manufacturer", "")).upper().startswith("GE"):
        with contextlib.suppress(TypeError, ValueError):
            value = private.value
            number = int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)
            return _GE_COMPONENTS.get(number, Component.MAGNITUDE)
    return Component.MAGNITUDE


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
        if slope is not None or intercept is not None:
            scaled = scaled * np.float32(1 if slope is None else slope) + np.float32(intercept or 0)
        location, number = header.get("SliceLocation"), header.get("InstanceNumber")
        kinds = [group(holder, "MRImageFrameTypeSequence") for holder in (own, shared)]
        return Frame(
            file=file,
            pixels=scaled,
            component=_component(header, [kind for kind in kinds if kind is not None]),
            position=position,
            cosines=cosines,
            spacing=spacing,
            between=None if between is None else abs(float(between)) or None,
            location=None if location in (None, "") else float(location),
            number=None if number in (None, "") else int(number) * 100_000 + index,
        )
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{file} has a header that makes no sense ({error}).", "Export it again."
        ) from error
