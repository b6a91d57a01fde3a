"""Where zero frequency and an image's origin lie in k-space: found by where the energy is.

K-space here has zero frequency at index 0 of both axes and the image's origin at its centre
(`physics.fourier`). Files and arrays come with zero frequency in the middle, as measuring software
stores it, or as plain `fft2` of an image gives it, whose origin is pixel 0: read as something else,
such k-space gives images that are modulated or turned around by half their size.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import kspace_to_image
from kdmri_edge.utils.console import say

__all__ = ["origin_ramp", "zero_first"]

_SMALLEST: Final = 16
"""Samples along an axis below which nothing is concluded."""
_CLEAR: Final = 8.0
"""How many times as much energy as at the other place k-space has around zero frequency. Measured
k-space has hundreds of times as much, noise as much."""
_ROLLED: Final = 4.0
"""The same for an image's edges and its middle: air surrounds what is imaged."""


def zero_first(
    kspace: NDArray[Any], what: str, *, centred: bool | None, usual: bool
) -> tuple[NDArray[Any], bool]:
    """Bring zero frequency to index 0, and the image's origin to its centre.

    What is done differently from the usual is said on standard error.

    Args:
        kspace: [..., H, W].
        what: Its name in messages.
        centred: Zero frequency lies in the middle, at N // 2 (True), or at index 0 (False); None
            looks where the energy peaks.
        usual: What is taken where that does not tell: noise, small matrices, flat spectra.

    Returns:
        K-space under the conventions of `physics.fourier`; and whether it was centred.

    Raises:
        DataError: It holds values that are not finite.
    """
    if not np.isfinite(kspace).all():
        raise DataError(f"{what} holds NaN or infinite values.", "Export the scan again.")
    found = _is_centred(kspace)
    taken = centred if centred is not None else usual if found is None else found
    where = {True: "in the middle", False: "at index 0"}
    if centred is not None and found is not None and found != centred:
        say(
            f"Note: {what} is said to have zero frequency {where[centred]}, but its energy peaks"
            f" {where[found]}."
        )
    elif centred is None and taken != usual:
        say(
            f"Note: {what} peaks {where[taken]} and not {where[usual]}: zero frequency is taken to"
            " be there."
        )
    if taken:
        kspace = np.fft.ifftshift(kspace, axes=(-2, -1))
    if _is_rolled(kspace):
        say(
            f"Note: images of {what} lie around their edges, as plain fft2 leaves them: they are"
            " moved by half their size."
        )
        kspace = kspace * origin_ramp(kspace.shape[-2])[:, None] * origin_ramp(kspace.shape[-1])
    return kspace, taken


def _energy(values: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """Energy along one of the last two axes, over the square of the largest value."""
    others = tuple(n for n in range(values.ndim) if n != values.ndim + axis)
    found = np.abs(values)
    found /= max(float(found.max(initial=0.0)), np.finfo(found.dtype).tiny)  # squares stay finite
    return np.asarray((found**2).sum(axis=others, dtype=np.float64))


def _around(profile: NDArray[np.float64], index: int, reach: int) -> float:
    return float(profile[np.arange(index - reach, index + reach + 1) % len(profile)].sum())


def _is_centred(kspace: NDArray[Any]) -> bool | None:
    """Whether the energy peaks in the middle (True) or at index 0; None where it does not tell."""
    if min(kspace.shape[-2:]) < _SMALLEST:
        return None
    ratios = []
    for axis in (-2, -1):
        profile = _energy(kspace, axis)
        size = len(profile)
        first, middle = (_around(profile, at, size // 16) for at in (0, size // 2))
        ratios.append(middle / first if first > 0 else np.inf if middle > 0 else 1.0)
    if min(ratios) > _CLEAR:
        return True
    return False if max(ratios) < 1 / _CLEAR else None


def _is_rolled(kspace: NDArray[Any]) -> bool:
    """Whether the image lies around its edges; from the centre of k-space, which scans sample."""
    height, width = kspace.shape[-2:]
    if min(height, width) < 2 * _SMALLEST:
        return False
    rows, columns = (np.fft.ifftshift(np.arange(-m, m)) for m in (height // 8, width // 8))
    image = kspace_to_image(kspace[..., rows[:, None], columns])
    for axis in (-2, -1):
        profile = _energy(image, axis)
        size = len(profile)
        edge, middle = (_around(profile, at, size // 8) for at in (0, size // 2))
        if not edge > _ROLLED * middle:
            return False
    return True


def origin_ramp(size: int) -> NDArray[np.complex64]:
    """The phase that moves an image's origin from pixel 0 to its centre; for even sizes +1, -1."""
    if size % 2 == 0:
        return np.where(np.arange(size) % 2, -1, 1).astype(np.complex64)
    ramp: NDArray[np.complex128] = np.exp(2j * np.pi * np.fft.fftfreq(size) * (size // 2))
    return ramp.astype(np.complex64)
