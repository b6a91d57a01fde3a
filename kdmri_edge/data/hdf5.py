"""HDF5 files of each layout: told apart by their datasets' names."""

from __future__ import annotations

from pathlib import Path

import h5py

from kdmri_edge.data.fastmri_h5 import is_fastmri, read_fastmri_h5
from kdmri_edge.data.kdmri_h5 import read_kdmri_h5
from kdmri_edge.data.volume import Volume
from kdmri_edge.extras import require

__all__ = ["read_hdf5"]


def read_hdf5(path: Path) -> Volume:
    """Read a file in KD-MRI's, fastMRI's or MRD's layout.

    Raises:
        DataError: unreadable, or none of these layouts; see the readers.
        MissingExtraError: an MRD file, without the package that reads them.
    """
    try:
        with h5py.File(path, "r") as file:
            names = list(file)
            mrd = any({"xml", "data"} <= set(n) for n in file.values() if isinstance(n, h5py.Group))
    except (OSError, RuntimeError, ValueError):
        names, mrd = [], False  # the reader says what is wrong
    if mrd:
        require("ismrmrd", extra="mrd")
        from kdmri_edge.mrd.volume import read_mrd_volume

        return read_mrd_volume(path)
    return read_fastmri_h5(path) if is_fastmri(names) else read_kdmri_h5(path)
