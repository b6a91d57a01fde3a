"""Complex and multi-coil training cases from magnitude volumes: phase, coils, noise.

Everything follows from a seed and the volume's hash, whatever volumes stand beside it. What is
simulated is said in `SIMULATION`, which goes into runs and checkpoints: figures on such data say
nothing about measured k-space.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.cases import Case
from kdmri_edge.data.simulate import (
    Coils,
    coil_maps,
    complex_noise,
    local_phase,
    smooth_phase,
)
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError
from kdmri_edge.physics.coils import COILS, combine, expand
from kdmri_edge.physics.espirit import check_calibration
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.projection import zero_filled
from kdmri_edge.scaling import slice_scale

__all__ = ["NOISE", "SETS", "SIMULATION", "coil_sets", "simulated_case"]

SETS: Final = 24
"""Sets of sensitivities that the slices of a run share; half of them birdcages."""

NOISE: Final = 0.02
"""Largest standard deviation of the noise, over the volume's maximum; drawn for each slice."""

SIMULATION: Final[dict[str, Any]] = {"phase": "smooth and local", "noise": [0.0, NOISE]}
"""What is simulated for complex networks; with coils, `coils` and `sets` come on top."""


def coil_sets(
    height: int, width: int, *, seed: int, coils: int = COILS, sets: int = SETS
) -> NDArray[np.complex64]:
    """Draw the sensitivities of a run: complex64 [sets, C, H, W], birdcage and random in turn."""
    kinds = list(Coils)
    return np.stack(
        [
            coil_maps(coils, height, width, seed=seed * sets + n, kind=kinds[n % len(kinds)])
            for n in range(sets)
        ]
    )


def _phase(height: int, width: int, seed: int) -> NDArray[np.float32]:
    phase: NDArray[np.float32] = smooth_phase(height, width, seed=seed)
    phase += local_phase(height, width, seed=seed)
    return phase


def simulated_case(
    volume: Volume, mask: Mask, *, seed: int, maps: NDArray[np.complex64] | None = None
) -> Case:
    """Undersample a volume as a complex scan, with one coil or many.

    Args:
        volume: Fully sampled images; a phase that they have is kept, magnitudes are given one.
        mask: Which samples are taken.
        seed: Seed of phase, noise and the choice of coils.
        maps: What `coil_sets` gives, [sets, C, H, W]; None for one coil of sensitivity 1.

    Returns:
        Complex arrays; the target is free of the noise that is added here.

    Raises:
        MaskError: The mask is of another matrix, or (with coils) does not sample the centre from
            which a scan's sensitivities are estimated.
        DataError: The maps are of another matrix.
    """
    height, width = volume.matrix
    mask.check_matrix(height, width)
    if maps is not None:
        check_calibration(mask, width)
        if maps.shape[-2:] != (height, width):
            raise DataError(
                f"Coils are simulated at {maps.shape[-2]} x {maps.shape[-1]}, {volume.name} is"
                f" {height} x {width}.",
                "Simulate them at the volume's matrix.",
            )
    count = len(volume.image)
    random = np.random.default_rng([seed, int(volume.sha256[:12] or "0", 16)])
    seeds = random.integers(0, 2**31, count)
    levels = random.uniform(0, NOISE, count) * float(np.abs(volume.image).max())
    received = random.integers(0, 1 if maps is None else len(maps), count)
    target = np.empty((count, height, width), np.complex64)
    x_u = np.empty_like(target)
    one = np.ones((1, height, width), np.complex64)
    for n, own in enumerate(seeds):
        phase = 0.0 if volume.is_complex else _phase(height, width, int(own))
        target[n] = volume.image[n] * np.exp(1j * np.asarray(phase))
        sensitivities = one if maps is None else maps[received[n]]
        seen = expand(target[n], sensitivities)
        # F is unitary: white noise of k-space is white in the image.
        seen = seen + np.float32(levels[n]) * complex_noise(seen.shape, seed=int(own))
        x_u[n] = combine(zero_filled(seen, mask), sensitivities)
    return Case(
        name=volume.name,
        subject=volume.subject,
        contrast=volume.contrast,
        sha256=volume.sha256,
        target=target,
        zero_filled=x_u,
        scale=slice_scale(x_u),
        maps=maps,
        received=None if maps is None else received,
    )
