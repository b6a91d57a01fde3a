"""From a measured scan to what a SENSE network reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.scan import Scan
from kdmri_edge.physics.coils import COILS, noise_weights
from kdmri_edge.physics.espirit import sense_slice
from kdmri_edge.physics.masks import Mask

__all__ = ["SenseInput", "sense_input"]


class SenseInput(NamedTuple):
    """A scan, ready for a SENSE network.

    Attributes:
        zero_filled: x_u = S^H F^H m y, complex64 [S, H, W], in the unit of k-space.
        maps: Coil sensitivities, complex64 [S, C, H, W].
        mask: What was sampled.
    """

    zero_filled: NDArray[np.complex64]
    maps: NDArray[np.complex64]
    mask: Mask


def sense_input(
    scan: Scan,
    *,
    coils: int | None = COILS,
    advance: Callable[[int], None] | None = None,
) -> SenseInput:
    """Whiten, compress, estimate sensitivities and combine, slice by slice.

    Args:
        scan: Measured k-space; its lines around zero frequency have to be sampled without a gap.
        coils: Virtual coils to compress to, at most; None leaves all.
        advance: Called with the number of slices that are finished.

    Raises:
        MaskError: The mask's centre has gaps.
        DataError: Noise without a usable covariance, or fewer than one coil asked for.
    """
    whitening = None if scan.noise is None else noise_weights(scan.noise)
    images, maps = [], []
    for kspace in scan.kspace:
        image, sensitivities = sense_slice(kspace, scan.mask, coils=coils, whitening=whitening)
        images.append(image)
        maps.append(sensitivities)
        if advance is not None:
            advance(1)
    return SenseInput(np.stack(images), np.stack(maps), scan.mask)
