"""Coils to one image: what a network of one image is given of a multi-coil slice.

Coil sensitivities, with the object's own smooth phase in them, are estimated from the fully sampled
lines around zero frequency: each coil's image of those lines (Hann window), divided by their
root sum of squares. The combination sum_c conj(s_c) x_c then has the intensity of a root sum of
squares and almost no phase, so that its real part is what a magnitude network can be given (a
phase-corrected image, as in homodyne reconstruction; Noll et al., IEEE TMI 1991). For networks of
complex images only the phase between coils is taken away: that of their principal combination
stays, and with it the object's.

Sensitivities vary along phase encode, so data consistency on the combined image holds to the extent
that they are smooth. `misfit` says how far that is.

This is the one place that knows how coils are combined; a SENSE network replaces it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import MaskError
from kdmri_edge.physics.coils import coil_images, combine
from kdmri_edge.physics.fourier import image_to_kspace, lines_to_image, mirrored
from kdmri_edge.physics.masks import Mask

__all__ = [
    "LEAST_CENTRE",
    "centre_lines",
    "centre_window",
    "combined",
    "is_zero_phase",
    "left_out",
    "misfit",
    "root_sum_of_squares",
    "smooth_sensitivities",
]

LEAST_CENTRE: Final = 4
"""Fully sampled lines around zero frequency without which no sensitivity is estimated."""


def centre_lines(mask: Mask) -> int:
    """Return how many lines around zero frequency are sampled without a gap.

    As many are counted below zero frequency as above it (one more below for an even number).
    """
    lines = np.atleast_1d(mask.samples.reshape(mask.height, -1).all(axis=1))
    height = len(lines)
    count = 0
    while count < height and lines[_nth(count, height)]:
        count += 1
    return count


def _nth(count: int, height: int) -> int:
    """Row of the n-th line in the order 0, -1, 1, -2, 2, ..."""
    return (-(count + 1) // 2 if count % 2 else count // 2) % height


def centre_window(count: int, size: int) -> NDArray[np.float32]:
    """Return a Hann window over `count` samples around zero frequency (index 0) of an axis.

    It is symmetric, which leaves one sample of an even count out: a real image stays real.
    """
    frequency = np.fft.fftfreq(size) * size
    window = 0.5 * (1 + np.cos(2 * np.pi * frequency / (count + 1)))
    return np.where(np.abs(frequency) <= (count - 1) // 2, window, 0.0).astype(np.float32)


def smooth_sensitivities(kspace: NDArray[np.complex64], mask: Mask) -> NDArray[np.complex64]:
    """Estimate coil sensitivities and phase of one slice from its centre lines.

    Args:
        kspace: complex64 [C, H, W], zero where not sampled.
        mask: What was sampled.

    Returns:
        complex64 [C, H, W]; the root sum of squares over coils is 1 (0 without signal).

    Raises:
        MaskError: Fewer than four lines around zero frequency are sampled without a gap.
    """
    height, width = kspace.shape[-2:]
    count = centre_lines(mask)
    if count < min(LEAST_CENTRE, height):
        raise MaskError(
            f"{count} line(s) around zero frequency are sampled without a gap; coils and phase"
            f" cannot be estimated from fewer than {LEAST_CENTRE}.",
            "Sample the centre of k-space.",
            cause="calibration",
        )
    across = max(1, round(count * width / height))
    window = centre_window(count, height)
    rows = np.flatnonzero(window)
    low = kspace[:, rows] * (window[rows, None] * centre_window(across, width))
    image = lines_to_image(low.astype(np.complex64, copy=False), rows, height)
    strength = root_sum_of_squares(image)
    floor = max(1e-6 * float(strength.max()), 1e-30)  # below it there is no signal to speak of
    inverse = np.where(strength > floor, 1 / np.maximum(strength, np.float32(floor)), 0)
    image *= inverse.astype(np.float32)
    return image


def combined(
    kspace: NDArray[np.complex64],
    mask: Mask,
    *,
    keeps_phase: bool = False,
    calibration: tuple[NDArray[np.complex64], Mask] | None = None,
) -> NDArray[np.complex64]:
    """Combine the coils of one slice to its zero-filled image.

    Args:
        kspace: complex64 [C, H, W], zero where not sampled.
        mask: What was sampled.
        keeps_phase: Take away the phase between coils alone.
        calibration: K-space and mask that sensitivities are estimated from; None takes the image's.

    Returns:
        complex64 [H, W] in the unit of k-space, almost without phase unless it is kept.

    Raises:
        MaskError: See `smooth_sensitivities`.
    """
    weights = smooth_sensitivities(*(calibration or (kspace, mask)))
    image: NDArray[np.complex64] = combine(coil_images(kspace, mask), weights)
    if keeps_phase:
        flat = weights.reshape(len(weights), -1)
        _, vectors = np.linalg.eigh(flat @ flat.conj().T)  # the principal combination is the last
        principal = (vectors[:, -1].conj() @ flat).reshape(image.shape)
        size = np.abs(principal)
        image *= np.where(size > 0, principal / np.where(size > 0, size, 1), 1)
    return image


def misfit(image: NDArray[np.complex64], mask: Mask, *, real: bool) -> float:
    """Return how badly a combined zero-filled image suits a network of one image.

    Where sensitivities or phase vary fast, combining moves signal to where the mask took none, and
    data consistency would hold the network to an image that was never sampled.

    Args:
        image: complex64 [H, W], of `combined`.
        mask: What was sampled.
        real: Whether the network reads the real part.

    Returns:
        Norm of what is in the way over that of the image: its imaginary part, or its k-space
        outside the mask.
    """
    whole = float(np.linalg.norm(image))
    wrong = image.imag if real else image_to_kspace(image) * ~mask.grid
    return float(np.linalg.norm(wrong)) / whole if whole else 0.0


def left_out(kspace: NDArray[np.complex64], mask: Mask) -> float:
    """Estimate how much of a slice a mask of lines has left out.

    The energy of lines that were not sampled is taken from their sampled neighbours, in which its
    logarithm runs straight.

    Args:
        kspace: complex64 [C, H, W], zero where not sampled.
        mask: What was sampled.

    Returns:
        Norm of what was not sampled over that of the whole; 1 for a mask of single samples, of
        which nothing is estimated.
    """
    if not mask.is_lines:
        return 1.0
    order = np.argsort(np.fft.fftfreq(mask.height))
    taken = mask.samples[order]
    energy = np.zeros(mask.height)
    energy[mask.samples] = (np.abs(kspace[:, mask.samples]) ** 2).sum((0, 2))
    energy = energy[order]
    if not energy.any():
        return 0.0
    floor = 1e-12 * energy.max()
    place = np.arange(mask.height)
    known = np.log(np.maximum(energy[taken], floor))
    missing = float(np.exp(np.interp(place[~taken], place[taken], known)).sum())
    return float(np.sqrt(missing / (missing + energy.sum())))


def root_sum_of_squares(images: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Return the root sum of squares over coils of [..., C, H, W]: float32 [..., H, W]."""
    power = np.zeros((*images.shape[:-3], *images.shape[-2:]), images.real.dtype)
    for coil in range(images.shape[-3]):
        one = images[..., coil, :, :]
        power += one.real**2 + one.imag**2
    strength: NDArray[np.float32] = np.sqrt(power).astype(np.float32, copy=False)
    return strength


# Deviation of k-space from Hermitian symmetry, over its norm, that counts as no phase: what the
# noise of a phase-corrected image leaves.
_PHASE: Final = 0.1


def is_zero_phase(kspace: NDArray[np.complexfloating[Any, Any]], mask: Mask) -> bool:
    """Tell whether k-space of one coil is that of an object without phase.

    K-space of a real object is Hermitian, K(-k) = K(k)*, which shows on the samples whose mirror
    was taken too; an undersampled image of a real object may be complex.

    Args:
        kspace: Complex [..., H, W], zero where not sampled.
        mask: What was sampled.
    """
    taken = mask.grid
    both = taken & mirrored(taken)  # the one column of lines is its own mirror
    whole = float(np.linalg.norm(kspace * both))
    deviation = float(np.linalg.norm((kspace - mirrored(kspace).conj()) * both))
    return not whole or deviation <= _PHASE * whole
