"""Per-slice scaling, from the zero-filled data alone.

A scanner streams slices and has no fully sampled reference, so a network's input is normalised by
the largest magnitude of that slice's own zero-filled image and its output is multiplied back by the
same number. The rule travels with every checkpoint and bundle as `SCALING_RULE`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import DataError

FLOOR: Final = 1e-12
"""A slice whose zero-filled magnitude stays below this (unit of the image) counts as blank."""

SCALING_RULE: Final[dict[str, Any]] = {"rule": "max-abs-zero-filled", "floor": FLOOR}
"""What bundles and checkpoints record; `slice_scale` is its one implementation."""


def slice_scale(x_u: NDArray[Any]) -> NDArray[np.float32]:
    """The number by which each slice's zero-filled image is divided before the network sees it.

    Args:
        x_u: zero-filled images, [S, H, W], real or complex, in any unit.

    Returns:
        float32 [S], the unit of `x_u`: max |x_u| of the slice, or 1 for a blank slice.

    Raises:
        DataError: `x_u` is not [S, H, W], has no pixels, holds a NaN or an infinity, or is not
            blank and yet so small that all of it would count as blank.
    """
    x_u = np.asarray(x_u)
    if x_u.ndim != 3 or x_u.size == 0:
        raise DataError(
            f"The zero-filled image has shape {list(x_u.shape)}, not [slices, height, width].",
            "Give a stack of slices; a single slice is [1, height, width].",
        )
    scale = np.abs(x_u).max(axis=(1, 2))
    if not np.isfinite(scale).all():
        bad = int(np.flatnonzero(~np.isfinite(scale))[0])
        raise DataError(
            f"Slice {bad} of the zero-filled image holds a NaN or an infinity.",
            "Check the k-space that it was made from.",
        )
    if 0 < scale.max() <= FLOOR:
        raise DataError(
            f"The zero-filled image has values of {scale.max():.2g} at most, too small to be told"
            " from a blank one.",
            "Multiply the data by a constant, such as 1e9; the image is in the same unit.",
        )
    return np.where(scale > FLOOR, scale, 1.0).astype(np.float32)


def network_input(x_u: NDArray[Any], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a network sees of zero-filled images: normalised, real and imaginary parts as channels.

    Args:
        x_u: zero-filled images [S, H, W], real or complex, in any unit.
        scale: what `slice_scale` gives for them, [S].

    Returns:
        float32 [S, C, H, W], C-contiguous; C = 2 for complex images, else 1.
    """
    return as_channels(x_u / scale[:, None, None])


def as_channels(images: NDArray[Any]) -> NDArray[np.float32]:
    """Return images [S, H, W] as float32 [S, C, H, W]; C = 2 (real, imaginary) for complex ones."""
    parts = [images.real, images.imag] if np.iscomplexobj(images) else [images]
    return np.ascontiguousarray(np.stack(parts, 1), dtype=np.float32)


def network_maps(maps: NDArray[Any]) -> NDArray[np.float32]:
    """What a network sees of coil sensitivities, which have no unit and are not scaled.

    Args:
        maps: complex [..., C, H, W].

    Returns:
        float32 [..., C, 2, H, W], C-contiguous: real and imaginary parts.
    """
    return np.ascontiguousarray(np.stack([maps.real, maps.imag], -3), dtype=np.float32)


def network_kspace(kspace: NDArray[Any], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a network sees of the coils' k-space: normalised, real and imaginary parts apart.

    Args:
        kspace: complex [S, C, H, W], in any unit.
        scale: What `slice_scale` gives for the root sum of squares of the coils' zero-filled
            images, [S].

    Returns:
        float32 [S, C, 2, H, W], C-contiguous.
    """
    return network_maps(kspace / scale[:, None, None, None])


def network_image(output: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[Any]:
    """Undo `network_input`: float32 [S, C, H, W] back to images [S, H, W] in their own unit.

    Returns:
        float32 for one channel, complex64 for two.
    """
    image = output[:, 0] + 1j * output[:, 1] if output.shape[1] == 2 else output[:, 0]
    dtype = np.complex64 if np.iscomplexobj(image) else np.float32
    result: NDArray[Any] = (image * scale[:, None, None]).astype(dtype)
    return result
