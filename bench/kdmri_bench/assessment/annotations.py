"""Where lesions are, by what lies beside the volumes: masks, or boxes as fastMRI+ has them.

A mask is a NIfTI file with the name of the volume, `lesions` in place of its contrast:
`sub-x07_FLAIR.nii.gz` and `sub-x07_lesions.nii.gz`; or the whole name with `_lesions` behind it.
All volumes of a subject (and session) share one. Boxes are rows of a CSV file in the volumes'
folder with the columns of fastMRI+ (Zhao et al., Scientific Data 9:152, 2022): file, slice, x, y,
width, height, label. Its images are fastMRI's references turned upside down: x counts columns from
the left, y rows from the bottom of the reference as stored. Rows without a box speak of the whole
examination, and are passed over.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kdmri_bench.assessment.data import LABELS, AssessedVolume
from kdmri_edge.data.formats.hdf5.fastmri_images import image_size
from kdmri_edge.data.formats.nifti import read_nifti_mask
from kdmri_edge.data.formats.registry import read_either, stem_of, suffix_of
from kdmri_edge.data.geometry import Affine
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.sources import HDF5_SUFFIXES
from kdmri_edge.errors import DataError

__all__ = [
    "COLUMNS",
    "Annotation",
    "Box",
    "annotation_of",
    "box_mask",
    "boxes_in",
    "mask_beside",
    "nothing_beside",
    "read_boxes",
    "read_mask",
    "to_grid",
]

Mask = NDArray[np.bool_]

COLUMNS: Final = ("file", "slice", "x", "y", "width", "height", "label")
"""What fastMRI+ calls the columns that are read."""

_NIFTI: Final = (".nii.gz", ".nii")
_NEAR_MM: Final = 0.1  # between the grids of a mask and its volume; headers round


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """A box around a finding, in pixels of the image as fastMRI+ shows it.

    Attributes:
        slice: number of the slice.
        x: first column.
        y: first row, of the image turned upside down.
        width: columns.
        height: rows.
        label: what was found.
    """

    slice: int
    x: int
    y: int
    width: int
    height: int
    label: str


def mask_beside(path: Path) -> Path | None:
    """Return the mask of lesions that lies beside a volume, None without one."""
    stem = stem_of(path)
    names = (stem + LABELS, stem.rpartition("_")[0] + LABELS)
    beside = (path.with_name(name + end) for name in names if name != LABELS for end in _NIFTI)
    return next((file for file in beside if file.is_file()), None)


def read_mask(path: Path, shape: Sequence[int], affine: Affine | None = None) -> Mask:
    """Read a mask of lesions, which has to lie on the volume's own grid.

    Args:
        path: NIfTI; pixels that are not zero are lesion. It may hold none.
        shape: (S, H, W) of the volume as stored.
        affine: Of the volume; None where it has none.

    Returns:
        bool [S, H, W].

    Raises:
        DataError: It is of another geometry, or unreadable.
    """
    mask, own = read_nifti_mask(path)
    if mask.shape != tuple(shape):
        raise DataError(
            f"{path} is a mask of {' x '.join(map(str, mask.shape))} voxels, its volume has"
            f" {' x '.join(map(str, shape))}.",
            "Resample the mask to the volume, or draw it anew there.",
        )
    if own is not None and affine is not None:
        corners = np.array([[s, h, w, 1.0] for s in (0, shape[0] - 1) for h in (0, shape[1] - 1)
                            for w in (0, shape[2] - 1)])  # fmt: skip
        away = float(np.linalg.norm((corners @ (own - affine).T)[:, :3], axis=1).max())
        if away > _NEAR_MM:
            raise DataError(
                f"{path} lies elsewhere in the patient than its volume, by up to {away:.1f} mm.",
                "Resample the mask to the volume, or correct the header of one of them.",
            )
    return mask


def read_boxes(path: Path) -> dict[str, list[Box]]:
    """Read the boxes of a CSV file, by the name of the volume without suffix.

    Raises:
        DataError: A column is missing, or a value is no number or makes no box.
    """
    found: dict[str, list[Box]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path} has no column {missing[0]!r}.",
                    f"Boxes are rows of {', '.join(COLUMNS)}, as fastMRI+ has them.",
                )
            for row in reader:
                if (row["x"] or "").strip():
                    box = _box(row, f"{path}, line {reader.line_num}")
                    found.setdefault(stem_of(Path(row["file"] or "")), []).append(box)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not readable as CSV ({error}).", "Save it anew.") from error
    return found


def _box(row: dict[str, str], where: str) -> Box:
    try:
        numbers = {name: round(float(row[name])) for name in COLUMNS[1:-1]}
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: {error}.", "Give whole numbers of pixels.") from error
    if min(numbers.values()) < 0 or 0 in (numbers["width"], numbers["height"]):
        raise DataError(
            f"{where} makes no box.", "Width and height are 1 or more, no value below 0."
        )
    return Box(**numbers, label=row["label"] or "")


def boxes_in(folder: Path) -> dict[str, list[Box]]:
    """Return the boxes of all CSV files of a folder that have the columns of fastMRI+.

    Raises:
        DataError: See `read_boxes`; files without the columns are passed over (`nothing_beside`).
    """
    found: dict[str, list[Box]] = {}
    for path in _tables(folder):
        if _has_boxes(path):
            for name, boxes in read_boxes(path).items():
                found.setdefault(name, []).extend(boxes)
    return found


def _tables(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.csv") if path.is_file())


def _has_boxes(path: Path) -> bool:
    """Tell whether a table means to be one of boxes, which `read_boxes` then holds it to."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as stream:
            head = {name.strip() for name in stream.readline().split(",")}
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}).", "Check its permissions."
        ) from error
    return {"file", "slice", "label"} <= head


