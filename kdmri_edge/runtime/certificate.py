"""What can be said of one image without knowing the true one: a certificate beside it.

It says four things, each with the reason where it cannot be said:

- *samples*: how far the image's k-space is from the samples that were acquired. Only of networks of
  one complex image: networks of real images enforce a line whose mirror image was not sampled by
  half, SENSE's data consistency is a gradient step, and images of combined coils or magnitudes have
  no sample of their own. Nothing is said of what a network does by design, all of it is measured.
- *correction*: what the network added to the zero-filled image. The image before the last data
  consistency is inside the graph and is not seen.
- *scope*: whether input and correction look like those of the calibration (`runtime.calibration`).
- *error bound*: what the error is at most, for the stated share of slices like those of the
  calibration.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.models.protocol import InputKind, NetworkSpec
from kdmri_edge.physics.masks import Mask

__all__ = [
    "SCHEMA",
    "Bound",
    "Certificate",
    "Noise",
    "Policies",
    "Policy",
    "Samples",
    "Scope",
    "estimated_noise",
    "in_range",
    "kept_samples",
    "relative_correction",
]

SCHEMA: Final = 1
_OUTER: Final = 0.875  # of the largest readout frequency: from there on samples are mostly noise
_FEWEST: Final = 32  # samples that noise is estimated from, at least
_SQUARED: Final = (1e-12, 1e12)  # magnitudes whose squares, summed, float32 holds
_ROWS: Final = 64  # transformed at a time: larger arrays come from the system anew each time
Array = NDArray[Any]


class Policy(StrEnum):
    """What becomes of an image whose input is outside the network's scope, or may be.

    Attributes:
        FLAG: It is sent, and says so.
        ZERO_FILLED: The zero-filled image is sent in its place.
        REFUSE: None is sent, but the reason.
    """

    FLAG = "flag"
    ZERO_FILLED = "zero-filled"
    REFUSE = "refuse"


@dataclass(frozen=True, kw_only=True, slots=True)
class Policies:
    """What a site chose for images that are not known to be inside their network's scope.

    Attributes:
        outside: Of slices outside the scope.
        unknown: Of slices of which it is not known: the network has no calibration, the slice is
            constant, the calibration is for another mask. None takes that of slices outside: who
            wants no image outside the scope wants none that may be.
    """

    outside: Policy = Policy.FLAG
    unknown: Policy | None = None

    def of(self, inside: bool | None) -> Policy:
        """Return what becomes of an image, by its `Scope.inside`."""
        if inside:
            return Policy.FLAG
        if inside is None and self.unknown is not None:
            return self.unknown
        return self.outside


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """Noise of k-space.

    Attributes:
        sigma: Standard deviation of the real part of a sample, in the unit of k-space.
        origin: Where it comes from, in words.
    """

    sigma: float
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """How an image keeps to the samples that were acquired.

    Attributes:
        deviation: Largest distance of its k-space from a sample, relative to the largest sample;
            None where that cannot be said.
        in_noise: The same distance over the noise's standard deviation; None without either.
        noise: Of k-space; None where it is not known.
        reason: Why something is None; empty where nothing is.
    """

    deviation: float | None = None
    in_noise: float | None = None
    noise: Noise | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; what is not known is left out."""
        found: dict[str, Any] = {}
        if self.deviation is not None:
            found["largest_deviation"] = _short(self.deviation)
        if self.in_noise is not None:
            found["largest_deviation_in_noise"] = _short(self.in_noise)
        if self.noise is not None:
            found["noise"] = {"sigma": _short(self.noise.sigma), "origin": self.noise.origin}
        return found | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """Whether a slice is like those that its network is made for.

    Attributes:
        inside: None where that is not known.
        reasons: Why it is outside, or why that is not known, in sentences.
        distance: Of its figures from those of the calibration, relative to the limit; None without
            a calibration.
    """

    inside: bool | None
    reasons: tuple[str, ...] = ()
    distance: float | None = None

    @property
    def word(self) -> str:
        """One word for it."""
        return {True: "inside", False: "outside", None: "unknown"}[self.inside]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        found: dict[str, Any] = {"verdict": self.word}
        if self.distance is not None:
            found["distance"] = _short(self.distance)
        return found | ({"reasons": list(self.reasons)} if self.reasons else {})


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """A bound on the error of a slice.

    Attributes:
        value: Largest |x - x_true| / |x| (norms over the slice's pixels) that the calibration lets
            expect of the share `level` of slices; None where there is none.
        level: That share.
        reason: Why there is none.
    """

    value: float | None = None
    level: float | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        if self.value is None or self.level is None:
            return {"reason": self.reason}
        return {"relative_error_at_most": _short(self.value), "level": self.level}


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """What is said of one image.

    Attributes:
        samples: See `Samples`.
        correction: Norm of the image less the zero-filled image, over that of the latter; None for
            a blank slice.
        scope: See `Scope`.
        bound: See `Bound`.
    """

    samples: Samples
    correction: float | None
    scope: Scope
    bound: Bound

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        correction: dict[str, Any] = {"reason": "The slice is blank."}
        if self.correction is not None:
            correction = {"relative_norm": _short(self.correction)}
        return {
            "schema": SCHEMA,
            "samples": self.samples.to_dict(),
            "correction": correction,
            "scope": self.scope.to_dict(),
            "error_bound": self.bound.to_dict(),
        }

    def to_line(self) -> str:
        """Return it as one line of JSON in ASCII, as images' attributes hold it."""
        return json.dumps(self.to_dict(), separators=(",", ":"))


