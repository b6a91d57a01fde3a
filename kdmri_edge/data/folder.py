"""Finding the volumes of a folder and loading them at one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdmri_edge.console import progress
from kdmri_edge.data.names import parse_name
from kdmri_edge.data.readers import READERS, read_volume, stem_of, suffix_of
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeFile:
    """A file that a reader knows, before it is read.

    Attributes:
        path: the file.
        name: its name without suffix.
        subject: as the name tells, the whole name where it does not.
        contrast: as the name tells, else None.
    """

    path: Path
    name: str
    subject: str
    contrast: str | None


def find_volumes(folder: Path, contrast: str | None = None) -> list[VolumeFile]:
    """List the volumes of a folder (not of its sub-folders), sorted by name.

    Files that no reader knows (licences, notes) and hidden files are passed over. A single file
    counts as a folder of one.

    Args:
        folder: a folder or a file.
        contrast: keep only this one, letter case ignored; None keeps all.

    Raises:
        DataError: missing folder, no volume in it, or no volume of that contrast.
    """
    folder = Path(folder)
    if not folder.exists():
        raise DataError(f"{folder} does not exist.", "Check the path given to --data.")
    if folder.is_dir():
        try:
            paths = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
        except OSError as error:
            raise DataError(
                f"{folder} cannot be listed ({error.strerror}).", "Check its rights."
            ) from error
        files = [_describe(path) for path in paths if suffix_of(path) and path.is_file()]
        if not files:
            raise DataError(
                f"{folder} holds no volume.",
                f"Put files of these kinds straight into it: {', '.join(READERS)}.",
            )
    elif suffix_of(folder):
        files = [_describe(folder)]
    else:
        raise DataError(
            f"{folder} has a suffix that no reader knows.", f"Supported are {', '.join(READERS)}."
        )
    if contrast is None:
        return files
    chosen = [f for f in files if f.contrast and f.contrast.lower() == contrast.lower()]
    if not chosen:
        present = sorted({f.contrast for f in files if f.contrast})
        raise DataError(
            f"{folder} holds no volume of contrast {contrast!r}.",
            f"Present are {', '.join(present)}."
            if present
            else "Its file names tell no contrast; leave --contrast out.",
        )
    return chosen


def _describe(path: Path) -> VolumeFile:
    name = stem_of(path)
    subject, contrast = parse_name(name)
    if suffix_of(path) in (".h5", ".hdf5"):
        from kdmri_edge.data.fastmri_h5 import fastmri_subject

        subject = fastmri_subject(path) or subject
    return VolumeFile(path=path, name=name, subject=subject, contrast=contrast)


def load_volumes(files: Sequence[VolumeFile], matrix: int) -> list[Volume]:
    """Read files and bring them to one matrix, showing a progress bar.

    Args:
        files: from `find_volumes`.
        matrix: pixels along H and W.

    Returns:
        One volume per file, in their order.

    Raises:
        DataError: a file cannot be read or brought to the matrix.
    """
    volumes = []
    with progress("Reading volumes", len(files)) as advance:
        for file in files:
            volumes.append(to_matrix(read_volume(file.path), matrix))
            advance(1)
    return volumes
