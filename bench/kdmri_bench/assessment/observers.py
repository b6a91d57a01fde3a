"""Model observers: how well a signal that is known exactly can be detected in images.

An observer sees square patches of two kinds, with and without a signal at their centre, and gives
each a number, its response. How far the responses of both kinds lie apart is told by the area under
the ROC curve: 0.5 where they cannot be told apart, 1 where they always can.

Two observers of the literature are here; both are linear, a template times the patch.

- `NonPrewhitening`: the signal seen through a filter that stands for the eye's contrast sensitivity
  (NPWE; Burgess, Li and Abbey, J. Opt. Soc. Am. A 14:2420, 1997: E(f) = f^1.3 exp(-c f^2) with its
  maximum at 4 cycles a degree). It knows nothing of the noise.
- `Hotelling`: the best linear observer behind a few channels (CHO; Myers and Barrett, J. Opt. Soc.
  Am. A 4:2447, 1987), here ten dense differences of Gaussians (Abbey and Barrett, J. Opt. Soc. Am.
  A 18:473, 2001). It learns the mean difference and the covariance from patches, which must not be
  those that it is tested on.

Everything is NumPy in float64; a patch is [n, n], patches are [count, n, n], n is odd and the
signal is centred at pixel n // 2 along both axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_bench.results.statistics import Values
from kdmri_edge.errors import BenchError

__all__ = [
    "CHANNELS",
    "Hotelling",
    "NonPrewhitening",
    "detectability",
    "difference_of_gaussians",
    "eye_filter",
    "roc_area",
]


VIEWING_DISTANCE_MM: Final = 500.0
"""From the eye to the screen, on which images are shown in the size of life."""

_EYE_POWER: Final = 1.3
_EYE_PEAK: Final = 4.0  # cycles a degree

CHANNELS: Final = 10
_FIRST_WIDTH: Final = 0.005  # cycles a pixel
_WIDENING: Final = 1.4
_BANDWIDTH: Final = 1.67


def roc_area(absent: NDArray[Any], present: NDArray[Any]) -> float:
    """Return the area under the ROC curve of responses without and with a signal.

    It is the probability that of one response of each kind that with the signal is the larger one,
    a tie counting half: the statistic of Mann and Whitney over the number of pairs (Hanley and
    McNeil, Radiology 143:29, 1982).

    Args:
        absent: Responses without signal, [A].
        present: Responses with signal, [P].

    Raises:
        BenchError: There are none of a kind, or a response is not finite.
    """
    absent = np.sort(np.asarray(absent, np.float64).ravel())
    present = np.asarray(present, np.float64).ravel()
    if not absent.size or not present.size:
        raise BenchError(
            "Without responses of both kinds there is no ROC curve.",
            "Measure patches with and without the signal.",
        )
    if not (np.isfinite(absent).all() and np.isfinite(present).all()):
        raise BenchError("A response is NaN or infinite.", "Check the images.")
    below = np.searchsorted(absent, present, "left")
    up_to = np.searchsorted(absent, present, "right")
    return float((below + up_to).mean() / (2 * absent.size))


def detectability(absent: NDArray[Any], present: NDArray[Any]) -> float | None:
    """Return d': the difference of the mean responses over their pooled standard deviation.

    None where neither kind varies, or has fewer than two responses.
    """
    if min(len(absent), len(present)) < 2:
        return None
    spread = np.sqrt((np.var(absent, ddof=1) + np.var(present, ddof=1)) / 2)
    if not spread > 0:
        return None
    return float((np.mean(present) - np.mean(absent)) / spread)


def _radius(size: int, step: float = 1.0) -> Values:
    """Return spatial frequencies [n, n] of an FFT, in cycles per unit of `step`."""
    f = np.fft.fftfreq(size, step)
    return np.asarray(np.hypot(f[:, None], f[None, :]), np.float64)


def eye_filter(size: int, pixel_mm: float, distance_mm: float = VIEWING_DISTANCE_MM) -> Values:
    """Return the eye's filter over the frequencies of an FFT, [n, n], at most 1.

    Args:
        size: Pixels of a patch along each axis.
        pixel_mm: Their size, on the patient and on the screen.
        distance_mm: From the eye to the screen.
    """
    degree_mm = distance_mm * np.tan(np.deg2rad(1.0))
    f = _radius(size, pixel_mm) * degree_mm  # cycles a degree
    c = _EYE_POWER / (2 * _EYE_PEAK**2)  # puts the maximum at the peak
    shape = f**_EYE_POWER * np.exp(-c * f**2)
    peak = _EYE_PEAK**_EYE_POWER * np.exp(-c * _EYE_PEAK**2)
    return np.asarray(shape / peak, np.float64)


def difference_of_gaussians(size: int, channels: int = CHANNELS) -> Values:
    """Return dense differences of Gaussians as templates [channels, n, n] of norm 1.

    In frequency channel j is exp(-f^2 / 2 (Q s_j)^2) - exp(-f^2 / 2 s_j^2) with s_j = 0.005 * 1.4^j
    cycles a pixel, counted from 1, and Q = 1.67.
    """
    f = _radius(size)
    centred = []
    for number in range(1, channels + 1):
        width = _FIRST_WIDTH * _WIDENING**number
        band = np.exp(-0.5 * (f / (_BANDWIDTH * width)) ** 2) - np.exp(-0.5 * (f / width) ** 2)
        template = np.fft.fftshift(np.fft.ifft2(band).real)
        norm = np.linalg.norm(template)
        centred.append(template / norm if norm > 0 else template)
    return np.stack(centred)


def _checked(patches: NDArray[Any]) -> Values:
    """Return patches as float64.

    Raises:
        BenchError: They are no patches of an odd size.
    """
    values = np.asarray(patches, np.float64)
    if values.ndim != 3 or values.shape[1] != values.shape[2] or values.shape[1] % 2 == 0:
        raise BenchError(
            f"Patches of shape {list(values.shape)} are not [count, n, n] with an odd n.",
            "Cut them around a pixel.",
        )
    return values


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NonPrewhitening:
    """The non-prewhitening observer with an eye filter.

    Attributes:
        template: [n, n].
    """

    template: Values

    @classmethod
    def of(
        cls, signal: NDArray[Any], pixel_mm: float, distance_mm: float = VIEWING_DISTANCE_MM
    ) -> NonPrewhitening:
        """Make the observer of a signal [n, n]: w = E^T E s, the eye on both sides."""
        seen = _checked(np.asarray(signal)[None])[0]
        eye = eye_filter(len(seen), pixel_mm, distance_mm)
        return cls(template=np.fft.ifft2(np.fft.fft2(seen) * eye**2).real)

    def responses(self, patches: NDArray[Any]) -> Values:
        """Return the response to each patch, [count]."""
        return np.asarray(np.einsum("kij,ij->k", _checked(patches), self.template), np.float64)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Hotelling:
    """The channelised Hotelling observer.

    Attributes:
        channels: Templates [c, n, n].
        weights: Of the channels, [c].
    """

    channels: Values
    weights: Values

    @classmethod
    def trained(
        cls, absent: NDArray[Any], present: NDArray[Any], channels: Values | None = None
    ) -> Hotelling:
        """Learn from patches: w = K^-1 (mean with signal - mean without).

        K is the mean of the covariances of both kinds. Directions in which the channels do not vary
        are left out of the inverse.

        Args:
            absent: Patches without signal, [A, n, n].
            present: Patches with signal, [P, n, n].
            channels: [c, n, n]; None takes `difference_of_gaussians`.

        Raises:
            BenchError: Of a kind there are fewer patches than channels and one more, from which no
                covariance can be told.
        """
        absent, present = _checked(absent), _checked(present)
        if channels is None:
            channels = difference_of_gaussians(absent.shape[1])
        if min(len(absent), len(present)) <= len(channels):
            raise BenchError(
                f"A Hotelling observer of {len(channels)} channels cannot learn from"
                f" {min(len(absent), len(present))} patches of a kind.",
                f"Give more than {len(channels)} positions.",
            )
        a = np.einsum("kij,cij->kc", absent, channels)
        p = np.einsum("kij,cij->kc", present, channels)
        covariance = np.atleast_2d((np.cov(a.T) + np.cov(p.T)) / 2)
        weights = np.linalg.pinv(covariance, hermitian=True) @ (p.mean(0) - a.mean(0))
        return cls(channels=channels, weights=weights)

    def responses(self, patches: NDArray[Any]) -> Values:
        """Return the response to each patch, [count]."""
        template = np.tensordot(self.weights, self.channels, 1)
        return np.asarray(np.einsum("kij,ij->k", _checked(patches), template), np.float64)
