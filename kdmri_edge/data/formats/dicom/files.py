"""Which files and folders are DICOM, told by names and magic bytes (pydicom is not needed)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["DICOM_SUFFIXES", "dicom_files", "is_dicom", "is_series"]

DICOM_SUFFIXES: Final = (".dcm", ".ima")


def is_dicom(path: Path) -> bool:
    """Tell whether a file is DICOM: by its suffix, or by its magic bytes where it has none.

    Archives name files by numbers or UIDs, so digits after the last dot are no suffix. A DICOMDIR
    is an index, not an image.
    """
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        return True
    if suffix and not suffix[1:].isdigit():
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def dicom_files(path: Path) -> list[Path]:
    """The DICOM files straight in a folder, by name; of a file, that file."""
    return sorted(file for file in path.iterdir() if is_dicom(file)) if path.is_dir() else [path]


def is_series(path: Path) -> bool:
    """Tell whether a folder holds DICOM files straight in it, so that it is one volume."""
    try:
        return path.is_dir() and any(is_dicom(file) for file in sorted(path.iterdir()))
    except OSError:
        return False
