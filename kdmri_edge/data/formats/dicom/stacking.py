"""The order and the place of the slices of a DICOM series: one decision, best evidence first.

1. Positions (ImagePositionPatient) of all images: along the slices' normal.
2. Positions of some: the others lie where their SliceLocation or InstanceNumber puts them, if those
   agree with the positions that are told; else the series is refused.
3. SliceLocation, if every image has its own.
4. InstanceNumber, if every image has its own; the frames of a single file come as they lie in it.

Without any of them nothing tells the order, and names of files are not believed: the series is
refused. An affine needs positions, orientation and pixel spacing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.formats.dicom.frames import Frame
from kdmri_edge.data.geometry import LPS, Affine, from_axes, usable_affine
from kdmri_edge.errors import DataError

__all__ = ["stacked"]

_EVEN: Final = 0.02
"""Largest difference between steps from slice to slice, as a share of their mean; headers round."""

_SAME_MM: Final = 1e-3
"""Positions that are nearer to each other are one."""


def stacked(path: Path, frames: Sequence[Frame]) -> tuple[list[Frame], Affine | None]:
    """Put images in the order of their slices.

    Args:
        path: Of the series, for messages.
        frames: Of one series, in any order.

    Returns:
        The images in order, and the affine of [slice, row, column]; None where the headers do not
        tell all of it.

    Raises:
        DataError: Different matrices, orientations or pixel sizes, several images of one position,
            a missing slice, or an order that nothing tells.
    """
    if len({frame.pixels.shape for frame in frames}) > 1:
        raise DataError(f"{path} holds images of different matrices.", "Give one series.")
    cosines = _common(path, [frame.cosines for frame in frames])
    spacing = _common(path, [frame.spacing for frame in frames])
    positions = _positions(path, frames)
    if positions is None:
        return _without_positions(path, frames), None
    normal = _normal(cosines, positions)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    _check_even(path, along[order])
    kept = [frames[index] for index in order]
    if cosines is None or spacing is None:
        return kept, None
    start, end = positions[order[0]], positions[order[-1]]
    # A single slice has no neighbour: what its header says, and 1 mm where that is silent.
    across = normal * (kept[0].between or 1.0)
    if len(kept) > 1:
        across = (end - start) / (len(kept) - 1)
    rows, columns = cosines[3:] * spacing[0], cosines[:3] * spacing[1]
    affine = usable_affine(LPS @ from_axes(across, rows, columns, start))
    if affine is None:
        raise DataError(
            f"{path} has an image orientation that makes no sense.", "Export the series again."
        )
    return kept, affine


def _common(path: Path, told: Sequence[NDArray[np.float64] | None]) -> NDArray[np.float64] | None:
    """What all headers say that say it; None where none does."""
    found = [each for each in told if each is not None]
    if any(not np.allclose(each, found[0], atol=1e-3, rtol=1e-3) for each in found):
        raise DataError(
            f"{path} holds slices of several orientations or pixel sizes.",
            "Give each stack of slices a folder of its own (a localiser has three).",
        )
    return found[0] if found else None


def _normal(
    cosines: NDArray[np.float64] | None, positions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Unit vector across the images; where they do not tell, the line on which they lie."""
    across = np.ptp(positions, axis=0) if cosines is None else np.cross(cosines[:3], cosines[3:])
    return np.asarray(across / (float(np.linalg.norm(across)) or 1.0))


def _positions(path: Path, frames: Sequence[Frame]) -> NDArray[np.float64] | None:
    """Positions of all images [N, 3]; None where no header tells any.

    Raises:
        DataError: Some tell theirs, and nothing tells those of the others.
    """
    told = [frame for frame in frames if frame.position is not None]
    if not told:
        return None
    silent = [frame for frame in frames if frame.position is None]
    if not silent:
        return np.stack([frame.position for frame in told if frame.position is not None])
    for numbers in (_locations(frames), _numbers(frames)):
        found = None if numbers is None else _on_a_line(frames, numbers)
        if found is not None:
            return found
    raise DataError(
        f"{len(silent)} of {len(frames)} images of {path} have no position"
        f" ({silent[0].file.name}), and neither SliceLocation nor InstanceNumber tells it.",
        "Export the series again, with ImagePositionPatient in every file.",
    )


def _on_a_line(frames: Sequence[Frame], numbers: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Positions of all images, where those that are told go evenly with numbers; else None."""
    known = [index for index, frame in enumerate(frames) if frame.position is not None]
    if len(known) < 3:  # two lie on a line whatever they are
        return None
    stacked_positions = np.stack([f.position for f in frames if f.position is not None])
    terms = np.column_stack([np.ones(len(numbers)), numbers])
    line, *_ = np.linalg.lstsq(terms[known], stacked_positions, rcond=None)
    step = float(np.linalg.norm(line[1])) * float(np.diff(np.sort(numbers)).min())
    off = float(np.abs(terms[known] @ line - stacked_positions).max())
    if step < _SAME_MM or off > _EVEN * step:
        return None
    positions: NDArray[np.float64] = terms @ line
    positions[known] = stacked_positions
    return positions


def _without_positions(path: Path, frames: Sequence[Frame]) -> list[Frame]:
    numbers = _locations(frames)
    if numbers is None:
        numbers = _numbers(frames)
    if numbers is None:
        raise DataError(
            f"Nothing tells the order of the {len(frames)} images of {path}: they have no"
            " positions, and neither SliceLocation nor InstanceNumber of their own.",
            "Export the series again, or give the images in order as .nii.gz or .npy.",
        )
    return [frames[index] for index in np.argsort(numbers, kind="stable")]


def _locations(frames: Sequence[Frame]) -> NDArray[np.float64] | None:
    return _all_different([frame.location for frame in frames])


def _numbers(frames: Sequence[Frame]) -> NDArray[np.float64] | None:
    if len({frame.file for frame in frames}) == 1:
        return np.arange(len(frames), dtype=np.float64)
    return _all_different([frame.number for frame in frames])


def _all_different(values: Sequence[float | None]) -> NDArray[np.float64] | None:
    """The values, where every image has one of its own."""
    found = [value for value in values if value is not None]
    complete = len(found) == len(set(found)) == len(values)
    return np.array(found, np.float64) if complete else None


def _check_even(path: Path, places: NDArray[np.float64]) -> None:
    """Refuse repeated and missing slices; `places` are millimetres along the normal, sorted."""
    steps = np.diff(places)
    if not len(steps):
        return
    if steps.min() < _SAME_MM:
        each = len(places) / (1 + int((steps >= _SAME_MM).sum()))
        raise DataError(
            f"{path} holds several images of one position (about {each:g} each).",
            "Give each echo, phase, repetition or part (magnitude, phase) a folder of its own.",
        )
    if np.ptp(steps) > max(_EVEN * float(steps.mean()), _SAME_MM):
        raise DataError(
            f"{path} has slices that are {steps.min():g} to {steps.max():g} mm apart.",
            "A slice may be missing: copy the whole series again.",
        )
