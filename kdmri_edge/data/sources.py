"""What a path names: subject and contrast, a dataset inside an HDF5 file, the hash of what is read.

AXES has a letter for each axis of the dataset, in its order: s slice, c coil, h phase encode,
w readout. "swh" is [slice, readout, phase encode].
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from kdmri_edge.data.formats.dicom.files import dicom_files
from kdmri_edge.utils.files import sha256_bytes, sha256_file

__all__ = [
    "AXES_HELP",
    "HDF5_SUFFIXES",
    "FileNameParts",
    "axes_of",
    "contrast_of",
    "dataset_of",
    "parse_name",
    "source_sha256",
    "split_dataset",
]

_SUBJECT = re.compile(r"sub-([A-Za-z0-9]+)(?:_|$)")


class FileNameParts(NamedTuple):
    """Subject and contrast as a file's name gives them."""

    subject: str
    contrast: str | None


def parse_name(stem: str) -> FileNameParts:
    """Subject and contrast of a name like `sub-01_ses-1_T1w`.

    Args:
        stem: the file's name without its suffix.

    Returns:
        ("01", "T1w") for the example; (stem, None) for a name that does not begin with `sub-`.
    """
    match = _SUBJECT.match(stem)
    if match is None:
        return FileNameParts(stem, None)
    last = stem.rsplit("_", 1)[-1]
    # BIDS puts the contrast last and alone; every other part is a key-value pair with a hyphen.
    return FileNameParts(match.group(1), None if "-" in last or not last else last)


AXES_HELP: Final = "s slice, c coil, h phase encode, w readout"

HDF5_SUFFIXES: Final = (".h5", ".hdf5", ".mrd", ".ismrmrd")
"""Of HDF5 files, the last two of MRD's alone."""

_NAMED: Final = re.compile(
    rf"(?P<file>.+(?:{'|'.join(map(re.escape, HDF5_SUFFIXES))})):(?P<dataset>[^:]+(?::[^:]*)?)$",
    re.I,
)


def split_dataset(path: Path) -> tuple[Path, str | None]:
    """Return the file, and what follows its name ("FLAIR:swh"); None where nothing does.

    A file that really has such a name is that file.
    """
    named = None if path.exists() else _NAMED.match(str(path))
    return (path, None) if named is None else (Path(named["file"]), named["dataset"])


def dataset_of(named: str) -> str:
    """The dataset's name in "DATASET:AXES"."""
    return named.partition(":")[0]


_KSPACE: Final = frozenset({"kspace", "k-space", "k_space", "ksp", "kdata", "data", "raw", "k"})


def contrast_of(dataset: str) -> str | None:
    """The contrast that a dataset is called by, "FLAIR"; None where its name says what it holds."""
    last = dataset.rpartition("/")[2]
    return None if last.lower() in _KSPACE else last


def axes_of(named: str) -> str | None:
    """The axes in "DATASET:AXES", None where there are none."""
    return named.partition(":")[2] or None


def source_sha256(path: Path) -> str:
    """SHA-256 of a file; of a DICOM series and of BART's pair, of their files' hashes in order.

    Args:
        path: As readers take it; of a dataset that is named, the hash is its whole file's.
    """
    file, _ = split_dataset(path)
    files = dicom_files(file)
    if file.suffix.lower() == ".cfl":
        files = [file, file.with_suffix(".hdr")]
    hashes = [sha256_file(each) for each in files]
    return hashes[0] if len(hashes) == 1 else sha256_bytes("".join(hashes).encode())
