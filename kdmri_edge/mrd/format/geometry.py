"""Where slices lie: MRD's positions and directions, and affines in the patient's RAS+ axes.

Whether the axes of readouts run along phase_dir and read_dir is the vendor's, see
`data.orientation`; those of images always do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from ismrmrd import ImageHeader
from ismrmrd.acquisition import AcquisitionHeader
from numpy.typing import NDArray

from kdmri_edge.data.orientation import Orientation, sign_of
from kdmri_edge.mrd.format.header import Encoding

__all__ = ["affine_of", "place_slice", "slice_order"]

Head: TypeAlias = AcquisitionHeader | ImageHeader
"""A header with position, slice_dir, phase_dir and read_dir."""

_RAS: Final = np.diag([-1.0, -1.0, 1.0])  # MRD's axes are LPS+
_EVEN: Final = 1e-2  # of a step: how far slices may be from equal distances


def _vector(values: Sequence[float]) -> NDArray[np.float64]:
    return np.array(list(values), dtype=np.float64)


def slice_order(heads: Sequence[Head], numbers: Sequence[int]) -> list[int]:
    """Return the order of slices along their normal; by number where positions do not tell."""
    along = [float(_vector(head.position) @ _vector(head.slice_dir)) for head in heads]
    placed = all(np.linalg.norm(_vector(head.slice_dir)) > 0.5 for head in heads)
    told = placed and len({round(value, 3) for value in along}) == len(heads)
    return sorted(range(len(heads)), key=lambda i: (along[i] if told else 0.0, numbers[i]))


def affine_of(
    heads: Sequence[Head],
    encoding: Encoding,
    matrix: tuple[int, int],
    orientation: Orientation = Orientation.ALONG,
) -> NDArray[np.float64] | None:
    """Return the affine of a stack: pixel indices (s, h, w, 1) to millimetres in RAS+.

    `position` is the slice's centre, which the Fourier transform puts on pixel N // 2.

    Args:
        heads: One per slice, in order.
        encoding: Of the scan.
        matrix: (H, W) of the images.
        orientation: How H and W run to phase_dir and read_dir, ALONG or AGAINST.

    Returns:
        float64 [4, 4]; None without directions, or where slices are not parallel or equidistant.
    """
    first = heads[0]
    read, phase, normal = (
        _vector(direction) for direction in (first.read_dir, first.phase_dir, first.slice_dir)
    )
    if min(np.linalg.norm(v) for v in (read, phase, normal)) < 0.5:
        return None
    places = np.stack([_vector(head.position) for head in heads])
    step = normal * encoding.fov_mm[2]
    if len(heads) > 1:
        steps = np.diff(places, axis=0)
        step = steps.mean(axis=0)
        length = float(np.linalg.norm(step))
        parallel = all(
            np.allclose(_vector(h.read_dir), read, atol=1e-3)
            and np.allclose(_vector(h.phase_dir), phase, atol=1e-3)
            for h in heads
        )
        if length == 0 or not parallel or np.abs(steps - step).max() > _EVEN * length:
            return None
    height, width = matrix
    fx, fy, _ = encoding.fov_mm
    # a pixel has the size of the encoded grid's, whatever of it is shown
    sign = sign_of(orientation)
    down, across = sign * phase * (fy / encoding.rows), sign * read * (fx / encoding.width)
    origin = places[0] - down * (height // 2) - across * (width // 2)
    lps = np.column_stack([step, down, across, origin])
    affine = np.eye(4)
    affine[:3] = _RAS @ lps
    return affine


def place_slice(
    head: Head, affine: NDArray[np.float64], index: int, matrix: tuple[int, int]
) -> None:
    """Write a slice's position and directions into a header, from an affine."""
    lps = _RAS @ affine[:3]
    centre = lps @ np.array([index, matrix[0] // 2, matrix[1] // 2, 1.0])
    head.position[:] = [float(v) for v in centre]
    for name, column in (("slice_dir", 0), ("phase_dir", 1), ("read_dir", 2)):
        direction = lps[:, column] / np.linalg.norm(lps[:, column])
        getattr(head, name)[:] = [float(v) for v in direction]
