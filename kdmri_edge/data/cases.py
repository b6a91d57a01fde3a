"""Undersampled cases: what a network sees and should give, for one volume under one mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import kspace_to_image
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.projection import zero_filled
from kdmri_edge.scaling import slice_scale


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Case:
    """One volume under one mask, in the volume's own intensity unit (nothing is divided yet).

    Attributes:
        name: the volume's name.
        subject: whom it shows.
        contrast: for instance "T1w", None where unknown.
        sha256: of the volume's source file.
        target: the fully sampled image [S, H, W], float32 (complex64 with two channels).
        zero_filled: the zero-filled image x_u [S, H, W], same dtype; the real part for one channel.
        scale: float32 [S]; the network sees `zero_filled / scale`, see `scaling.slice_scale`.
    """

    name: str
    subject: str
    contrast: str | None
    sha256: str
    target: NDArray[Any]
    zero_filled: NDArray[Any]
    scale: NDArray[np.float32]


def make_case(volume: Volume, mask: Mask, channels: int = 1) -> Case:
    """Undersample a volume, or take the undersampled k-space that it carries.

    Args:
        volume: fully sampled images at the mask's matrix.
        mask: which samples are taken.
        channels: 1 for networks on magnitude (zero-phase) images, 2 for (real, imaginary).

    Returns:
        float32 arrays for one channel, complex64 for two.

    Raises:
        MaskError: the mask is made for another matrix.
        DataError: a complex volume for a one-channel network, k-space acquired with another mask,
            or an unknown number of channels.
    """
    if channels not in (1, 2):
        raise DataError(f"{channels} channels make no image.", "Use 1 (magnitude) or 2 (complex).")
    if volume.is_complex and channels == 1:
        raise DataError(
            f"{volume.name} is complex, but the network takes magnitude (zero-phase) images.",
            "Use a network of two channels, or save numpy.abs of the volume and use that.",
        )
    mask.check_matrix(*volume.matrix)
    if volume.kspace is None:
        x_u = zero_filled(volume.image, mask)
    elif volume.kspace_mask != mask:
        raise DataError(
            f"{volume.name} carries k-space sampled with another mask than {mask.name!r}.",
            "Use the mask of the file, or a file with volfs alone to undersample it afresh.",
        )
    else:
        x_u = kspace_to_image(volume.kspace)
        if not volume.is_complex:
            x_u = x_u.real  # never the magnitude: see physics.projection
    dtype = np.float32 if channels == 1 else np.complex64
    x_u = np.ascontiguousarray(x_u, dtype=dtype)
    return Case(
        name=volume.name,
        subject=volume.subject,
        contrast=volume.contrast,
        sha256=volume.sha256,
        target=volume.image.astype(dtype, copy=False),
        zero_filled=x_u,
        scale=slice_scale(x_u),
    )
