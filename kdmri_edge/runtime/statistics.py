"""Figures of one slice that say what kind of image it is: of the input and of what was added to it.

They are ratios, so that the unit of the data does not matter, and cost a few short Fourier
transforms: rows and columns are taken in steps, since the figures are averages over all of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.physics.masks import Mask

__all__ = ["STATISTICS", "slice_statistics"]

Array = NDArray[Any]

_BANDS: Final = 12
"""Of the frequencies along an axis, equally wide."""
_WIDE: Final = 4
"""Of those of the correction along phase encode, most of which is between the sampled lines."""
_STEP: Final = 4
"""Every such row and column is looked at, of a slice of at least `_WHOLE` pixels a side."""
_WHOLE: Final = 96
_SUPPORT: Final = 0.1
"""Of the maximum: pixels of the object."""
_TEXTURE: Final = (10, 25, 50, 75, 90, 99)
"""Percentiles of the second differences along readout within the object."""
_TINY: Final = 1e-9


def _names() -> tuple[str, ...]:
    def bands(what: str, count: int) -> list[str]:
        return [f"{what}, band {number + 1} of {count}" for number in range(count)]

    return (
        "mean over maximum",
        "spread over mean",
        "kurtosis",
        "support",
        *(f"texture, percentile {level}" for level in _TEXTURE),
        *bands("readout frequencies", _BANDS),
        *bands("sampled phase-encode frequencies", _BANDS),
        "correction over input",
        *bands("readout frequencies of the correction", _BANDS),
        *bands("phase-encode frequencies of the correction", _WIDE),
    )


STATISTICS: Final = _names()
"""What each figure of `slice_statistics` is: decadic logarithms of ratios, and the support."""


def slice_statistics(zero_filled: Array, image: Array, mask: Mask) -> NDArray[np.float64] | None:
    """Describe a slice by figures that do not depend on its unit.

    Args:
        zero_filled: [H, W], as the network reads it, float32 or complex64, finite.
        image: The network's image [H, W] in the same unit, float32 or complex64, finite.
        mask: What was sampled.

    Returns:
        float64, one value for each name in `STATISTICS`; None for a constant input, of which
        nothing can be said.
    """
    step = _STEP if min(zero_filled.shape) >= _WHOLE else 1
    first = step // 2
    # arrays of a whole slice are not made: the system hands them out page by page
    rows, columns = zero_filled[first::step], zero_filled[:, first::step].T
    values = np.abs(rows)
    peak, mean = float(values.max()), float(values.mean())
    if not peak - float(values.min()) > 1e-6 * peak:
        return None
    unit = values.dtype.type(
        1 / peak
    )  # squares of squares stay within float32, whatever the data's unit
    added_rows = (image[first::step] - rows) * unit
    added_columns = np.ascontiguousarray(image[:, first::step].T - columns) * unit
    rows, columns = rows * unit, np.ascontiguousarray(columns) * unit
    values *= unit
    power = values * values
    square = float(power.mean())
    inside = values[:, 1:-1] > _SUPPORT
    texture = np.abs(np.diff(rows, n=2, axis=1))[inside]
    figures = [
        mean / peak,
        np.sqrt(square) * peak / mean,
        float(np.vdot(power, power)) / power.size / square**2,
        *_percentiles(texture, float(values[:, 1:-1][inside].mean()) if texture.size else 1.0),
        *_bands(rows, _BANDS, None),
        *_bands(columns, _BANDS, mask),
        np.sqrt(float(np.vdot(added_rows, added_rows).real) / added_rows.size / square),
        *_bands(added_rows, _BANDS, None),
        *_bands(added_columns, _WIDE, None),
    ]
    logarithms = np.log10(np.maximum(np.asarray(figures, np.float64), _TINY))
    return np.insert(logarithms, 3, float(inside.mean()))


def _percentiles(values: Array, unit: float) -> list[float]:
    if not values.size:
        return [0.0] * len(_TEXTURE)
    places = [min(values.size * level // 100, values.size - 1) for level in _TEXTURE]
    ordered = np.sort(values)
    return [float(ordered[place]) / unit for place in places]


def _power(values: Array) -> NDArray[np.float32]:
    if np.iscomplexobj(values):
        found: NDArray[np.float32] = values.real**2 + values.imag**2
        return found
    return np.asarray(values * values, np.float32)


def _bands(lines: Array, count: int, mask: Mask | None) -> NDArray[np.float64]:
    """Return the mean power in each band of frequencies along the last axis, over that of all."""
    transform = np.fft.fft if np.iscomplexobj(lines) else np.fft.rfft
    spectrum = _power(transform(lines, axis=-1)).sum(0)
    taken = None if mask is None or not mask.is_lines else mask.samples.tobytes()
    weights, all_of_them = _weights(lines.shape[-1], len(spectrum), count, taken)
    found: NDArray[np.float64] = weights @ spectrum / max(float(all_of_them @ spectrum), 1e-30)
    return found


@lru_cache(maxsize=32)
def _weights(
    size: int, held: int, count: int, taken: bytes | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what averages a spectrum over each band, [count, held], and over all of it, [held].

    Args:
        size: Samples of the lines.
        held: Frequencies of the spectrum: `size`, or those of a real transform.
        count: Bands.
        taken: Which lines were sampled, as bytes of booleans; None for all.
    """
    counted = np.ones(size, np.bool_) if taken is None else np.frombuffer(taken, np.bool_)
    if held < size:  # a real line's spectrum is its mirror image's, so either line will do
        counted = counted | counted[-np.arange(size)]
    counted = counted[:held]
    highest = np.abs(np.fft.fftfreq(size)).max()
    frequency = np.abs(np.fft.fftfreq(size)[:held]) / highest
    band = np.minimum((frequency * count).astype(np.intp), count - 1)
    found = np.zeros((count, held))
    for number in range(count):
        inside = (band == number) & counted
        if inside.any():
            found[number, inside] = 1 / int(inside.sum())
    return found, counted / max(int(counted.sum()), 1)
