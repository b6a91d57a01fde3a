"""Reference lines: calibration data that is measured beside the image, for coil sensitivities.

Accelerated scans may sample the centre of k-space apart from the image (a separate calibration
scan). Such lines have another time, often another contrast, so they fill no line of the image; the
sensitivities of the coils are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.physics.combining import centre_lines
from kdmri_edge.physics.masks import Mask

__all__ = ["ReferenceLines", "calibration_of", "calibration_reach"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReferenceLines:
    """The calibration lines of one slice.

    Attributes:
        rows: Lines of k-space, int [n], zero frequency at 0.
        lines: complex64 [C, n, W], under the conventions of `physics.fourier`, in the order of
            `rows`.
    """

    rows: NDArray[np.intp]
    lines: NDArray[np.complex64]

    def mask(self, height: int) -> Mask:
        """Return what was sampled, as a mask of lines."""
        samples = np.zeros(height, np.bool_)
        samples[self.rows] = True
        return Mask(samples=samples, name="reference lines")

    def kspace(self, height: int) -> NDArray[np.complex64]:
        """Return them as k-space [C, H, W], zero where nothing was sampled."""
        coils, _, width = self.lines.shape
        whole = np.zeros((coils, height, width), np.complex64)
        whole[:, self.rows] = self.lines
        return whole


def calibration_reach(mask: Mask, reference: ReferenceLines | None) -> int:
    """Return how many lines around zero frequency calibrate: the image's, or reference lines."""
    other = 0 if reference is None else centre_lines(reference.mask(mask.height))
    return max(centre_lines(mask), other)


def calibration_of(
    kspace: NDArray[Any], mask: Mask, reference: ReferenceLines | None
) -> tuple[NDArray[Any], Mask]:
    """Return the k-space that coil sensitivities are estimated from.

    Reference lines are taken where they reach further from zero frequency without a gap than the
    image's own lines do, which are of the same time.

    Args:
        kspace: complex64 [C, H, W] of the image, zero where not sampled.
        mask: What was sampled.
        reference: Of the same slice and coils; None without any.

    Returns:
        K-space [C, H, W], the image's own or that of the reference lines, and its mask.
    """
    if reference is not None and calibration_reach(mask, reference) > centre_lines(mask):
        return reference.kspace(mask.height), reference.mask(mask.height)
    return kspace, mask
