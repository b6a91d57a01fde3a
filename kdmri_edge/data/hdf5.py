"""HDF5 files of either layout: told apart by their datasets' names."""

from __future__ import annotations

from pathlib import Path

import h5py

from kdmri_edge.data.fastmri_h5 import is_fastmri, read_fastmri_h5
from kdmri_edge.data.kdmri_h5 import read_kdmri_h5
from kdmri_edge.data.volume import Volume

__all__ = ["read_hdf5"]


def read_hdf5(path: Path) -> Volume:
    """Read a file in KD-MRI's or fastMRI's layout.

    Raises:
        DataError: unreadable, or neither layout; see the two readers.
    """
    try:
        with h5py.File(path, "r") as file:
            names = list(file)
    except (OSError, RuntimeError, ValueError):
        names = []  # the reader says what is wrong
    return read_fastmri_h5(path) if is_fastmri(names) else read_kdmri_h5(path)
