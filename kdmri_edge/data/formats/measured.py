"""What readers of measured k-space share: a mask from zeros, a single coil as a volume."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.scan import Scan
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.masks import Mask

__all__ = [
    "is_lines",
    "mask_of",
    "remove_oversampling",
    "root_sum_of_squares",
    "volume_of",
]

_FILLED: Final = 0.9
"""A line counts as sampled whole from this share of its points on; a sample may be 0 by chance."""


def is_lines(filled: NDArray[np.floating[Any]]) -> bool:
    """Whether each line is sampled (nearly) whole or not at all, given their filled shares."""
    return bool(((filled == 0) | (filled > _FILLED)).all())


def mask_of(kspace: NDArray[Any], name: str) -> Mask:
    """The mask that the zeros of k-space tell.

    Args:
        kspace: [S, C, H, W], zero where not sampled.
        name: What to call the mask.

    Raises:
        DataError: The slices were sampled differently, or nothing was.
    """
    sampled = (kspace != 0).any(axis=1)
    filled = sampled.mean(axis=2)
    taken = filled > 0 if all(is_lines(of_slice) for of_slice in filled) else sampled
    taken = taken[sampled.any(axis=(1, 2))]  # a blank slice tells nothing
    if not len(taken):
        raise DataError(f"K-space of {name} is all zero.", "There is nothing to reconstruct.")
    if (taken != taken[0]).any():
        raise DataError(
            f"{name} has slices that were sampled differently.",
            "Give the slices of each sampling pattern in a file of their own.",
        )
    return Mask(samples=taken[0], name=name)


def remove_oversampling(kspace: NDArray[Any], width: int) -> NDArray[Any]:
    """Crop the field of view along the last axis to its central `width` pixels."""
    size = kspace.shape[-1]
    if width >= size:
        return kspace
    image = kspace_to_image(kspace, axes=(-1,))
    start = size // 2 - width // 2
    return image_to_kspace(image[..., start : start + width], axes=(-1,))


def root_sum_of_squares(kspace: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Magnitude images [S, H, W] of k-space [S, C, H, W], zero-filled where it is undersampled."""
    images = kspace_to_image(kspace)
    return np.asarray(np.sqrt((np.abs(images) ** 2).sum(axis=1)), dtype=np.float32)


def volume_of(scan: Scan) -> Volume:
    """A scan of one coil as a volume.

    Fully sampled it is images alone, which any mask may undersample; otherwise it carries its
    k-space and mask too.

    Raises:
        DataError: Several coils.
    """
    if scan.coils != 1:
        raise DataError(
            f"{scan.name} has {scan.coils} coils, and one was expected.",
            "Use networks that combine coils (dccnn-d3c5-sense), give single-coil data, or combine"
            " the coils (`kdmri-edge data convert --magnitude` writes the root of their sum of"
            " squares).",
        )
    kspace = np.ascontiguousarray(scan.kspace[:, 0])
    whole = bool(scan.mask.samples.all())
    return Volume(
        image=kspace_to_image(kspace),
        name=scan.name,
        subject=scan.subject,
        contrast=scan.contrast,
        sha256=scan.sha256,
        voxel_mm=scan.voxel_mm,
        affine=scan.affine,
        measured=True,
        kspace=None if whole else kspace,
        kspace_mask=None if whole else scan.mask,
    )
