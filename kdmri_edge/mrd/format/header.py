"""The XML header of a scan: what a Cartesian reconstruction has to know of it."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree

from kdmri_edge.data.formats.mrd_header import header_elements, pixels_within
from kdmri_edge.errors import DataError
from kdmri_edge.mrd.format.identity import NAMESPACE

__all__ = ["Encoding", "read_encoding", "write_encoding"]

_AGAIN: Final = "This reads Cartesian 2-D multi-slice scans."
_LARGEST: Final = 8192  # samples along an axis: far above any scan, far below what fills a memory
_SAME: Final = 0.02  # of a field of view: what rounding to pixels leaves
_WIDEST: Final = 1e4  # mm: above any scanner, far below what overflows an affine in float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """The encoded space of a scan.

    Attributes:
        lines: Phase-encode lines H of the full matrix, oversampling included.
        samples: Samples of the full readout, oversampling included.
        width: Readout pixels W once oversampling is removed.
        rows: Rows of the image once phase oversampling is removed, at most `lines`.
        fov_mm: Field of view along readout, phase encode (both without oversampling) and slice.
        centre: Number of the line through zero frequency.
        first: Lowest line number that is acquired.
        last: Highest line number that is acquired.
        averages: How often each line is acquired.
        coils: Receive channels, None where the header does not tell.
        embedded_calibration: Calibration lines belong to the imaging scan: they fill lines that
            are not imaged.
        partitions: Of the encoded matrix. Converters write more than 1 for some 2-D scans, whose
            readouts then all count partition 0.
        vendor: Who made the scanner; None where the header does not tell.
        finer: (rows, columns) of the image that the header asks for, where that is a finer one than
            the encoded matrix gives; None where it is not.
        protocol: Names of the protocol and of the series; empty where the header does not tell.
    """

    lines: int
    samples: int
    width: int
    rows: int
    fov_mm: tuple[float, float, float]
    centre: int
    first: int
    last: int
    averages: int = 1
    coils: int | None = None
    embedded_calibration: bool = False
    partitions: int = 1
    vendor: str | None = None
    finer: tuple[int, int] | None = None
    protocol: tuple[str, ...] = ()


def read_encoding(xml: str | bytes) -> Encoding:
    """Read the first encoding of a header.

    Elements that the schema does not know are passed over, since vendors add some. Whole numbers
    may be written as "32.0", as some converters do.

    Raises:
        DataError: Not such XML, not Cartesian, limits of several partitions, or sizes that make no
            sense.
    """
    from ismrmrd.xsd import ismrmrdHeader
    from xsdata.exceptions import ConverterWarning
    from xsdata.formats.dataclass.parsers import XmlParser
    from xsdata.formats.dataclass.parsers.config import ParserConfig

    text = xml.decode("utf-8", "replace") if isinstance(xml, bytes) else xml
    try:
        root = header_elements(text)
        for encoding in root.iter("encoding"):
            whole, recon = encoding.find("encodedSpace/fieldOfView_mm"), encoding.find("reconSpace")
            # without a field of view of the image nothing tells that part of the encoded one is air
            if whole is not None and recon is not None and recon.find("fieldOfView_mm") is None:
                recon.append(copy.deepcopy(whole))
        for element in root.iter():  # the schema's classes know elements by its namespace alone
            element.tag = f"{{{NAMESPACE}}}{element.tag}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConverterWarning)
            config = ParserConfig(fail_on_unknown_properties=False)
            header = XmlParser(config=config).from_bytes(ElementTree.tostring(root), ismrmrdHeader)
        return _encoding(header)
    except DataError:
        raise
    # a document of another kind makes the generated classes and their parser raise anything
    except Exception as error:
        raise DataError(
            f"The scan's header is no MRD header ({type(error).__name__}).",
            "It is the XML of an ismrmrdHeader with an encoding, its spaces and its limits.",
        ) from None


def _encoding(header: Any) -> Encoding:
    encoding = header.encoding[0]
    trajectory = str(getattr(encoding.trajectory, "value", encoding.trajectory)).lower()
    if trajectory != "cartesian":
        raise DataError(f"The scan's trajectory is {trajectory[:20]}, not Cartesian.", _AGAIN)
    encoded, recon = encoding.encodedSpace, encoding.reconSpace
    samples, lines = _whole(encoded.matrixSize.x), _whole(encoded.matrixSize.y)
    partitions = max(_whole(encoded.matrixSize.z), 1)
    limits = encoding.encodingLimits
    depth = None if limits is None else limits.kspace_encoding_step_2
    if depth is not None and _whole(depth.maximum) > 0:
        raise DataError(f"The scan encodes {_whole(depth.maximum) + 1} partitions.", _AGAIN)
    if not (0 < samples <= _LARGEST and 0 < lines <= _LARGEST):
        raise DataError(
            f"The scan's encoded matrix is {samples} x {lines}.", f"1 to {_LARGEST} can be read."
        )
    whole, part = encoded.fieldOfView_mm, recon.fieldOfView_mm
    if not all(
        math.isfinite(each) for space in (whole, part) for each in (space.x, space.y, space.z)
    ):
        raise ValueError("a field of view that is not finite")
    if max(abs(each) for space in (whole, part) for each in (space.x, space.y, space.z)) > _WIDEST:
        raise DataError(
            f"The scan's field of view is {whole.x:g} x {whole.y:g} mm.",
            f"No scanner encodes more than {_WIDEST:g} mm; fieldOfView_mm is in millimetres.",
        )
    if 0 < whole.x < 1 and 0 < whole.y < 1:
        raise DataError(
            f"The scan's field of view is {whole.x:g} x {whole.y:g} mm, as if given in metres.",
            "Give fieldOfView_mm, positions and all lengths in millimetres.",
        )
    step = None if limits is None else limits.kspace_encoding_step_1
    first, last, centre = (
        (0, lines - 1, lines // 2)
        if step is None
        else (_whole(step.minimum), _whole(step.maximum), _whole(step.center))
    )
    if not (first <= centre <= last and last - first < lines):
        raise DataError(
            f"The scan's lines go from {first} to {last} with centre {centre}, of {lines}.",
            "The limits of kspace_encoding_step_1 lie within the encoded matrix.",
        )
    system = header.acquisitionSystemInformation
    width = pixels_within(samples, part.x, whole.x)
    rows = pixels_within(lines, part.y, whole.y)
    return Encoding(
        lines=lines,
        samples=samples,
        width=width,
        rows=rows,
        fov_mm=(
            float(whole.x) * width / samples,
            float(whole.y) * rows / lines,
            float(part.z),
        ),
        centre=centre,
        first=first,
        last=last,
        averages=1
        if limits is None or limits.average is None
        else _whole(limits.average.maximum) + 1,
        coils=None
        if system is None or not system.receiverChannels
        else _whole(system.receiverChannels),
        embedded_calibration=_embedded(encoding),
        partitions=partitions,
        vendor=None if system is None else system.systemVendor or None,
        finer=_finer(recon, (rows, width), (whole.y * rows / lines, whole.x * width / samples)),
        protocol=_protocol(header.measurementInformation),
    )


def _finer(
    recon: Any, matrix: tuple[int, int], fov_mm: tuple[float, float]
) -> tuple[int, int] | None:
    """Return the matrix that a header asks for, where it is finer than what is encoded.

    The size of its pixels counts: of a wider field of view than was encoded, which its matrix then
    covers, only the encoded part is there.

    Args:
        recon: The header's space of the image.
        matrix: (rows, columns) of the image that are encoded.
        fov_mm: Their field of view.
    """
    try:
        asked = (_whole(recon.matrixSize.y), _whole(recon.matrixSize.x))
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None  # no matrix that can be read is no wish
    widths = (recon.fieldOfView_mm.y, recon.fieldOfView_mm.x)
    wanted = tuple(
        count if not 0 < own < (1 - _SAME) * width else round(count * own / width)
        for count, width, own in zip(asked, widths, fov_mm, strict=True)
    )
    finer = wanted[0] > matrix[0] or wanted[1] > matrix[1]
    return (wanted[0], wanted[1]) if finer else None


def _protocol(measurement: Any) -> tuple[str, ...]:
    if measurement is None:
        return ()
    names = (measurement.protocolName, measurement.seriesDescription)
    return tuple(str(name) for name in names if name)


def _whole(value: Any) -> int:
    """A whole number, which the parser leaves as text where it is written "32.0".

    Raises:
        ValueError: It is none.
    """
    number = float(value)
    if not number.is_integer():
        raise ValueError(f"{value} is no whole number")
    return int(number)


def _embedded(encoding: Any) -> bool:
    """Tell whether calibration lines are part of the imaging scan (GRAPPA with integrated lines).

    Those of a separate or external calibration scan have another contrast or another time.
    """
    parallel = encoding.parallelImaging
    mode = None if parallel is None else parallel.calibrationMode
    return str(getattr(mode, "value", mode)).lower() == "embedded"


def write_encoding(encoding: Encoding, *, slices: int = 1, repetitions: int = 1) -> str:
    """Return the header of a scan, as XML."""
    from ismrmrd import xsd

    def limit(maximum: int, minimum: int = 0, centre: int = 0) -> Any:
        return xsd.limitType(minimum=minimum, maximum=maximum, center=centre)

    def space(x: int, y: int, fov: tuple[float, float, float]) -> Any:
        return xsd.encodingSpaceType(
            matrixSize=xsd.matrixSizeType(x=x, y=y, z=1),
            fieldOfView_mm=xsd.fieldOfViewMm(x=fov[0], y=fov[1], z=fov[2]),
        )

    fx, fy, fz = encoding.fov_mm
    header = xsd.ismrmrdHeader(
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=128000000),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            receiverChannels=encoding.coils, systemVendor=encoding.vendor
        ),
        encoding=[
            xsd.encodingType(
                trajectory=xsd.trajectoryType.CARTESIAN,
                encodedSpace=space(
                    encoding.samples,
                    encoding.lines,
                    (
                        fx * encoding.samples / encoding.width,
                        fy * encoding.lines / encoding.rows,
                        fz,
                    ),
                ),
                reconSpace=space(encoding.width, encoding.rows, encoding.fov_mm),
                encodingLimits=xsd.encodingLimitsType(
                    kspace_encoding_step_1=limit(encoding.last, encoding.first, encoding.centre),
                    average=limit(encoding.averages - 1),
                    slice=limit(slices - 1),
                    repetition=limit(repetitions - 1),
                ),
            )
        ],
    )
    return str(header.toXML("utf-8"))
