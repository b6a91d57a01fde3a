"""The orthonormal Fourier transform between image and k-space (numpy)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "dft_matrices",
    "dft_pair",
    "image_to_kspace",
    "kspace_to_image",
    "lines_to_image",
    "mirrored",
]

Complex = NDArray[np.complexfloating[Any, Any]]
Array = NDArray[np.generic]


def image_to_kspace(image: Array, axes: Sequence[int] = (-2, -1)) -> Complex:
    """Transform an image to k-space.

    Args:
        image: Real or complex array; its origin along each transformed axis is index N // 2.
        axes: Axes to transform.

    Returns:
        k-space of the same shape, zero frequency at index 0. Single precision stays single.
    """
    shifted = np.fft.ifftshift(image, axes=axes)
    result: Complex = np.fft.fftn(shifted, axes=axes, norm="ortho")
    return result.astype(np.result_type(image.dtype, np.complex64), copy=False)


def kspace_to_image(kspace: Array, axes: Sequence[int] = (-2, -1)) -> Complex:
    """Transform k-space (zero frequency at index 0) to a complex image; inverse of the above."""
    image = np.fft.ifftn(kspace, axes=axes, norm="ortho")
    result: Complex = np.fft.fftshift(image, axes=axes)
    return result.astype(np.result_type(kspace.dtype, np.complex64), copy=False)


def lines_to_image(
    lines: NDArray[np.complex64], rows: NDArray[np.intp], height: int
) -> NDArray[np.complex64]:
    """Transform some lines of k-space to the image of those lines, without those that are zero.

    Args:
        lines: complex64 [..., m, W].
        rows: Where they lie among the `height` lines, zero frequency at 0; int [m].
        height: Lines H of the image.

    Returns:
        complex64 [..., H, W], what `kspace_to_image` gives of k-space that is zero elsewhere.
    """
    along: NDArray[np.complex64] = kspace_to_image(lines, (-1,)).astype(np.complex64, copy=False)
    if 2 * len(rows) <= height:  # a product with few columns is quicker than transforms of zeros
        images: NDArray[np.complex64] = _inverse(height, rows.astype(np.intp).tobytes()) @ along
        return images
    whole = np.zeros((*lines.shape[:-2], height, lines.shape[-1]), np.complex64)
    whole[..., rows, :] = along
    return kspace_to_image(whole, (-2,)).astype(np.complex64, copy=False)


@lru_cache(maxsize=16)
def _inverse(height: int, rows: bytes) -> NDArray[np.complex64]:
    """Return the columns of the inverse transform that belong to some lines, [H, m]."""
    places = np.arange(height) - height // 2
    angle = 2 * np.pi * (np.outer(places, np.frombuffer(rows, np.intp)) % height) / height
    columns: NDArray[np.complex64] = (np.exp(1j * angle) / np.sqrt(height)).astype(np.complex64)
    return columns


def dft_matrices(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return cos and sin of the orthonormal DFT matrix F = C - i S, each [n, n]."""
    index = np.arange(n)
    angle = 2 * np.pi * ((index[:, None] * index[None, :]) % n) / n
    scale = 1 / np.sqrt(n)
    return scale * np.cos(angle), scale * np.sin(angle)


@lru_cache(maxsize=16)  # both axes of eight matrices
def dft_pair(n: int) -> NDArray[np.float32]:
    """Return `dft_matrices` as graphs of any matrix are given them: float32 [2, n, n], kept."""
    return np.stack(dft_matrices(n)).astype(np.float32)


def mirrored(kspace: NDArray[Any], axes: tuple[int, ...] = (-2, -1)) -> NDArray[Any]:
    """Return what lies at -k, zero frequency at index 0; of samples as of their mask."""
    return np.roll(np.flip(kspace, axes), 1, axes)
