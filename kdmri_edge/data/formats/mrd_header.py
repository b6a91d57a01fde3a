"""What readers share of an ISMRMRD header: its elements, and how much of a readout is image.

MRD files and fastMRI's carry it. Elements are found by their names alone: exporters leave the
namespace out, or write it with a prefix of their own.
"""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

from kdmri_edge.errors import DataError

__all__ = ["header_elements", "image_matrix", "pixels_within", "readout_pixels"]


def header_elements(text: str) -> ElementTree.Element:
    """Parse a header; tags have no namespace.

    Raises:
        DataError: It declares entities, which could grow without bound.
        SyntaxError: It is no XML.
    """
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", text):
        raise DataError("The scan's header declares entities.", "MRD headers need none.")
    root = ElementTree.fromstring(text.strip().strip("\0"))
    for element in root.iter():
        element.tag = str(element.tag).rpartition("}")[2]
    return root


def pixels_within(count: int, part: float, whole: float) -> int:
    """Pixels of a field of view that is part of a whole one of `count` pixels.

    How much of a readout is image is told by comparing fields of view, not by matrices: a scanner
    may interpolate its images to a finer matrix.

    Args:
        count: Pixels of the encoded field of view.
        part: Field of view of the image, in the unit of `whole`.
        whole: Encoded field of view; where either is not told (0 or less), all pixels are image.
    """
    if not (part > 0 and whole > 0 and math.isfinite(count * part / whole)):
        return count
    return max(1, min(count, round(count * part / whole)))


def readout_pixels(text: str, count: int) -> int | None:
    """How many of a readout's points are image, by the first encoding of a header.

    Its fields of view tell; where they are missing, the matrix of its image.

    Args:
        text: A header.
        count: Points of the readout.

    Returns:
        None where the header does not tell, or is none.
    """
    try:
        root = header_elements(text)
        encoding = root if root.tag == "encoding" else root.find("encoding")
        if encoding is None:
            return None
        whole, part, matrix = (
            float(encoding.findtext(place) or 0)
            for place in (
                "encodedSpace/fieldOfView_mm/x",
                "reconSpace/fieldOfView_mm/x",
                "reconSpace/matrixSize/x",
            )
        )
    except (DataError, SyntaxError, ValueError):
        return None
    if whole > 0 and part > 0:
        return pixels_within(count, part, whole)
    return int(matrix) if 1 <= matrix <= count else None


def image_matrix(text: str) -> tuple[int, int] | None:
    """Pixels (readout, phase encode) of the image that the first encoding of a header tells.

    Args:
        text: A header.

    Returns:
        None where the header does not tell, or is none.
    """
    try:
        root = header_elements(text)
        encoding = root if root.tag == "encoding" else root.find("encoding")
        if encoding is None:
            return None
        sides = [
            int(float(encoding.findtext(f"reconSpace/matrixSize/{axis}") or 0)) for axis in "xy"
        ]
    except (DataError, SyntaxError, ValueError, OverflowError):
        return None
    return (sides[0], sides[1]) if min(sides) >= 1 else None
