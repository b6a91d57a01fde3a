"""Figures of one slice that say what kind of image it is: of the input and of what was added to it.

They are ratios, so that the unit of the data does not matter, and cost a few short Fourier
transforms: rows and columns are taken in steps, since the figures are averages over all of them.

Of three kinds, which are judged apart (`runtime.calibration`), since many figures of one kind would
hide few of another:

- *spectra and texture* of the zero-filled image and of the correction;
- *air*: how bright the image is outside the object. It is the noise floor of magnitudes (Rician:
  Gudbjartsson and Patz, MRM 1995), and what ghosts, lines that are missing or moved, and gains that
  drift leave there;
- *place*: where the object lies in the field of view, how far it reaches to the edges, where
  it folds over, and which way it is turned. Convolutions and data consistency with lines do not
  mind a shift, but people and protocols put heads in one place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.physics.masks import Mask

__all__ = ["KINDS", "STATISTICS", "slice_statistics"]

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
_AIR: Final = (10, 50, 90)
"""Percentiles of the image's magnitudes outside the object."""
_FLOOR: Final = 1e-5
"""Of the object's mean, added to those of air, which may be cut out and zero."""
_RIM: Final = 30
"""Pixels of the field of view to one of its rim."""


_AIR_NAMES: Final = ("air, mean", *(f"air, percentile {level}" for level in _AIR), "air, share")
_PLACE_NAMES: Final = tuple(
    f"place along {axis}, {what}"
    for axis in ("phase encode", "readout")
    for what in ("centre", "width", "skewness", "kurtosis", "rim")
)


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
        *_AIR_NAMES,
        *_PLACE_NAMES,
    )


STATISTICS: Final = _names()
"""What each figure of `slice_statistics` is: decadic logarithms of ratios, but for shares, centres
(of the field of view, 0 in its middle) and skewness."""

_SPECTRA: Final = len(STATISTICS) - len(_AIR_NAMES) - len(_PLACE_NAMES)
KINDS: Final = {
    "spectra and texture": STATISTICS[:_SPECTRA],
    "air": _AIR_NAMES,
    "place": _PLACE_NAMES,
}
"""Names of the figures of each kind."""


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
    # squares of squares stay within float32, whatever the data's unit
    unit = values.dtype.type(1 / peak)
    added_rows = (image[first::step] - rows) * unit
    added_columns = np.ascontiguousarray(image[:, first::step].T - columns) * unit
    rows, columns = rows * unit, np.ascontiguousarray(columns) * unit
    values *= unit
    power = values * values
    square = float(power.mean())
    inside = values[:, 1:-1] > _SUPPORT
    texture = np.abs(np.diff(rows, n=2, axis=1))[inside].astype(np.float32, copy=False)
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
    spectra = np.insert(logarithms, 3, float(inside.mean()))
    # of the image itself: between the lines the zero-filled one is folded over its air and edges
    shown = np.abs(image[first::step])
    air, unit = _air(shown)
    place = [
        *_place(np.abs(image[:, first::step]).mean(1, dtype=np.float64), unit),
        *_place(shown.mean(0, dtype=np.float64), unit),
    ]
    return np.concatenate([spectra, air, place])


def _air(magnitudes: Array) -> tuple[list[float], float]:
    """Return the figures of air, and the mean of the object's magnitudes, at least a tiny number.

    Args:
        magnitudes: Of the image, in any unit.
    """
    peak = float(magnitudes.max())
    if not peak > 0:
        return [0.0] * (len(_AIR) + 2), 1.0
    outside = magnitudes <= _SUPPORT * peak
    air = magnitudes[outside]
    many, share = magnitudes.size - air.size, air.size / magnitudes.size
    dark = float(air.sum(dtype=np.float64))
    unit = (float(magnitudes.sum(dtype=np.float64)) - dark) / many
    if not air.size:
        return [0.0] * (len(_AIR) + 1) + [share], unit
    air = (air * magnitudes.dtype.type(1 / unit)).astype(np.float32, copy=False)
    levels = np.asarray([dark / air.size / unit, *_ordered(air, _AIR)])
    return [*np.log10(levels + _FLOOR), share], unit


def _place(profile: NDArray[np.float64], unit: float) -> list[float]:
    """Return where along an axis the image lies, by the moments of its mean magnitudes.

    Args:
        profile: Mean magnitude at each place.
        unit: Mean of the object's magnitudes.
    """
    total = float(profile.sum())
    if not total > 0:
        return [0.0] * (len(_PLACE_NAMES) // 2)
    # of the field of view, and from there around the centre: powers of short arrays cost most
    first, second, third, fourth = (_powers(len(profile)) @ profile / total).tolist()
    variance = max(second - first**2, _TINY)
    skewed = third - 3 * first * second + 2 * first**3
    peaked = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    rim = max(len(profile) // _RIM, 1)
    edge = float(profile[:rim].mean() + profile[-rim:].mean()) / 2
    return [
        first,
        math.log10(variance) / 2,
        skewed / variance**1.5,
        math.log10(max(peaked / variance**2, _TINY)),
        math.log10(edge / unit + 10 * _FLOOR),
    ]


@lru_cache(maxsize=32)
def _powers(size: int) -> NDArray[np.float64]:
    """Return the first four powers of places along an axis, [4, size], 0 in its middle."""
    places = (np.arange(size) + 0.5) / size - 0.5
    return np.stack([places, places**2, places**3, places**4])


def _ordered(values: Array, levels: Sequence[int]) -> list[float]:
    """Return percentiles of float32 values, none of them negative, to 0.2 %.

    Such floats are in the order of their bits, and 16 of those are sorted by counting, which takes
    a quarter of the time of sorting the floats.
    """
    keys = np.sort((values.view(np.uint32) >> 15).astype(np.uint16), kind="stable")
    places = [min(values.size * level // 100, values.size - 1) for level in levels]
    middles = (keys[places].astype(np.uint32) << 15) + (1 << 14)
    found: list[float] = middles.view(np.float32).tolist()
    return found


def _percentiles(values: Array, unit: float) -> list[float]:
    if not values.size:
        return [0.0] * len(_TEXTURE)
    return [value / unit for value in _ordered(values, _TEXTURE)]


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
