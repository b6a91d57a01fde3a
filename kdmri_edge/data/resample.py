"""Bringing volumes to a matrix: pad the field of view with air to a square, then crop k-space.

Cropping k-space lowers the resolution and keeps the whole field of view, as if the scanner had
acquired fewer phase-encode lines and readout points; anatomy is never cut away and nothing is
interpolated.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.geometry import regridded
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image


def to_matrix(
    volume: Volume, matrix: int | tuple[int, int], *, instead: str | None = None
) -> Volume:
    """Resample to `matrix` x `matrix` pixels over a square field of view, or to a rectangle.

    Args:
        volume: any size; with `voxel_mm` the field of view is squared in millimetres, without it
            pixels are taken as square.
        matrix: the pixels wanted along H and W, or (H, W): the field of view stays square, and
            pixels are longer along the axis that has fewer.
        instead: What to do with a volume below the matrix, where its user cannot choose a smaller
            one; None names the largest.

    Returns:
        The volume at the matrix, intensities on the same scale, its affine such that everything
        stays where it is in the patient. A magnitude stays a magnitude, a complex image stays
        complex. A volume of that size already is returned as it is.

    Raises:
        DataError: the volume is below the matrix (it is never upsampled), the matrix is not
            positive, or the volume carries k-space of another size (its mask fixes the matrix).
    """
    rows, columns = (matrix, matrix) if isinstance(matrix, int) else matrix
    if min(rows, columns) < 1:
        raise DataError(f"A matrix of {matrix} makes no sense.", "Give a matrix of 1 or more.")
    height, width = volume.matrix
    if (height, width) == (rows, columns):
        return volume
    if volume.kspace is not None:
        raise DataError(
            f"{volume.name} carries undersampled k-space of {height} x {width}, which cannot be"
            f" brought to {rows} x {columns}.",
            f"Use a matrix of {height} (square only), or a file with volfs alone.",
        )
    square = _square(height, width, volume.voxel_mm)
    if square[0] < rows or square[1] < columns:
        wanted = f"{rows}" if rows == columns else f"{rows} x {columns}"
        raise DataError(
            f"{volume.name} is {height} x {width}, below the matrix of {wanted}, and is never"
            " upsampled.",
            f"{instead or f'Use a matrix of {min(square)} or less'}, or leave the volume out.",
        )
    padded = pad_centred(volume.image, square)
    kspace = crop_kspace(image_to_kspace(padded), (rows, columns))
    gain = np.float32(np.sqrt(rows * columns / (square[0] * square[1])))
    image = kspace_to_image(kspace) * gain
    image = image.astype(np.complex64) if volume.is_complex else np.abs(image).astype(np.float32)
    voxel = volume.voxel_mm
    if voxel is not None:
        voxel = (voxel[0], voxel[1] * square[0] / rows, voxel[2] * square[1] / columns)
    affine = volume.affine
    if affine is not None:
        # Padding and cropping both keep the point at pixel N // 2 where it is.
        affine = regridded(
            affine,
            old=(0, height // 2, width // 2),
            new=(0, rows // 2, columns // 2),
            step=(1, square[0] / rows, square[1] / columns),
        )
    return replace(volume, image=image, voxel_mm=voxel, affine=affine)


def is_large_enough(volume: Volume | Scan, matrix: tuple[int, int]) -> bool:
    """Tell whether `to_matrix` brings a volume to (H, W) without upsampling it."""
    if volume.matrix == matrix:
        return True
    square = _square(*volume.matrix, volume.voxel_mm)
    whole = isinstance(volume, Scan) or volume.kspace is None
    return whole and square[0] >= matrix[0] and square[1] >= matrix[1]


def _square(
    height: int, width: int, voxel_mm: tuple[float, float, float] | None
) -> tuple[int, int]:
    """Pixels along H and W after padding to a field of view that is square in millimetres."""
    step_h, step_w = (voxel_mm[1], voxel_mm[2]) if voxel_mm else (1.0, 1.0)
    if abs(step_h / step_w - 1) < 0.01:  # headers round: such pixels are meant to be square
        step_h = step_w
    side = max(height * step_h, width * step_w)
    return max(height, round(side / step_h)), max(width, round(side / step_w))


def pad_centred(image: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Pad the last two axes with zeros to `shape`; pixel N // 2 moves to the new N // 2."""
    before = [new // 2 - old // 2 for old, new in zip(image.shape[-2:], shape, strict=True)]
    after = [n - o - b for o, n, b in zip(image.shape[-2:], shape, before, strict=True)]
    widths = [(0, 0)] * (image.ndim - 2) + list(zip(before, after, strict=True))
    return np.pad(image, widths)


def crop_kspace(kspace: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Keep the lowest frequencies of the last two axes, zero frequency at index 0 as before."""
    for axis, size in zip((-2, -1), shape, strict=True):
        # fftfreq's own order of integer frequencies; negative ones index from the end.
        keep = np.fft.ifftshift(np.arange(size) - size // 2)
        kspace = np.take(kspace, keep, axis=axis, mode="wrap")
    return kspace
