"""Band-limited random fields and soft masks: the brush strokes of the phantom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Levels = NDArray[np.floating[Any]]


class FieldMaker:
    """Draws smooth random fields on one grid, all from one random stream.

    Fields are drawn in the frequency domain, only where their spectrum is not negligible. The grid
    is periodic, which does no harm: the head hardly reaches the border.
    """

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int, int]) -> None:
        """Precompute the spatial frequencies, in cycles per pixel, of an [S, H, W] grid."""
        self._rng = rng
        self.shape = shape
        slices, height, width = shape
        self._kz = np.fft.fftfreq(slices).astype(np.float32)
        self._ky = np.fft.fftfreq(height).astype(np.float32)
        self._kx = np.fft.rfftfreq(width).astype(np.float32)

    def smooth(self, length: float, *, slices: float = 2.0) -> Field:
        """A Gaussian-correlated field of mean 0 and variance 1.

        Args:
            length: in-plane standard deviation of the smoothing kernel, in pixels.
            slices: the same between slices, in slices.
        """
        factor = np.float32(-2 * (np.pi * length) ** 2)
        return self._draw(lambda k2: np.exp(factor * k2), 0.7 / length, slices)

    def band(self, wavelength: float, *, spread: float = 0.3, slices: float = 1.0) -> Field:
        """A field whose waves have about one length, hence whose zero lines fold like a cortex.

        Args:
            wavelength: in pixels.
            spread: relative width of the band.
            slices: correlation length between slices, in slices.
        """
        centre, width = np.float32(1 / wavelength), np.float32(spread / wavelength)
        return self._draw(
            lambda k2: np.exp(-0.5 * ((np.sqrt(k2) - centre) / width) ** 2),
            (1 + 3.5 * spread) / wavelength,
            slices,
        )

    def power_law(self, exponent: float, *, slices: float = 1.0) -> Field:
        """A field with amplitude spectrum |k|^-exponent, as tissue texture has."""
        floor = np.float32((1 / self.shape[1]) ** 2)
        return self._draw(lambda k2: (k2 + floor) ** np.float32(-exponent / 2), 1.0, slices)

    def _draw(self, gain: Callable[[Field], Field], cutoff: float, slices: float) -> Field:
        """Fill the frequencies up to `cutoff` with noise, weigh them, go back to the image."""
        count, height, width = self.shape
        rows = np.flatnonzero(np.abs(self._ky) <= cutoff)
        columns = int(np.count_nonzero(self._kx <= cutoff))
        k2 = self._ky[rows, None] ** 2 + self._kx[None, :columns] ** 2
        weight = gain(k2)
        weight[0, 0] = 0.0  # mean 0
        parts = self._rng.standard_normal((count, *weight.shape, 2), dtype=np.float32)
        block = parts.view(np.complex64)[..., 0] * weight
        if count > 1 and slices > 0:
            along = np.exp(np.float32(-2 * (np.pi * slices) ** 2) * self._kz**2)
            block = np.fft.ifft(np.fft.fft(block, axis=0) * along[:, None, None], axis=0)
        half = np.zeros((count, height, columns), np.complex64)
        half[:, rows] = block
        field = np.fft.irfft(np.fft.ifft(half, axis=1), n=width, axis=2).astype(np.float32)
        spread = float(np.sqrt(np.mean(field * field)))
        return np.asarray(field / np.float32(max(spread, 1e-12)))


def step(level: Levels, width: float) -> Field:
    """A soft mask: a ramp from 0 at level -width/2 to 1 at width/2 (both in pixels)."""
    return np.asarray(np.clip(level * np.float32(1 / width) + np.float32(0.5), 0, 1))


def line_distance(field: Levels) -> Field:
    """Distance in pixels to the nearest zero line of `field`, to first order: |f| / |grad f|."""
    slope = np.hypot(np.gradient(field, axis=1), np.gradient(field, axis=2))
    floor = np.float32(0.35 * float(slope.mean()))
    return np.asarray(np.abs(field) / np.maximum(slope, floor), dtype=np.float32)


def paint(canvas: Field, mask: Field, value: float | Field) -> None:
    """Blend `value` into `canvas` where `mask` is above 0, in place."""
    canvas += mask * (value - canvas)
