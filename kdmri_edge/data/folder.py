"""Finding the volumes of a folder and loading them at one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdmri_edge.console import progress
from kdmri_edge.data.dataset_name import dataset_of, split_dataset
from kdmri_edge.data.dicom_files import is_dicom, is_series
from kdmri_edge.data.names import parse_name
from kdmri_edge.data.readers import READERS, read_volume, readable_suffix, stem_of, suffix_of
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeFile:
    """A file that a reader knows, before it is read.

    Attributes:
        path: the file, a dataset of it, or the folder of a DICOM series.
        name: its name without suffix.
        subject: as the name tells, the whole name where it does not.
        contrast: as the name tells, else None.
    """

    path: Path
    name: str
    subject: str
    contrast: str | None


def find_volumes(folder: Path, contrast: str | None = None) -> list[VolumeFile]:
    """List the volumes of a folder, sorted by name.

    Its sub-folders are not looked into, but one that holds DICOM files straight in it is a volume,
    as is the folder itself if it does. Files that no reader knows (licences, notes) and hidden
    files are passed over. A single file counts as a folder of one.

    Args:
        folder: a folder or a file; a dataset as FILE.h5:DATASET:AXES.
        contrast: keep only this one, letter case ignored; None keeps all.

    Raises:
        DataError: missing folder, no volume in it, or no volume of that contrast.
        MissingExtraError: a DICOM series without pydicom.
    """
    folder = Path(folder)
    file, _ = split_dataset(folder)
    if not file.exists():
        raise DataError(f"{file} does not exist.", "Check the path given to --data.")
    if folder.is_dir():
        files = [_describe(path) for path in _volumes_in(folder)]
        if not files:
            raise DataError(
                f"{folder} holds no volume.",
                f"Put files of these kinds straight into it: {', '.join(READERS)}.",
            )
    elif readable_suffix(folder):
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


def _volumes_in(folder: Path) -> list[Path]:
    """Paths of a folder's volumes: files, DICOM series below it, and itself as such a series."""
    try:
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed ({error.strerror}).", "Check its rights."
        ) from error
    slices = {path for path in entries if is_dicom(path)}
    if slices:
        others = [path for path in entries if path not in slices]
        return [folder, *(p for p in others if (suffix_of(p) and p.is_file()) or is_series(p))]
    return [p for p in entries if (suffix_of(p) and p.is_file()) or is_series(p)]


def _describe(path: Path) -> VolumeFile:
    suffix = readable_suffix(path)
    if suffix == ".dcm":
        from kdmri_edge.data.dicom import dicom_name, dicom_subject

        name, subject = dicom_name(path), dicom_subject(path)
        contrast = parse_name(name).contrast
    else:
        file, dataset = split_dataset(path)
        stem = stem_of(file)
        name = f"{stem}_{dataset_of(dataset)}" if dataset else stem
        subject, contrast = parse_name(stem)
        if dataset:
            contrast = dataset_of(dataset)
        elif suffix in (".h5", ".hdf5"):
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
