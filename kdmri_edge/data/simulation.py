"""Simulated coils, phase and noise for magnitude images: everything follows from a seed.

Sensitivities are normalised to sum_c |s_c|^2 = 1. Pixel (0, 0) is a corner; coordinates run from
-1 to 1 along either axis, so that the fields do not depend on the matrix.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import DataError

__all__ = [
    "RADIUS",
    "Coils",
    "coil_maps",
    "complex_noise",
    "draw_noise",
    "local_phase",
    "smooth_phase",
]

RADIUS: Final = 1.5
"""Of the birdcage, in half fields of view."""

_ORDER: Final = 3  # of the polynomials that make random fields
_TINY: Final = 1e-6
_CAVITIES: Final = 3  # at most, in one slice
_STEEPEST: Final = 40.0  # of a local field, radians per half field of view


class Coils(StrEnum):
    """How sensitivities are simulated.

    Attributes:
        BIRDCAGE: Loops on a circle around the object, turned and scaled at random.
        RANDOM: Random complex polynomials, as smooth and with less order than a real array's.
    """

    BIRDCAGE = "birdcage"
    RANDOM = "random"


def _grid(height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, x = (np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in (height, width))
    return y[:, None], x[None, :]


def coil_maps(
    coils: int,
    height: int,
    width: int,
    *,
    seed: int = 0,
    kind: Coils = Coils.BIRDCAGE,
    radius: float = RADIUS,
) -> NDArray[np.complex64]:
    """Draw coil sensitivities.

    Args:
        coils: Number of coils C.
        height: Lines H.
        width: Readout samples W.
        seed: Seed of the draw.
        kind: How they are simulated.
        radius: Of the birdcage, in half fields of view, which the draw changes by up to 15 %. The
            closer coils stand to the object, the more their sensitivities encode.

    Returns:
        complex64 [C, H, W]; one coil has s = 1 up to its phase.

    Raises:
        DataError: Fewer than one coil.
    """
    if coils < 1:
        raise DataError(f"{coils} coils receive nothing.", "Simulate 1 coil or more.")
    random = np.random.default_rng([seed, coils])
    y, x = _grid(height, width)
    if kind is Coils.BIRDCAGE:
        radius = radius * random.uniform(0.85, 1.15)
        angle = 2 * np.pi * (np.arange(coils) / coils + random.uniform())
        dy = y - radius * np.sin(angle)[:, None, None]
        dx = x - radius * np.cos(angle)[:, None, None]
        # Field of a long wire (Biot-Savart): 1 / r, and its direction turns around the wire.
        fields = np.exp(1j * (np.arctan2(dy, dx) + angle[:, None, None])) / np.hypot(dy, dx)
    else:
        fields = np.stack([_polynomial(random, y, x) for _ in range(coils)])
    strength = np.sqrt((np.abs(fields) ** 2).sum(0))
    result: NDArray[np.complex64] = (fields / np.maximum(strength, _TINY)).astype(np.complex64)
    return result


def _polynomial(
    random: np.random.Generator, y: NDArray[np.float64], x: NDArray[np.float64]
) -> NDArray[np.complex128]:
    """Draw a complex polynomial whose higher orders are weaker."""
    field = np.zeros((y.size, x.size), np.complex128)
    for power in range(_ORDER + 1):
        for other in range(_ORDER + 1 - power):
            weight = 0.5 ** (power + other)
            real, imag = random.standard_normal(2)
            field += weight * (real + 1j * imag) * y**power * x**other
    return field


def smooth_phase(height: int, width: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Draw a smooth phase map, such as B0 and B1 leave in an image: radians, float32 [H, W]."""
    random = np.random.default_rng([seed, 1])
    y, x = _grid(height, width)
    phase = random.uniform(-np.pi, np.pi) + _polynomial(random, y, x).real * np.pi / 2
    result: NDArray[np.float32] = phase.astype(np.float32)
    return result


def local_phase(height: int, width: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Draw the phase that air-filled cavities leave in gradient echoes: radians, float32 [H, W].

    Up to three Gaussian fields at random places. At 3 T, frontal sinuses turn the phase of a brain
    slice by more than one radian in three pixels of 128, which no smooth phase does; networks that
    have not met it take the wraps for aliasing.
    """
    random = np.random.default_rng([seed, 3])
    y, x = _grid(height, width)
    phase = np.zeros((height, width))
    for _ in range(int(random.integers(0, _CAVITIES + 1))):
        row, column = random.uniform(-0.9, 0.9, 2)
        radius = random.uniform(0.1, 0.4)
        # the steepest place of a Gaussian lies one radius from its middle
        strength = random.uniform(-_STEEPEST, _STEEPEST) * radius * np.exp(0.5)
        phase += strength * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * radius**2))
    result: NDArray[np.float32] = phase.astype(np.float32)
    return result


def complex_noise(shape: tuple[int, ...], *, seed: int = 0) -> NDArray[np.complex64]:
    """Draw white complex noise of variance 1 (1/2 in either part): complex64."""
    return draw_noise(np.random.default_rng([seed, 2]), shape)


def draw_noise(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.complex64]:
    """Draw such noise from a generator."""
    parts = random.standard_normal((2, *shape), dtype=np.float32) / np.sqrt(np.float32(2))
    noise: NDArray[np.complex64] = (parts[0] + 1j * parts[1]).astype(np.complex64, copy=False)
    return noise
