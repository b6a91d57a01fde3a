"""Interpolation to a finer matrix as scanners do it: zeros around k-space (sinc interpolation)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image

__all__ = ["interpolated"]


def interpolated(image: NDArray[Any], matrix: tuple[int, int]) -> NDArray[Any]:
    """Interpolate an image to a finer matrix over the same field of view.

    Pixel N // 2 stays in its place. The highest frequency of an even axis, which stands for both of
    its signs, is shared between them, so that a real image stays real; values below zero that a
    magnitude gets beside edges are cut off.

    Args:
        image: Magnitudes (real) or complex [H, W].
        matrix: (H, W) of the result, neither smaller than the image's.

    Returns:
        float32 or complex64 of that matrix, in the unit of the image.

    Raises:
        DataError: The matrix is smaller.
    """
    if any(new < old for new, old in zip(matrix, image.shape, strict=True)):
        raise DataError(
            f"An image of {image.shape[0]} x {image.shape[1]} is not interpolated to"
            f" {matrix[0]} x {matrix[1]}.",
            "Give a finer matrix.",
        )
    kspace = np.fft.fftshift(image_to_kspace(image))
    for axis, new in enumerate(matrix):
        kspace = _widened(kspace, axis, new)
    gain = np.float32(np.sqrt(np.prod(matrix) / image.size))
    fine: NDArray[Any] = kspace_to_image(np.fft.ifftshift(kspace)) * gain
    if np.iscomplexobj(image):
        return fine.astype(np.complex64, copy=False)
    magnitude: NDArray[np.float32] = np.maximum(fine.real, 0).astype(np.float32)
    return magnitude


def _widened(kspace: NDArray[Any], axis: int, new: int) -> NDArray[Any]:
    """Put zeros around an axis whose frequencies rise, zero frequency at N // 2."""
    old = kspace.shape[axis]
    if new == old:
        return kspace
    kspace = np.moveaxis(kspace, axis, 0)
    wide = np.zeros((new, *kspace.shape[1:]), kspace.dtype)
    first = new // 2 - old // 2
    wide[first : first + old] = kspace
    if old % 2 == 0:
        wide[first] /= 2
        wide[first + old] = wide[first]
    return np.moveaxis(wide, 0, axis)
