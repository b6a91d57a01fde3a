"""Images as fastMRI has them: references, central crops, and what its leaderboards take.

Images of its files are [S, rows, columns] with readout along rows and phase encode along columns:
those of this project, [S, phase encode, readout], with the last two axes swapped. The reference of
several coils, `reconstruction_rss`, is the root sum of squares of the coils' images, that of one
coil `reconstruction_esc`; either is the centre of the field of view, 320 x 320 mostly, as the
header's reconSpace says. A submission is one HDF5 file for each volume, of the volume's own name,
with one dataset `reconstruction` of the reference's size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.formats.hdf5.attributes import attribute_text
from kdmri_edge.data.formats.hdf5.fastmri import header_text, is_fastmri, scan_fastmri_h5
from kdmri_edge.data.formats.hdf5.opening import open_hdf5, values
from kdmri_edge.data.formats.measured import root_sum_of_squares
from kdmri_edge.data.formats.mrd_header import image_matrix
from kdmri_edge.errors import DataError
from kdmri_edge.utils.files import atomic_path

__all__ = [
    "RECONSTRUCTION",
    "Challenge",
    "Reference",
    "as_stored",
    "centre_crop",
    "image_size",
    "named_reference",
    "read_reconstruction",
    "read_reference",
    "write_reconstruction",
]

RECONSTRUCTION: Final = "reconstruction"
"""The dataset of a submission."""


class Challenge(StrEnum):
    """What is compared with; the names are fastMRI's."""

    SINGLECOIL = "singlecoil"
    MULTICOIL = "multicoil"


