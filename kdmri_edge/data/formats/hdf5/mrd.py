"""ISMRMRD / MRD HDF5 as a format of files; `kdmri_edge.mrd` does the work (extra `mrd`)."""

from __future__ import annotations

import struct
from pathlib import Path

import h5py

from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.volume import Volume
from kdmri_edge.utils.extras import require

__all__ = [
    "image_series",
    "is_mrd_stream",
    "mrd_groups",
    "read_mrd_images",
    "scan_mrd_h5",
    "write_mrd_images",
    "write_mrd_scan",
]


def mrd_groups(file: h5py.File) -> list[str]:
    """Names of the groups that hold a scan, sorted: /GROUP/xml and /GROUP/data."""
    return sorted(
        str(name)
        for name, node in file.items()
        if isinstance(node, h5py.Group) and all(_is_dataset(node, part) for part in ("xml", "data"))
    )


def _is_dataset(group: h5py.Group, name: str) -> bool:
    return isinstance(group.get(name), h5py.Dataset)


def is_mrd_stream(path: Path) -> bool:
    """Tell by its first bytes whether a file is a stream of MRD's protocol, whatever its suffix.

    It begins with the identifier of a configuration (1, 2) or of a header (3); the header's text,
    after its length, is XML. See `kdmri_edge.mrd.format.messages`.
    """
    try:
        with path.open("rb") as file:
            start = file.read(1026 + 6 + 64)
    except OSError:
        return False  # whoever reads it says why
    if len(start) < 6:
        return False
    identifier, length = struct.unpack_from("<HI", start)
    if identifier == 1:
        start = start[1026:]
    elif identifier == 2:
        return 0 < length <= 1 << 20 and start[6:].lstrip()[:1] in (b"<", b"{")
    return start[:2] == b"\x03\x00" and start[6:].lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"<"


def image_series(group: object) -> list[str]:
    """Names in a group of an opened file that hold a series of images, as ISMRMRD has it.

    Servers choose the name: image_1, or that of their configuration.
    """
    if not isinstance(group, h5py.Group):
        return []
    parts = {"header", "data", "attributes"}
    return [
        str(name) for name, node in group.items()
        if isinstance(node, h5py.Group) and parts <= set(node)
    ]  # fmt: skip


def scan_mrd_h5(path: Path) -> Scan:
    """Read the readouts of a file; see `kdmri_edge.mrd.format.hdf5.read_scan`.

    Raises:
        DataError: See there.
        MissingExtraError: ismrmrd is not installed.
    """
    require("ismrmrd", extra="mrd")
    from kdmri_edge.mrd.format.hdf5 import read_scan

    return read_scan(path)


def read_mrd_images(path: Path) -> Volume:
    """Read the images of a file; see `kdmri_edge.mrd.format.hdf5.read_images`.

    Raises:
        DataError: See there.
        MissingExtraError: ismrmrd is not installed.
    """
    require("ismrmrd", extra="mrd")
    from kdmri_edge.mrd.format.hdf5 import read_images

    return read_images(path)


def write_mrd_images(path: Path, picture: ImageRecord) -> None:
    """Write images; see `kdmri_edge.mrd.format.hdf5.write_image_record`.

    Raises:
        OutputError: The place cannot be written to.
        MissingExtraError: ismrmrd is not installed.
    """
    require("ismrmrd", extra="mrd")
    from kdmri_edge.mrd.format.hdf5 import write_image_record

    write_image_record(path, picture)


def write_mrd_scan(path: Path, scan: Scan) -> None:
    """Write k-space as readouts; see `kdmri_edge.mrd.format.hdf5.write_scan`.

    Raises:
        DataError: The mask samples points, not lines.
        OutputError: The place cannot be written to.
        MissingExtraError: ismrmrd is not installed.
    """
    require("ismrmrd", extra="mrd")
    from kdmri_edge.mrd.format.hdf5 import write_scan

    write_scan(path, scan)
