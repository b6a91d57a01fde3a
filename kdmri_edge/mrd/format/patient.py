"""Whose scan it is, of its header, for the DICOM objects that an archive is sent.

Of a patient's identification nothing else is read, kept or logged anywhere in this package.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final
from xml.etree import ElementTree

from kdmri_edge.data.formats.mrd_header import header_elements
from kdmri_edge.errors import DataError

__all__ = ["dicom_attributes"]

_UID: Final = re.compile(r"(?:0|[1-9]\d*)(?:\.(?:0|[1-9]\d*))+")


def _text(most: int) -> Callable[[str], str | None]:
    """Text of one line without a backslash, which would begin another value."""

    def read(value: str) -> str | None:
        line = " ".join(value.split()).replace("\\", " ")
        return line[:most] if line.isprintable() else None

    return read


def _uid(value: str) -> str | None:
    return value if len(value) <= 64 and _UID.fullmatch(value) else None


def _date(value: str) -> str | None:
    found = re.match(r"(\d{4})-(\d\d)-(\d\d)", value)
    return "".join(found.groups()) if found else None


def _time(value: str) -> str | None:
    found = re.match(r"([01]\d|2[0-3]):([0-5]\d):([0-5]\d)", value)
    return "".join(found.groups()) if found else None


def _number(value: str) -> str | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return f"{number:.8g}" if 0 < number < 1e9 else None


def _one_of(*words: str) -> Callable[[str], str | None]:
    return lambda value: value.upper() if value.upper() in words else None


_SEX: Final = _one_of("M", "F", "O")
_POSITION: Final = _one_of("HFP", "HFS", "HFDR", "HFDL", "FFP", "FFS", "FFDR", "FFDL")

_READ: Final[tuple[tuple[str, str, Callable[[str], str | None]], ...]] = (
    ("subjectInformation/patientName", "PatientName", _text(64)),
    ("subjectInformation/patientID", "PatientID", _text(64)),
    ("subjectInformation/patientBirthdate", "PatientBirthDate", _date),
    ("subjectInformation/patientGender", "PatientSex", _SEX),
    ("subjectInformation/patientWeight_kg", "PatientWeight", _number),
    ("subjectInformation/patientHeight_m", "PatientSize", _number),
    ("studyInformation/studyInstanceUID", "StudyInstanceUID", _uid),
    ("studyInformation/studyDate", "StudyDate", _date),
    ("studyInformation/studyTime", "StudyTime", _time),
    ("studyInformation/studyID", "StudyID", _text(16)),
    ("studyInformation/accessionNumber", "AccessionNumber", _text(16)),
    ("studyInformation/referringPhysicianName", "ReferringPhysicianName", _text(64)),
    ("studyInformation/studyDescription", "StudyDescription", _text(64)),
    ("studyInformation/bodyPartExamined", "BodyPartExamined", _text(16)),
    ("measurementInformation/frameOfReferenceUID", "FrameOfReferenceUID", _uid),
    ("measurementInformation/patientPosition", "PatientPosition", _POSITION),
    ("measurementInformation/protocolName", "ProtocolName", _text(64)),
    ("measurementInformation/seriesDate", "SeriesDate", _date),
    ("measurementInformation/seriesTime", "SeriesTime", _time),
    ("acquisitionSystemInformation/systemFieldStrength_T", "MagneticFieldStrength", _number),
)
"""Element of the header, attribute of DICOM (PS3.6), and what is taken of its text."""

_BY_CONTRAST: Final = (("TR", "RepetitionTime"), ("TE", "EchoTime"), ("TI", "InversionTime"))
"""Times of a sequence in milliseconds, one for each contrast, or one for all."""


def dicom_attributes(xml: str | bytes, contrast: int = 0) -> dict[str, Any]:
    """Return what a header says of patient, study and sequence, by DICOM's keywords.

    What is empty, or is not of the kind that DICOM wants, is left out; nothing is made up.

    Args:
        xml: The header.
        contrast: Whose times are wanted.
    """
    text = xml.decode("utf-8", "replace") if isinstance(xml, bytes) else xml
    try:
        root = header_elements(text)
    except (DataError, SyntaxError):
        return {}
    found: dict[str, Any] = {}
    for place, keyword, read in _READ:
        value = (root.findtext(place) or "").strip()
        if value and (taken := read(value)):
            found[keyword] = taken
    for name, keyword in _BY_CONTRAST:
        times = root.findall(f"sequenceParameters/{name}")
        if taken := _of_contrast(times, contrast):
            found[keyword] = taken
    if any(not str(value).isascii() for value in found.values()):
        found["SpecificCharacterSet"] = "ISO_IR 192"
    protocol = found.get("ProtocolName")
    series = (root.findtext("measurementInformation/seriesDescription") or "").strip()
    named = _text(50)(series) if series else protocol
    echo = f" echo {contrast + 1}" if contrast else ""
    found["SeriesDescription"] = f"{(named or '')[:42]} kdmri-edge{echo}".strip()
    return found


def _of_contrast(times: list[ElementTree.Element], contrast: int) -> str | None:
    if not times:
        return None
    return _number((times[contrast if contrast < len(times) else 0].text or "").strip())
