"""What every reader returns: one volume of one subject, slices first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.geometry import Affine
from kdmri_edge.errors import DataError
from kdmri_edge.physics.masks import Mask
from kdmri_edge.utils.console import say

NEGATIVE_TOLERANCE = 1e-6
"""Negative magnitudes down to this fraction of the maximum are rounding, and become 0."""

# What interpolation leaves below zero beside bright edges. Cut off at the sinc's own band it
# undershoots an edge by 9 % of its height, where three axes meet by 0.09 x 1.18^2 = 12.5 %.
_DEEPEST_RINGING: Final = 0.15
# And it is rare: how far the image changes at most where it is set to zero, in root-mean-square.
# A phase, a real part in noise or a wrapped integer is beyond one or the other.
_LARGEST_RINGING: Final = 0.005


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Volume:
    """A stack of slices with where it came from.

    Attributes:
        image: [S, H, W], float32 (magnitude) or complex64, in the file's own intensity unit; phase
            encode is H.
        name: the file's name without suffix; unique within a folder.
        subject: whom it shows; splits go by this.
        contrast: for instance "T1w"; None where the name does not tell.
        sha256: of the source file (of the pixels, for a phantom), 64 hex digits.
        voxel_mm: voxel size along (S, H, W) in millimetres, None where the file does not tell.
        affine: float64 [4, 4], pixel indices (s, h, w, 1) to millimetres in the patient's RAS+
            axes, see `data.geometry`; None where the file does not tell.
        measured: the image was computed from k-space as a scanner measured it (not from stored
            magnitudes).
        kspace: complex64 [S, H, W] under the conventions of `physics.fourier`, zero where not
            sampled; None where the file holds images only.
        kspace_mask: which samples of `kspace` were taken; None exactly when `kspace` is None.
        left_out: what else the file holds that was not read, in words ("3 phase images").
    """

    image: NDArray[Any]
    name: str
    subject: str
    contrast: str | None = None
    sha256: str = ""
    voxel_mm: tuple[float, float, float] | None = None
    affine: Affine | None = None
    measured: bool = False
    kspace: NDArray[np.complex64] | None = None
    kspace_mask: Mask | None = None
    left_out: tuple[str, ...] = ()

    @property
    def is_complex(self) -> bool:
        """True when the image carries phase."""
        return bool(np.iscomplexobj(self.image))

    @property
    def matrix(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return int(self.image.shape[1]), int(self.image.shape[2])


def checked_image(pixels: NDArray[Any], source: Path) -> NDArray[Any]:
    """The pixels as float32 or complex64, refused where they cannot be an MR image.

    Args:
        pixels: [S, H, W], any numeric dtype.
        source: the file, for the message.

    Returns:
        float32 or complex64 [S, H, W], C-contiguous. Magnitudes just below zero are zero: what is
        more than rounding, but no more than interpolation leaves of edges, with a note on standard
        error.

    Raises:
        DataError: wrong rank, not numeric, empty, NaN or infinity, all zero, or a magnitude further
            below zero.
    """
    if pixels.ndim != 3:
        raise DataError(
            f"{source} holds an array of shape {list(pixels.shape)}, not a volume of three axes.",
            "Store one volume per file; split a series (time, coils) into separate files.",
        )
    if pixels.size == 0:
        raise DataError(
            f"{source} is an empty volume, of shape {list(pixels.shape)}.",
            "Remove the file or export it again.",
        )
    if pixels.dtype.kind not in "buifc":
        raise DataError(
            f"{source} holds {pixels.dtype} values, not numbers.",
            "Store real or complex numbers, one channel.",
        )
    kind = np.complex64 if pixels.dtype.kind == "c" else np.float32
    with np.errstate(over="ignore"):  # what overflows float32 is refused just below
        image = np.ascontiguousarray(pixels, dtype=kind)
    if not np.isfinite(image).all():
        raise DataError(
            f"{source} holds NaN or infinite values.",
            "Replace them (by 0 outside the body, say) or export the volume again.",
        )
    peak = float(np.abs(image).max())
    if peak == 0.0:
        raise DataError(
            f"{source} is all zero.", "Remove the file: there is nothing to reconstruct."
        )
    if kind is np.float32 and image.min() < 0.0:
        _check_negative(image, peak, source)
        image = np.maximum(image, np.float32(0.0))
    return image


def _check_negative(image: NDArray[Any], peak: float, source: Path) -> None:
    """Refuse negative values that are neither rounding nor what interpolation leaves of edges."""
    lowest = float(image.min())
    if lowest >= -NEGATIVE_TOLERANCE * peak:
        return
    below = image[image < 0.0].astype(np.float64)
    # in units of the peak, whose square may be beyond float32
    norm = float(np.linalg.norm(image.astype(np.float64).ravel() / peak))
    share = float(np.linalg.norm(below / peak)) / norm
    if lowest < -_DEEPEST_RINGING * peak or share > _LARGEST_RINGING:
        raise DataError(
            f"{source} holds negative values (down to {lowest:g}), so it is no magnitude.",
            "Store the magnitude (of its own results `kdmri-edge run --magnitude` does), or"
            " complex values if the sign carries phase.",
        )
    say(
        f"Note: {100 * below.size / image.size:.1g} % of the pixels of {source.name} are negative,"
        f" down to {-100 * lowest / peak:.2g} % of the maximum, as interpolation leaves them beside"
        " edges; they are taken as 0."
    )
