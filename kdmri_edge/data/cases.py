"""Undersampled cases: what a network sees and should give, for one volume under one mask."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
        zero_filled: the zero-filled image x_u [S, H, W], same dtype; for one channel its real part,
            or its magnitude where that was asked for.
        scale: float32 [S]; the network sees `zero_filled / scale`, see `scaling.slice_scale`.
        maps: sets of coil sensitivities that volumes share, complex64 [sets, C, H, W]; None for
            one coil.
        received: intp [S], the set that each slice is received with; None exactly when maps is.
    """

    name: str
    subject: str
    contrast: str | None
    sha256: str
    target: NDArray[Any]
    zero_filled: NDArray[Any]
    scale: NDArray[np.float32]
    maps: NDArray[np.complex64] | None = None
    received: NDArray[np.intp] | None = None

    def part(self, slices: slice) -> Case:
        """Return a case of some of the slices."""
        return replace(
            self,
            target=self.target[slices],
            zero_filled=self.zero_filled[slices],
            scale=self.scale[slices],
            received=None if self.received is None else self.received[slices],
        )

    def maps_of(self, slices: slice) -> NDArray[np.complex64] | None:
        """Return the coil sensitivities of some slices, complex64 [n, C, H, W]; None without."""
        if self.maps is None or self.received is None:
            return None
        chosen: NDArray[np.complex64] = self.maps[self.received[slices]]
        return chosen


def make_case(volume: Volume, mask: Mask, channels: int = 1, *, magnitude: bool = False) -> Case:
    """Undersample a volume, or take the undersampled k-space that it carries.

    Measured k-space is complex; a one-channel network gets the magnitude of its images as the fully
    sampled volume, undersampled as a zero-phase image. Other complex volumes are refused there,
    since who stored a phase may have meant it.

    Args:
        volume: fully sampled images at the mask's matrix.
        mask: which samples are taken.
        channels: 1 for networks on magnitude (zero-phase) images, 2 for (real, imaginary).
        magnitude: give |x_u| instead of the real part of x_u. Only for networks without data
            consistency: super-resolution, as KD-MRI's published code makes its input.

    Returns:
        float32 arrays for one channel, complex64 for two.

    Raises:
        MaskError: the mask is made for another matrix.
        DataError: a complex volume for a one-channel network, k-space acquired with another mask,
            an unknown number of channels, or a magnitude of two channels.
    """
    if channels not in (1, 2):
        raise DataError(f"{channels} channels make no image.", "Use 1 (magnitude) or 2 (complex).")
    if magnitude and channels == 2:
        raise DataError(
            "A magnitude has no imaginary part for a second channel.",
            "Use a network of one channel, or the complex zero-filled image.",
        )
    image = volume.image
    if volume.is_complex and channels == 1 and volume.measured and volume.kspace is None:
        image = np.abs(image)
    elif volume.is_complex and channels == 1:
        raise DataError(
            f"{volume.name} is complex, but the network takes magnitude (zero-phase) images.",
            "Use a network of two channels, or save numpy.abs of the volume and use that.",
        )
    mask.check_matrix(*volume.matrix)
    if volume.kspace is None:
        # A complex image keeps x_u complex: its magnitude can be taken, or both of its parts.
        whole = magnitude or channels == 2
        x_u = zero_filled(image.astype(np.complex64) if whole else image, mask)
    elif volume.kspace_mask != mask:
        raise DataError(
            f"{volume.name} carries k-space sampled with another mask than {mask.name!r}.",
            "Use the mask of the file, or a file with volfs alone to undersample it afresh.",
        )
    else:
        x_u = kspace_to_image(volume.kspace)
        if not volume.is_complex and not magnitude and channels == 1:
            x_u = x_u.real  # with the magnitude x' = x - P x + x_u would not hold
    if magnitude:
        x_u = np.abs(x_u)
    dtype = np.float32 if channels == 1 else np.complex64
    x_u = np.ascontiguousarray(x_u, dtype=dtype)
    return Case(
        name=volume.name,
        subject=volume.subject,
        contrast=volume.contrast,
        sha256=volume.sha256,
        target=image.astype(dtype, copy=False),
        zero_filled=x_u,
        scale=slice_scale(x_u),
    )