_DATASETS: Final = {
    Challenge.SINGLECOIL: "reconstruction_esc",
    Challenge.MULTICOIL: "reconstruction_rss",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reference:
    """What a reconstruction of a volume is compared with.

    Attributes:
        image: float32 [S, rows, columns], magnitudes in the file's unit.
        challenge: Whether it is of several coils.
        origin: The dataset that it was read from, or "k-space" where it was computed.
        acquisition: The file's attribute, e.g. "AXT2"; None where it has none.
    """

    image: NDArray[np.float32]
    challenge: Challenge
    origin: str
    acquisition: str | None


def centre_crop(image: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """Return the centre of images [..., R, C], by the pixels that fastMRI's `center_crop` takes.

    Raises:
        DataError: The images are smaller.
    """
    height, width = image.shape[-2:]
    if not (0 < rows <= height and 0 < columns <= width):
        raise DataError(
            f"Images of {height} x {width} have no centre of {rows} x {columns}.",
            "Reconstruct at the matrix of the file.",
        )
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[..., top : top + rows, left : left + columns]


def as_stored(image: NDArray[Any], size: tuple[int, int] | None) -> NDArray[np.float32]:
    """Turn images [S, phase encode, readout] into what a file of fastMRI's has of them.

    Args:
        image: Real or complex; magnitudes are taken.
        size: Rows and columns of the file's images, None for all pixels. Fewer columns than that
            are cropped to a square of themselves, as fastMRI's transforms do.

    Returns:
        float32 [S, rows, columns], C-contiguous.

    Raises:
        DataError: The images have fewer rows.
    """
    turned = np.swapaxes(np.abs(image), -1, -2)
    if size is not None:
        columns = turned.shape[-1]
        rows, columns = (columns, columns) if columns < size[1] else size
        turned = centre_crop(turned, rows, columns)
    return np.ascontiguousarray(turned, dtype=np.float32)


def image_size(path: Path) -> tuple[int, int] | None:
    """Rows and columns of a file's images, by its reference, else its header; None untold.

    Raises:
        DataError: Unreadable, or no file of fastMRI's.
    """
    with _opened(path) as file:
        return _size(file)


def named_reference(path: Path) -> str | None:
    """Say which references a file holds, "reconstruction_rss, 320 x 320"; None without any.

    Raises:
        DataError: Unreadable, or no file of fastMRI's.
    """
    with _opened(path) as file:
        there = [file[name] for name in _DATASETS.values() if name in file]
        said = [
            f"{node.name.strip('/')}, {node.shape[-2]} x {node.shape[-1]}"
            for node in there
            if isinstance(node, h5py.Dataset) and node.ndim == 3
        ]
    return "; ".join(said) or None


def read_reference(path: Path, challenge: Challenge | str | None = None) -> Reference:
    """Read what reconstructions of a volume are compared with, or compute it.

    A file without it, which has fully sampled k-space, gives the root sum of squares of its coils'
    images, cropped to the size that its header tells.

    Args:
        path: A fastMRI file.
        challenge: Which reference; None goes by the coils of its k-space.

    Raises:
        DataError: Unreadable, no such file, neither that reference nor k-space to compute it from,
            or both references and no k-space that tells which.
    """
    if challenge is not None and challenge not in list(Challenge):
        raise DataError(
            f"fastMRI has no challenge {str(challenge)!r}.", f"There are {', '.join(Challenge)}."
        )
    with _opened(path) as file:
        kind = Challenge(challenge) if challenge else _challenge(file, path)
        node = file.get(_DATASETS[kind])
        acquisition = attribute_text(file.attrs.get("acquisition"))
        size = _size(file)
        stored = values(node) if isinstance(node, h5py.Dataset) else None
        has_kspace = isinstance(file.get("kspace"), h5py.Dataset)
    if stored is not None:
        origin, image = _DATASETS[kind], _checked(stored, path, _DATASETS[kind])
    elif not has_kspace:
        raise DataError(
            f"{path} holds neither {_DATASETS[kind]} nor k-space.",
            "Give a file of fastMRI's training or validation set.",
        )
    else:
        scan = scan_fastmri_h5(path)
        if not scan.mask.samples.all():
            raise DataError(
                f"{path} holds undersampled k-space and no {_DATASETS[kind]}, so there is nothing"
                " to compare with.",
                "Give fully sampled files, as fastMRI's training and validation sets have them.",
            )
        origin, image = "k-space", as_stored(root_sum_of_squares(scan.kspace), size)
    return Reference(image=image, challenge=kind, origin=origin, acquisition=acquisition)


def read_reconstruction(path: Path) -> NDArray[np.float32]:
    """Read a volume of a submission: `reconstruction`, float32 [S, rows, columns].

    Raises:
        DataError: Missing, unreadable, or without such a dataset.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist.", "Reconstruct that volume, too.")
    with open_hdf5(path) as file:
        node = file.get(RECONSTRUCTION)
        if not isinstance(node, h5py.Dataset):
            raise DataError(
                f"{path} has no dataset {RECONSTRUCTION!r}.",
                "`kdmri-edge run --layout fastmri` writes files that have.",
            )
        return _checked(values(node), path, RECONSTRUCTION)


def write_reconstruction(path: Path, image: NDArray[Any]) -> None:
    """Write a volume of a submission, atomically.

    Args:
        path: Of the volume's own name; an earlier file is replaced.
        image: What `as_stored` gives.

    Raises:
        OutputError: The place cannot be written to.
    """
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset(RECONSTRUCTION, data=np.asarray(image, np.float32))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open a file of fastMRI's."""
    with open_hdf5(path) as file:
        if not is_fastmri(list(file)):
            raise DataError(
                f"{path} is no file of fastMRI's: it has neither kspace nor references.",
                "Give files of its training or validation set.",
            )
        yield file


def _challenge(file: h5py.File, path: Path) -> Challenge:
    """Tell whether a file is of several coils: by its k-space, else by the reference it has.

    Files of one coil have the reference of all coils, too.
    """
    node = file.get("kspace")
    if isinstance(node, h5py.Dataset):
        several = node.ndim == 4 and node.shape[1] > 1
        return Challenge.MULTICOIL if several else Challenge.SINGLECOIL
    there = [kind for kind, name in _DATASETS.items() if name in file]
    if len(there) != 1:
        raise DataError(
            f"{path} holds {'both references' if there else 'no reference'} and no k-space.",
            "Give a file of its training or validation set; of two references say which is meant,"
            " as `kdmri-edge evaluate --challenge multicoil` does.",
        )
    return there[0]


def _size(file: h5py.File) -> tuple[int, int] | None:
    for name in _DATASETS.values():
        node = file.get(name)
        if isinstance(node, h5py.Dataset) and node.ndim == 3:
            return int(node.shape[-2]), int(node.shape[-1])
    text = header_text(file)
    return None if text is None else image_matrix(text)


def _checked(stored: NDArray[Any], path: Path, name: str) -> NDArray[np.float32]:
    """Return a volume as float32, or refuse what is none."""
    if stored.ndim != 3 or 0 in stored.shape or stored.dtype.kind not in "fiu":
        raise DataError(
            f"{name} of {path} is {stored.dtype} {list(stored.shape)}.",
            "fastMRI has real numbers, [slices, rows, columns].",
        )
    return stored.astype(np.float32, copy=False)
