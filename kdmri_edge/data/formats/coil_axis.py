"""Whether images along an axis are coils of one slice or slices: found by what they have in common.

Coils see one object, each by a sensitivity that changes slowly across it: the ratio of two of their
images has none of the object's edges. Slices have edges of their own.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.physics.fourier import kspace_to_image

__all__ = ["look_like_coils"]

_FEWEST: Final = 4
"""Images below which nothing is concluded: two neighbouring thin slices have many edges alike."""
_MOST: Final = 6
"""Images that are compared, in pairs."""
_TYPICAL: Final = 0.25
_LARGEST: Final = 0.45
"""Edges that a ratio keeps, over those of its two images: median and maximum over the pairs. A
measured array of 16 coils gives 0.19 and 0.34; slices of volumes 0.4 to 1 and 0.8 to 1.4."""
_SMOOTH: Final = 1
_LOCAL: Final = 4
"""Half widths in pixels of the means that take noise away, and what changes slowly."""
_BRIGHT: Final = 0.2
_AREA: Final = 100


def look_like_coils(kspace: NDArray[Any]) -> bool:
    """Tell whether k-space along the first axis is that of coils of one slice.

    Args:
        kspace: [n, H, W], zero frequency anywhere: magnitudes do not depend on it.

    Returns:
        False too where it cannot be told: few images, small matrices, noise.
    """
    if len(kspace) < _FEWEST or min(kspace.shape[-2:]) < 4 * _LOCAL:
        return False
    chosen = np.unique(np.linspace(0, len(kspace) - 1, _MOST).round().astype(np.intp))
    images = _means(np.abs(kspace_to_image(kspace[chosen])).astype(np.float64), _SMOOTH)
    top = np.quantile(images, 0.99, axis=(1, 2), keepdims=True)
    if not (top > 0).all():
        return False
    bright = images > _BRIGHT * top
    logarithms = np.log(np.maximum(images, 1e-6 * top))
    kept = [
        share
        for a in range(len(images))
        for b in range(a + 1, len(images))
        if (share := _edges_of_ratio(logarithms[a], logarithms[b], bright[a] & bright[b]))
        is not None
    ]
    if len(kept) < _FEWEST:
        return False
    return float(np.median(kept)) < _TYPICAL and max(kept) < _LARGEST


def _edges_of_ratio(
    one: NDArray[np.float64], other: NDArray[np.float64], inside: NDArray[np.bool_]
) -> float | None:
    """Energy of a ratio's edges over that of its two images', from their logarithms."""
    if inside.sum() < _AREA:
        return None
    weight = inside.astype(np.float64)
    share = np.maximum(_means(weight, _LOCAL), 1e-9)

    def edges(values: NDArray[np.float64]) -> float:
        local = _means(values * weight, _LOCAL) / share
        return float((((values - local) * weight) ** 2).sum())

    of_images = edges(one) + edges(other)
    return edges(one - other) / of_images if of_images > 0 else None


def _means(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Means over squares of 2 reach + 1 pixels, around the edges too."""
    for axis in (-2, -1):
        values = np.mean([np.roll(values, n, axis) for n in range(-reach, reach + 1)], axis=0)
    return values
