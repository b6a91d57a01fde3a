"""Reading a file of images by its suffix; the formats are in `data.formats`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypedDict

from kdmri_edge.data.dataset_name import split_dataset
from kdmri_edge.data.dicom_files import is_dicom, is_series
from kdmri_edge.data.formats import FORMATS
from kdmri_edge.data.names import parse_name
from kdmri_edge.data.source_hash import source_sha256
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError
from kdmri_edge.extras import load_attribute

Reader = Callable[[Path], Volume]

READERS: Final[dict[str, str]] = {suffix: row.volume for row in FORMATS for suffix in row.suffixes}
"""Suffix (lower case, with the dot) -> "module:function" of a `Reader`."""


def known_suffix(path: Path, table: Iterable[str]) -> str | None:
    """The suffix of a table that a file's name ends with, None without one; case is ignored."""
    name = path.name.lower()
    return next((suffix for suffix in table if name.endswith(suffix) and name != suffix), None)


def suffix_of(path: Path) -> str | None:
    """The key of `READERS` for this file, None when there is none; letter case is ignored."""
    return known_suffix(path, READERS)


def stem_of(path: Path) -> str:
    """The file's name without its known suffix (`.nii.gz` is one suffix)."""
    suffix = suffix_of(path)
    return path.name[: -len(suffix)] if suffix else path.stem


class Origin(TypedDict):
    """What a file's name and bytes tell, as arguments of a volume or a scan."""

    name: str
    subject: str
    contrast: str | None
    sha256: str


def origin_of(path: Path) -> Origin:
    """Return the name, subject and contrast that a file's name holds, and its SHA-256."""
    stem = stem_of(path)
    subject, contrast = parse_name(stem)
    return Origin(name=stem, subject=subject, contrast=contrast, sha256=source_sha256(path))


def check_input(path: Path) -> None:
    """Refuse what is not there, and a folder that is no DICOM series.

    Raises:
        DataError: In one sentence.
    """
    file, _ = split_dataset(path)
    if not file.exists():
        raise DataError(f"{file} does not exist.", "Check the path.")
    if not file.is_file() and not is_series(file):
        raise DataError(f"{file} is a folder, not a file.", "Give one of the files in it.")


def read_volume(path: Path) -> Volume:
    """Read one file with the reader that its suffix names.

    Args:
        path: a file in one of the formats of `READERS`; a dataset of one, FILE.h5:DATASET:AXES; or
            a folder that holds one DICOM series.

    Returns:
        The volume as stored, at its own matrix size.

    Raises:
        DataError: missing, not a file, unknown suffix, unreadable, or not an MR volume.
        MissingExtraError: the format needs an optional library that is not installed.
    """
    path = Path(path)
    check_input(path)
    suffix = readable_suffix(path)
    if suffix is None:
        raise DataError(
            f"{path} has a suffix that no reader knows.",
            f"Supported are {', '.join(READERS)}.",
        )
    reader: Reader = load_attribute(READERS[suffix])
    return reader(path)


def readable_suffix(path: Path) -> str | None:
    """The key of `READERS` for what lies at a path, None when there is none.

    DICOM goes by more than the name: `.dcm` stands for files without suffix and for folders too.
    """
    file, _ = split_dataset(path)
    return ".dcm" if is_series(file) or is_dicom(file) else suffix_of(file)