def _short(value: float) -> float:
    """Keep four digits: more would say nothing, and lines are read by people, too."""
    return float(f"{value:.4g}")


def in_range(zero_filled: Array, image: Array) -> tuple[Array, Array]:
    """Return both as they are, or in float64 where float32 does not hold their squares.

    Of k-space in an unusual unit a sum of squares would be zero or infinite, and with it a slice
    blank, or its deviation none.
    """
    largest = [float(np.abs(one).max(initial=0.0)) for one in (zero_filled, image)]
    if all(one == 0 or _SQUARED[0] <= one <= _SQUARED[1] for one in largest):
        return zero_filled, image
    wide = np.complex128 if np.iscomplexobj(zero_filled) else np.float64
    return zero_filled.astype(wide), image.astype(wide)


def relative_correction(zero_filled: Array, image: Array) -> float | None:
    """Return what the network added, relative to the zero-filled image; None for a blank slice.

    Args:
        zero_filled: [H, W], as the network reads it.
        image: The network's image [H, W] in the same unit.
    """
    own = float(np.linalg.norm(zero_filled))
    return float(np.linalg.norm(image - zero_filled)) / own if own > 0 else None


def kept_samples(
    zero_filled: Array,
    image: Array,
    mask: Mask,
    spec: NetworkSpec,
    *,
    coils: int = 1,
    noise: Noise | None = None,
) -> Samples:
    """Measure how far an image is from the samples that were acquired.

    Args:
        zero_filled: complex64 [H, W]: its k-space holds the samples.
        image: The network's image, complex64 [H, W] in the same unit.
        mask: What was sampled.
        spec: The network's.
        coils: Coils that were combined before the network.
        noise: Of k-space, from a noise scan; None estimates it from the outer samples.
    """
    reason = _no_sample(spec, coils)
    if reason:
        return Samples(reason=reason)
    samples = _sampled(zero_filled, mask)
    largest = float(np.abs(samples).max(initial=0.0))
    if largest == 0:
        return Samples(reason="The slice is blank.")
    deviation = float(np.abs(_sampled(image - zero_filled, mask)).max())
    noise = noise or estimated_noise(samples, mask)
    if noise is None:
        return Samples(
            deviation=deviation / largest,
            reason="The noise is not known: no noise scan, and no outer samples to estimate it.",
        )
    return Samples(deviation=deviation / largest, in_noise=deviation / noise.sigma, noise=noise)


def _no_sample(spec: NetworkSpec, coils: int) -> str:
    """Say why an image has no sample to be compared with; empty where it has."""
    if not spec.has_data_consistency and spec.reads is not InputKind.KSPACE:
        return "The network has no data consistency."
    if spec.reads is InputKind.SENSE:
        return "Data consistency of a network that combines coils is a gradient step."
    if spec.reads is InputKind.KSPACE:
        return "The network gives magnitudes, which have no k-space of the coils."
    if spec.reads is InputKind.MAGNITUDE:
        return (
            "A network of real images enforces a line whose mirror image was not sampled by half."
        )
    if coils > 1:
        return "Coils were combined before the network: their samples are not the image's."
    return ""


def _sampled(image: Array, mask: Mask) -> Array:
    """Return the k-space of an image where it was sampled: [lines, W], or [samples, 1]."""
    height, width = image.shape
    kind = np.result_type(image, np.complex64)
    along = np.empty((height, width), kind)
    for start in range(0, height, _ROWS):
        part = slice(start, start + _ROWS)
        along[part] = np.fft.fft(image[part], axis=1)
    if not mask.is_lines:
        found: Array = np.fft.fft(along, axis=0)[mask.grid][:, None].astype(kind)
        return found / np.float32(np.sqrt(height * width))
    lines = np.empty((width, int(mask.samples.sum())), kind)
    taken = np.flatnonzero(mask.samples.reshape(height, -1)[:, 0])
    for start in range(0, width, _ROWS):
        columns = np.ascontiguousarray(along[:, start : start + _ROWS].T)
        lines[start : start + _ROWS] = np.fft.fft(columns, axis=1)[:, taken]
    # the origin of images is in the middle, which changes phases alone
    ordered: Array = lines.T / np.float32(np.sqrt(height * width))
    return ordered


def estimated_noise(samples: Array, mask: Mask) -> Noise | None:
    """Estimate the noise from the outermost samples along readout, by their median power.

    Where the object still has signal there, the estimate is too high, and the deviation in units of
    it too low.

    Args:
        samples: [lines, W], or [samples, 1] of a mask of single samples, zero frequency at 0.
        mask: What was sampled.

    Returns:
        None where there are too few such samples, or they are zeros of padding.
    """
    if not mask.is_lines:
        return None
    outer = np.abs(np.fft.fftfreq(samples.shape[1])) >= 0.5 * _OUTER
    values = samples[:, outer]
    if values.size < _FEWEST:
        return None
    power = values.real**2 + values.imag**2
    middle = float(np.median(power))
    # of noise the power is exponential, with median 2 sigma^2 ln 2; zeros leave rounding errors
    sigma = float(np.sqrt(middle / (2 * np.log(2))))
    if sigma <= 1e-6 * float(np.abs(samples).max(initial=0.0)):
        return None
    return Noise(sigma=sigma, origin="estimated from the outer samples along readout")
