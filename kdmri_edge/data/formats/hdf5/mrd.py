"""ISMRMRD / MRD HDF5 as a format of files; `kdmri_edge.mrd` does the work (extra `mrd`)."""

from __future__ import annotations

from pathlib import Path

from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.volume import Volume
from kdmri_edge.utils.extras import require

__all__ = ["read_mrd_images", "scan_mrd_h5", "write_mrd_images", "write_mrd_scan"]


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
