"""Naming one dataset of an HDF5 file on the command line: FILE.h5:DATASET or FILE.h5:DATASET:AXES.

AXES has a letter for each axis of the dataset, in its order: s slice, c coil, h phase encode,
w readout. "swh" is [slice, readout, phase encode].
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

__all__ = ["AXES_HELP", "axes_of", "dataset_of", "split_dataset"]

AXES_HELP: Final = "s slice, c coil, h phase encode, w readout"

_NAMED: Final = re.compile(r"(?P<file>.+\.(?:h5|hdf5)):(?P<dataset>[^:]+(?::[^:]*)?)$", re.I)


def split_dataset(path: Path) -> tuple[Path, str | None]:
    """Return the file, and what follows its name ("FLAIR:swh"); None where nothing does.

    A file that really has such a name is that file.
    """
    named = None if path.exists() else _NAMED.match(str(path))
    return (path, None) if named is None else (Path(named["file"]), named["dataset"])


def dataset_of(named: str) -> str:
    """The dataset's name in "DATASET:AXES"."""
    return named.partition(":")[0]


def axes_of(named: str) -> str | None:
    """The axes in "DATASET:AXES", None where there are none."""
    return named.partition(":")[2] or None
