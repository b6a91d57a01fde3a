"""What may be wrong with a scan: changes of fully sampled k-space, and what is then the truth.

Each perturbation takes k-space before it is undersampled, since noise, motion and drift reach the
samples that are taken. Where the object itself is another one (contrast, a shift by the centre
frequency) the truth changes with it; noise and errors of lines leave it as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.simulation import complex_noise
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.masks import Mask

__all__ = ["PERTURBATIONS", "Kspace", "Perturbation"]

Kspace = NDArray[np.complex64]
"""Fully sampled k-space [S, C, H, W], zero frequency at index 0."""

Change = Callable[[Kspace, Mask, np.random.Generator], tuple[Kspace, bool]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Perturbation:
    """A row of the table of perturbations.

    Attributes:
        name: key in the report.
        title: what it is, with its size.
        change: from k-space, the mask and a generator to the changed k-space, and whether that
            is fully sampled k-space of another truth (else the truth stays).
    """

    name: str
    title: str
    change: Change


def _unchanged(kspace: Kspace, mask: Mask, rng: np.random.Generator) -> tuple[Kspace, bool]:
    return kspace, False


def _noise(part: float) -> Change:
    def change(kspace: Kspace, mask: Mask, rng: np.random.Generator) -> tuple[Kspace, bool]:
        peak = np.abs(kspace_to_image(kspace)).max()
        noise = complex_noise(kspace.shape, seed=int(rng.integers(2**31)))
        return (kspace + part * peak * noise).astype(np.complex64), False

    return change


def _motion(kspace: Kspace, mask: Mask, rng: np.random.Generator) -> tuple[Kspace, bool]:
    """One sampled line in twenty is taken while the object is up to 3 pixels elsewhere."""
    lines = _some_lines(mask, 0.05, rng)
    moved = kspace.copy()
    height, width = kspace.shape[-2:]
    k_h, k_w = np.fft.fftfreq(height), np.fft.fftfreq(width)
    for line in lines:
        down, right = rng.uniform(-3, 3, 2)
        moved[..., line, :] *= np.exp(-2j * np.pi * (k_h[line] * down + k_w * right))
    return moved, False


def _lost(kspace: Kspace, mask: Mask, rng: np.random.Generator) -> tuple[Kspace, bool]:
    """One sampled line in twenty is lost, and nobody says so: its samples are zero."""
    lost = kspace.copy()
    lost[..., _some_lines(mask, 0.05, rng), :] = 0
    return lost, False


def _some_lines(mask: Mask, part: float, rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw lines among those that are sampled, all but the innermost, at least one."""
    sampled = np.flatnonzero(mask.grid.any(1))
    away = np.minimum(sampled, mask.height - sampled)
    outer = sampled[away > 2]  # whoever loses the middle sees it at once
    count = max(1, round(part * len(sampled)))
    return np.sort(rng.choice(outer, min(count, len(outer)), replace=False))


def _ramp(pixels: float) -> Change:
    """Another centre frequency: a phase that grows along readout shifts the image along it."""

    def change(kspace: Kspace, mask: Mask, rng: np.random.Generator) -> tuple[Kspace, bool]:
        k_w = np.fft.fftfreq(kspace.shape[-1])
        return (kspace * np.exp(-2j * np.pi * k_w * pixels)).astype(np.complex64), True

    return change


def _phase(kspace: Kspace, mask: Mask, rng: np.random.Generator) -> tuple[Kspace, bool]:
    """The receiver's phase is another one by a radian, the same everywhere."""
    return (kspace * np.complex64(np.exp(1j))).astype(np.complex64), True


def _drift(kspace: Kspace, mask: Mask, rng: np.random.Generator) -> tuple[Kspace, bool]:
    """The gain grows by a tenth while the lines are taken in their order."""
    lines = np.arange(kspace.shape[-2])
    order = np.argsort(np.argsort((lines + kspace.shape[-2] // 2) % kspace.shape[-2]))
    gain = 1 + 0.1 * (order / max(1, len(lines) - 1) - 0.5)
    return (kspace * gain[:, None]).astype(np.complex64), False


def _inverted(kspace: Kspace, mask: Mask, rng: np.random.Generator) -> tuple[Kspace, bool]:
    """Bright is dark and dark is bright within the body; air stays dark."""

    def of(magnitude: NDArray[Any], peak: float) -> NDArray[Any]:
        body = np.clip(magnitude / (0.1 * peak), 0, 1)  # no hard edge, which would ring
        return body * (1.05 * peak - magnitude)

    return _recoloured(kspace, of), True


def _gamma(exponent: float) -> Change:
    def change(kspace: Kspace, mask: Mask, rng: np.random.Generator) -> tuple[Kspace, bool]:
        return _recoloured(kspace, lambda m, peak: peak * (m / peak) ** exponent), True

    return change


def _recoloured(kspace: Kspace, of: Callable[[NDArray[Any], float], NDArray[Any]]) -> Kspace:
    """Change magnitudes and keep the phase, slice by slice of each coil."""
    image = kspace_to_image(kspace)
    magnitude = np.abs(image)
    changed = np.zeros_like(magnitude)
    for place in np.ndindex(magnitude.shape[:-2]):
        peak = float(magnitude[place].max())
        if peak > 0:
            changed[place] = of(magnitude[place], peak)
    phase = np.where(magnitude > 0, image / np.where(magnitude > 0, magnitude, 1), 0)
    return image_to_kspace(changed * phase).astype(np.complex64)


PERTURBATIONS: Final = (
    Perturbation(name="none", title="none", change=_unchanged),
    Perturbation(name="noise_1", title="noise, 1 % of the maximum", change=_noise(0.01)),
    Perturbation(name="noise_3", title="noise, 3 % of the maximum", change=_noise(0.03)),
    Perturbation(name="motion", title="motion in 1 line of 20, to 3 pixels", change=_motion),
    Perturbation(name="lost_lines", title="1 line of 20 lost", change=_lost),
    Perturbation(name="shift", title="centre frequency off: 2.5 pixels", change=_ramp(2.5)),
    Perturbation(name="phase", title="receiver phase of 1 radian", change=_phase),
    Perturbation(name="gain_drift", title="gain drifts by 10 %", change=_drift),
    Perturbation(name="inverted", title="contrast inverted", change=_inverted),
    Perturbation(name="gamma_half", title="contrast compressed (gamma 0.5)", change=_gamma(0.5)),
    Perturbation(name="gamma_double", title="contrast stretched (gamma 2)", change=_gamma(2.0)),
)
"""What is tried, in the order of the table; the first is the scan as it is."""
