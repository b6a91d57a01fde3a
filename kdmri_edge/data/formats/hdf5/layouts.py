"""HDF5 files of any layout: told apart by their datasets' names, or by the one that is named.

A layout is a row of `LAYOUTS`; the first that recognises a file reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import h5py

from kdmri_edge.data.formats.hdf5.fastmri import is_fastmri
from kdmri_edge.data.formats.hdf5.kdmri import is_kdmri
from kdmri_edge.data.formats.hdf5.mrd import image_series, is_mrd_stream, mrd_groups
from kdmri_edge.data.formats.hdf5.opening import open_hdf5
from kdmri_edge.data.formats.hdf5.plain import complex_datasets
from kdmri_edge.data.formats.measured import volume_of
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.sources import split_dataset
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError
from kdmri_edge.utils.extras import load_attribute

__all__ = [
    "LAYOUTS",
    "Layout",
    "hdf5_is_kspace",
    "is_fastmri_layout",
    "layout_of",
    "mrd_scans",
    "read_hdf5",
    "scan_hdf5",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A layout of HDF5 files.

    Attributes:
        name: For `kdmri-edge data inspect`.
        recognises: Tells by the names in the file's root, GROUP/NAME of those in its groups, and
            GROUP/NAME/header of series of images, whether a file has it.
        scan: "module:function" from a path to a `Scan`; None where it holds no measured k-space.
        volume: "module:function" from a path to a `Volume`; None makes it of a single-coil scan.
    """

    name: str
    recognises: Callable[[list[str]], bool]
    scan: str | None
    volume: str | None = None


def _is_mrd(names: list[str]) -> bool:
    """Whether a group holds a header and readouts, as ISMRMRD has it."""
    return any(name.endswith("/xml") and f"{name[:-4]}/data" in names for name in names)


def _holds_mrd_images(names: list[str]) -> bool:
    """Whether a group holds a series of images, as ISMRMRD has it."""
    return any(re.fullmatch(r"[^/]+/(images?_\d+|[^/]+/header)", name) for name in names)


LAYOUTS: Final[tuple[Layout, ...]] = (
    Layout(
        name="fastMRI HDF5",
        recognises=is_fastmri,
        scan="kdmri_edge.data.formats.hdf5.fastmri:scan_fastmri_h5",
        volume="kdmri_edge.data.formats.hdf5.fastmri:read_fastmri_h5",
    ),
    Layout(
        name="KD-MRI HDF5",
        recognises=is_kdmri,
        scan=None,
        volume="kdmri_edge.data.formats.hdf5.kdmri:read_kdmri_h5",
    ),
    Layout(
        name="ISMRMRD HDF5",
        recognises=_is_mrd,
        scan="kdmri_edge.data.formats.hdf5.mrd:scan_mrd_h5",
    ),
    Layout(
        name="ISMRMRD HDF5 of images",
        recognises=_holds_mrd_images,
        scan=None,
        volume="kdmri_edge.data.formats.hdf5.mrd:read_mrd_images",
    ),
)
"""In the order in which they are tried."""

_PLAIN: Final = Layout(
    name="HDF5",
    recognises=lambda names: True,
    scan="kdmri_edge.data.formats.hdf5.plain:scan_plain_h5",
)


_STREAM: Final = Layout(
    name="MRD stream",
    recognises=lambda names: False,  # it is no HDF5: its first bytes tell
    scan="kdmri_edge.data.formats.hdf5.mrd:scan_mrd_h5",
)


def mrd_scans(path: Path) -> list[str]:
    """Names of the groups of a file that hold a scan, as ISMRMRD has it; empty where none does."""
    try:
        with open_hdf5(path) as opened:
            return mrd_groups(opened)
    except DataError:
        return []  # reading it will say what is wrong


def layout_of(path: Path) -> Layout:
    """The layout of a file; a dataset that is named by hand is read as it is, a group as a scan.

    Raises:
        DataError: Unreadable.
    """
    file, named = split_dataset(path)
    if is_mrd_stream(file):
        return _STREAM
    with open_hdf5(file) as opened:
        if named is not None and named.strip("/") in mrd_groups(opened):
            return next(layout for layout in LAYOUTS if layout.recognises is _is_mrd)
        names = [str(name) for name in opened]
        for name, node in opened.items():
            names += [f"{name}/{part}" for part in node] if isinstance(node, h5py.Group) else []
            names += [f"{name}/{part}/header" for part in image_series(node)]
        # whatever it is called: who names the axes of a dataset does not mean another layout's
        described = sum("axes" in node.attrs for node in complex_datasets(opened).values()) == 1
    if named is not None or described:
        return _PLAIN
    return next((layout for layout in LAYOUTS if layout.recognises(names)), _PLAIN)


def is_fastmri_layout(path: Path) -> bool:
    """Tell whether a file is in fastMRI's layout.

    Raises:
        DataError: Unreadable.
    """
    return layout_of(path).recognises is is_fastmri


def hdf5_is_kspace(path: Path, kspace: bool) -> bool:
    """Tell by its layout whether a file holds measured k-space, whatever the user calls it.

    Raises:
        DataError: Unreadable.
    """
    return layout_of(path).scan is not None


def read_hdf5(path: Path) -> Volume:
    """Read images or single-coil k-space in a known layout, or the dataset that is named.

    Raises:
        DataError: Unreadable, an unknown layout, or several coils; see the readers.
    """
    layout = layout_of(path)
    if layout.volume is None:
        return volume_of(scan_hdf5(path))
    volume: Volume = load_attribute(layout.volume)(path)
    return volume


def scan_hdf5(path: Path) -> Scan:
    """Read measured k-space in a known layout, or the dataset that is named.

    Raises:
        DataError: Unreadable, an unknown layout, or one that holds none; see the readers.
    """
    layout = layout_of(path)
    if layout.scan is None:
        raise DataError(
            f"{path} is in the layout of {layout.name}, which holds no measured k-space.",
            "Read it as a volume.",
        )
    scan: Scan = load_attribute(layout.scan)(path)
    return scan
