"""What the tests give SENSE networks: a scan's slices by `sense_slice`, one by one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kdmri_edge.data.scan import Scan
from kdmri_edge.physics.coils import COILS, noise_weights
from kdmri_edge.physics.espirit import sense_slice
from kdmri_edge.physics.masks import Mask


class SenseInput(NamedTuple):
    zero_filled: np.ndarray
    maps: np.ndarray
    mask: Mask


def sense_input(scan: Scan, *, coils: int | None = COILS) -> SenseInput:
    whitening = None if scan.noise is None else noise_weights(scan.noise)
    made = [sense_slice(k, scan.mask, coils=coils, whitening=whitening) for k in scan.kspace]
    return SenseInput(np.stack([x for x, _ in made]), np.stack([m for _, m in made]), scan.mask)
