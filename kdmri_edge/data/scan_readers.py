"""Reading measured k-space by the suffix of its file; the formats are in `data.formats`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from kdmri_edge.data.dataset_name import split_dataset
from kdmri_edge.data.formats import FORMATS
from kdmri_edge.data.readers import check_input, read_volume, readable_suffix
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError
from kdmri_edge.extras import load_attribute

__all__ = ["SCAN_READERS", "read_either", "read_scan"]

ScanReader = Callable[[Path], Scan]

SCAN_READERS: Final[dict[str, str]] = {
    suffix: row.scan for row in FORMATS if row.scan for suffix in row.suffixes
}
"""Suffix (lower case, with the dot) -> "module:function" of a `ScanReader`."""


def read_either(path: Path, *, kspace: bool = False) -> Scan | Volume:
    """Read measured k-space as a scan, whatever its number of coils, and everything else as images.

    Args:
        path: As for `read_scan` and `read_volume`.
        kspace: A BART array of one coil is k-space, which the file does not say.

    Raises:
        DataError: See `read_scan` and `read_volume`.
        MissingExtraError: The format needs an optional library that is not installed.
    """
    path = Path(path)
    check_input(path)
    suffix = readable_suffix(path)
    measured = suffix in SCAN_READERS
    if suffix == ".cfl":
        from kdmri_edge.data.bart import bart_coils

        measured = kspace or bart_coils(path) > 1
    elif suffix in (".h5", ".hdf5"):
        from kdmri_edge.data.hdf5 import layout_of

        measured = layout_of(path).scan is not None
    return read_scan(path) if measured else read_volume(path)


def read_scan(path: Path) -> Scan:
    """Read a file of measured k-space.

    Args:
        path: A file in one of the formats of `SCAN_READERS`, or a dataset of one,
            FILE.h5:DATASET:AXES.

    Returns:
        All slices and coils.

    Raises:
        DataError: Missing, unreadable, or no k-space that a `Scan` holds.
        MissingExtraError: The format needs an optional library that is not installed.
    """
    path = Path(path)
    check_input(path)
    suffix = readable_suffix(path)
    if suffix not in SCAN_READERS:
        raise DataError(
            f"{split_dataset(path)[0]} is of a format that holds no measured k-space.",
            f"Formats that do are {', '.join(SCAN_READERS)}.",
        )
    reader: ScanReader = load_attribute(SCAN_READERS[suffix])
    return reader(path)
