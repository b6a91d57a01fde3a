"""Reading .npy files of strangers: what the header claims is checked before it is allocated."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import DataError, KdmriError
from kdmri_edge.utils.reading import check_claim, file_bytes, reading

__all__ = ["read_array"]


def read_array(
    path: Path,
    *,
    kind: str = "a NumPy array",
    error: type[KdmriError] = DataError,
    remedy: str = "Write it again with numpy.save, as numbers and not as pickled objects.",
) -> NDArray[Any]:
    """Read a .npy file whose claim was compared with its size and the limit first.

    Args:
        path: The file.
        kind: What it should be, for the message.
        error: Class of the exceptions.
        remedy: What to do about one that cannot be read.

    Raises:
        KdmriError: Of that class: unreadable, cut short, pickled objects, an archive, or too large.
    """
    with reading(path, kind, error=error, remedy=remedy), path.open("rb") as stream:
        if zipfile.is_zipfile(stream):  # numpy.load goes by the content, whatever the name
            raise error(f"{path} is an .npz archive.", "Save its one array with numpy.save.")
        stream.seek(0)
        version = np.lib.format.read_magic(stream)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version, np.lib.format.read_array_header_2_0)
        shape, _, dtype = header(stream)
        claim = math.prod(int(size) for size in shape) * dtype.itemsize
        check_claim(claim, path, error=error)
        if not dtype.hasobject and claim > file_bytes(path) - stream.tell():
            raise ValueError("fewer bytes than its header says")
        stream.seek(0)
        array: NDArray[Any] = np.load(stream, allow_pickle=False)
        return array
