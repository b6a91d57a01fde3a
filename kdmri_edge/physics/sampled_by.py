"""Which samples a constant of data consistency enforces, or a zero-filled image holds.

The inverse of `physics.operators.operator_array` and of `physics.coils.sense_operator_array`: a
graph holds its operator and not its mask, so that what a manifest says of the mask can be compared
with what the graph computes.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.physics.fourier import mirrored
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import Form

__all__ = ["contradicted_by", "enforced_by", "enforcement"]

# Of float32 constants, whose entries are at most 1.
_SAME: Final = 1e-4
# Norm of a line, or of a sample, over the whole image's, below which it holds rounding alone, and
# above which it was certainly sampled. Phantoms are of float32.
_NOTHING: Final = 1e-5
# Part of single samples that may hold nothing in a phantom.
_EMPTY: Final = 0.05


def enforcement(mask: Mask, channels: int) -> NDArray[np.float64]:
    """Return how far data consistency enforces each sample: 1, 0, or 1/2 beside its mirror.

    Args:
        mask: The sampling pattern.
        channels: Of the images. Of one channel real parts alone are kept, which ties each sample to
            its mirror.

    Returns:
        float64 [H] or [H, W], zero frequency at index 0.
    """
    own = mask.samples.astype(np.float64)
    if channels == 2:
        return own
    tied: NDArray[np.float64] = (own + mirrored(own, tuple(range(own.ndim)))) / 2
    return tied


def enforced_by(
    constant: NDArray[Any], form: Form, height: int, width: int, channels: int
) -> NDArray[np.float64] | None:
    """Recognise the operator of a mask.

    Args:
        constant: Any array that a graph holds.
        form: Form of data consistency of its graph.
        height: Phase-encode lines H of its images.
        width: Their readout samples W.
        channels: Of the operator: 1, or 2 for the real form of a complex one.

    Returns:
        See `enforcement`; None where the constant is no operator of a mask, or samples everything,
        as a matrix that does nothing would.
    """
    if constant.dtype.kind != "f" or not np.isfinite(constant).all():
        return None
    array = constant.astype(np.float64).reshape([n for n in constant.shape if n > 1] or [1])
    found = None
    if form is not Form.PROJECTION:
        found = _of_mask(array, height, width)
        if found is not None and channels == 1:
            found = (found + mirrored(found, tuple(range(found.ndim)))) / 2
    elif array.shape == (channels * height,) * 2:
        found = _of_projection(array, height, channels)
    elif array.ndim == 2 and channels == 2 and 2 * height in array.shape:
        found = _of_factor(array if array.shape[1] == 2 * height else array.T, height)
    return None if found is None or found.min() == 1 else found


def _of_mask(array: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64] | None:
    if array.shape not in ((height,), (height, width)) or not np.isin(array, (0, 1)).all():
        return None
    if not array.any() or (array.ndim == 2 and np.array_equal(array, np.eye(*array.shape))):
        return None
    if array.ndim == 1:
        return array
    # the FFT form spreads a mask of lines over both axes
    return array[:, 0] if (array == array[:, :1]).all() else array


def _of_projection(
    array: NDArray[np.float64], height: int, channels: int
) -> NDArray[np.float64] | None:
    """P is circulant: its first column is the inverse transform of what it enforces."""
    column = array[:height, 0] + (1j * array[height:, 0] if channels == 2 else 0)
    spectrum = np.fft.fft(column)
    index = np.arange(height)
    matrix = column[(index[:, None] - index[None, :]) % height]
    if channels == 2:
        whole = np.block([[matrix.real, -matrix.imag], [matrix.imag, matrix.real]])
    else:
        whole = matrix.real
    steps = np.round(2 * spectrum.real) / 2
    if np.abs(whole - array).max() > _SAME or np.abs(spectrum - steps).max() > 100 * _SAME:
        return None
    within = steps.min() >= 0 and 0 < steps.max() <= 1
    return np.asarray(steps, np.float64) if within else None


def _of_factor(rows: NDArray[np.float64], height: int) -> NDArray[np.float64] | None:
    """F_m holds the sampled rows of F, in the real form."""
    lines = len(rows) // 2
    if len(rows) % 2 or lines >= height:
        return None
    waves = rows[:lines, :height] + 1j * rows[:lines, height:]
    spectra = np.abs(np.fft.fft(waves, axis=1)) / np.sqrt(height)
    found = np.round(spectra).sum(0)
    single = np.abs(spectra - np.round(spectra)).max() <= 100 * _SAME
    return found if single and found.sum() == lines and found.max() == 1 else None


def contradicted_by(kspace: NDArray[Any], wanted: NDArray[np.float64]) -> bool:
    """Tell whether k-space without noise cannot have been sampled as it is said to be.

    What holds something and was not sampled contradicts. So does what was sampled and holds
    nothing, unless it lies further out than all that holds something: phantoms with phase hold
    nothing at high frequencies. Of single samples some may be empty anywhere.

    Args:
        kspace: [..., H, W], of a zero-filled image or of coils, zero frequency at index 0.
        wanted: What is said to have been sampled, see `enforcement`.
    """
    energy = (np.abs(kspace.astype(np.complex128)) ** 2).reshape(-1, *kspace.shape[-2:]).sum(0)
    energy = energy.sum(1) if wanted.ndim == 1 else energy
    relative = np.sqrt(energy / max(float(energy.sum()), np.finfo(np.float64).tiny))
    there, empty = relative > _NOTHING, relative < _NOTHING / 10
    if (there & (wanted == 0)).any():
        return True
    within = np.ones(wanted.shape, np.bool_)
    for axis, found in enumerate(np.nonzero(there)):
        size = wanted.shape[axis]
        distance = np.minimum(np.arange(size), size - np.arange(size))
        near = distance <= distance[found].max(initial=0)
        within &= near.reshape([-1 if n == axis else 1 for n in range(wanted.ndim)])
    missing = int((empty & (wanted > 0) & within).sum())
    allowed = 0.0 if wanted.ndim == 1 else _EMPTY * int((wanted > 0).sum())
    return missing > allowed
