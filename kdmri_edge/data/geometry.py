"""Where a pixel lies in the patient: affines, their voxel sizes, directions and new grids.

An affine is float64 [4, 4] and maps (s, h, w, 1), indices of slice, phase encode and readout, to
millimetres in RAS+ (right, anterior, superior grow), as in NIfTI-1. DICOM, MRD and Siemens use
LPS+: the first two signs turned.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["LPS", "Affine", "directions", "from_axes", "regridded", "usable_affine", "voxel_size"]

Affine = NDArray[np.float64]

LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns RAS+ into LPS+ and back."""

_ENDS: Final = (("L", "R"), ("P", "A"), ("I", "S"))


def usable_affine(matrix: NDArray[np.floating]) -> Affine | None:
    """The matrix as an affine, None where it is none (not finite, or its axes lie in a plane)."""
    affine = np.array(matrix, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return None
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if not steps.all() or abs(np.linalg.det(affine[:3, :3] / steps)) < 1e-3:
        return None
    return affine


def from_axes(
    slices: ArrayLike,
    height: ArrayLike,
    width: ArrayLike,
    origin: ArrayLike,
) -> Affine:
    """Put an affine together.

    Args:
        slices: Step from a slice to the next, three millimetres.
        height: Step from a pixel to the next along H.
        width: The same along W.
        origin: Position of the first pixel of the first slice.
    """
    affine = np.eye(4)
    for column, vector in enumerate((slices, height, width, origin)):
        affine[:3, column] = vector
    return affine


def voxel_size(affine: Affine) -> tuple[float, float, float]:
    """Voxel size along (S, H, W) in millimetres."""
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    return float(steps[0]), float(steps[1]), float(steps[2])


def regridded(
    affine: Affine, *, old: Sequence[float], new: Sequence[float], step: Sequence[float]
) -> Affine:
    """Affine of another grid over the same patient.

    Args:
        affine: Of the old grid.
        old: Old (s, h, w) indices of a point.
        new: Its indices in the new grid.
        step: How many old pixels a new one spans, along each axis; negative where it is flipped.
    """
    change = np.diag([*step, 1.0]).astype(np.float64)
    change[:3, 3] = np.asarray(old, np.float64) - np.asarray(step, np.float64) * np.asarray(new)
    return np.asarray(affine @ change)


def directions(affine: Affine) -> str:
    """Where the axes S, H and W grow to, by the nearest of the letters R L A P S I.

    "SLA": slices upwards, H to the patient's left, W to the front. Oblique axes get the letters
    that fit best together, each pair of ends once.
    """
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    best = max(
        permutations(range(3)), key=lambda rows: sum(abs(unit[r, c]) for c, r in enumerate(rows))
    )
    return "".join(_ENDS[row][int(unit[row, column] > 0)] for column, row in enumerate(best))
