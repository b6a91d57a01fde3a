"""ISMRMRD / MRD HDF5 as a format of files; `kdmri_edge.mrd` does the reading (extra `mrd`)."""

from __future__ import annotations

from pathlib import Path

from kdmri_edge.data.scan import Scan
from kdmri_edge.extras import require

__all__ = ["scan_mrd_h5"]


def scan_mrd_h5(path: Path) -> Scan:
    """Read the readouts of a file; see `kdmri_edge.mrd.hdf5.read_scan`.

    Raises:
        DataError: See there.
        MissingExtraError: ismrmrd is not installed.
    """
    require("ismrmrd", extra="mrd")
    from kdmri_edge.mrd.hdf5 import read_scan

    return read_scan(path)