def nothing_beside(path: Path | None) -> str:
    """Say why there is no annotation of a volume, and which tables beside it are not of it.

    A table with other separators or headings, or with other names of files, is a mistake that
    would otherwise look as if there were none.

    Args:
        path: Of the volume; None of what was given as arrays.
    """
    why = "nothing beside it says where lesions are"
    if path is None:
        return why
    for table in _tables(path.parent):
        if not _has_boxes(table):
            return f"{why} ({table.name} has no columns {', '.join(COLUMNS)} with commas between)"
        named = read_boxes(table)
        if named:
            return f"{why} ({table.name} has boxes of {min(named)}, not of {stem_of(path)})"
    return why


def box_mask(boxes: Sequence[Box], shape: Sequence[int], name: str = "the volume") -> Mask:
    """Return the pixels inside of boxes, at the grid of this project's images.

    Args:
        boxes: In pixels of an image of W rows and H columns, upside down.
        shape: (S, H, W): phase encode along H, which is along columns in fastMRI's files.
        name: For the message.

    Returns:
        bool [S, H, W].

    Raises:
        DataError: A box lies outside.
    """
    mask = np.zeros(tuple(shape), bool)
    slices, columns, rows = shape
    for box in boxes:
        inside = box.x + box.width <= columns and box.y + box.height <= rows
        if box.slice >= slices or not inside:
            raise DataError(
                f"A box of {name} (slice {box.slice}, {box.label or 'no label'}) lies outside of"
                f" its {slices} slices of {rows} rows and {columns} columns.",
                "Give boxes in pixels of the volume's own images.",
            )
        top = rows - box.y - box.height
        mask[box.slice, box.x : box.x + box.width, top : top + box.height] = True
    return mask


def to_grid(
    mask: Mask,
    matrix: tuple[int, int],
    voxel_mm: Sequence[float] | None,
    new_mm: Sequence[float] | None,
) -> Mask:
    """Bring a mask to where `data.resample.to_matrix` or padding with air brought its volume.

    The point at pixel N // 2 stays where it is; each new pixel takes the value of the old one that
    its centre lies in.

    Args:
        mask: bool [S, H, W].
        matrix: (H, W) that is wanted.
        voxel_mm: Size of the old pixels along (S, H, W); None for 1.
        new_mm: Of the new ones; None for the old size.
    """
    result = mask
    for axis, size in enumerate(matrix, 1):
        old = mask.shape[axis]
        step = 1.0 if voxel_mm is None or new_mm is None else new_mm[axis] / voxel_mm[axis]
        at = np.floor((np.arange(size) - size // 2) * step + old // 2 + 0.5).astype(int)
        inside = (at >= 0) & (at < old)
        taken = np.take(result, np.where(inside, at, 0), axis)
        shape = [1, 1, 1]
        shape[axis] = size
        result = taken & inside.reshape(shape)
    return result


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Annotation:
    """Where the lesions of a volume are.

    Attributes:
        mask: bool [S, H, W], at the grid of the volume's case.
        kind: "mask" or "boxes".
        labels: what the boxes say, and how often.
    """

    mask: Mask
    kind: str
    labels: dict[str, int]


def _stored_size(path: Path) -> tuple[int, int] | None:
    """Rows and columns of fastMRI's images of a file; None of other files."""
    try:
        return image_size(path) if suffix_of(path) in HDF5_SUFFIXES else None
    except DataError:
        return None


def annotation_of(volume: AssessedVolume, matrix: int) -> Annotation | None:
    """Read the annotation beside a volume, at the grid and of the slices that are assessed.

    Args:
        volume: What is assessed.
        matrix: Side of its images.

    Returns:
        None where nothing lies beside it.

    Raises:
        DataError: The annotation is of another geometry, or unreadable.
    """
    if volume.file is None:
        return None
    path = volume.file
    beside = mask_beside(path)
    boxes = [] if beside is not None else boxes_in(path.parent).get(stem_of(path), [])
    if beside is None and not boxes:
        return None
    source = read_either(path)
    count = len(source.kspace if isinstance(source, Scan) else source.image)
    own = (count, *source.matrix)
    if beside is not None:
        mask, kind = read_mask(beside, own, source.affine), "mask"
    else:
        rows, columns = _stored_size(path) or (own[2], own[1])
        mask, kind = box_mask(boxes, (count, columns, rows), volume.case.name), "boxes"
        if mask.shape != own:  # references are the centre of the field of view
            mask = to_grid(mask, source.matrix, None, None)
    grid = to_grid(mask, (matrix, matrix), source.voxel_mm, volume.voxel_mm)
    taken = grid[volume.slices.start : volume.slices.stop]
    return Annotation(mask=taken, kind=kind, labels=dict(Counter(box.label for box in boxes)))
