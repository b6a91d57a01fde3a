"""Makes the certificates of one network's images."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from kdmri_edge.models.protocol import NetworkSpec
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.calibration import Calibration
from kdmri_edge.runtime.certificate import (
    Bound,
    Certificate,
    Noise,
    Scope,
    in_range,
    kept_samples,
    relative_correction,
)
from kdmri_edge.runtime.statistics import slice_statistics

__all__ = ["Certifier"]


class Certifier:
    """What is known of a network before any image of it is.

    Args:
        spec: Its architecture.
        mask: Its own mask, which its calibration is for.
        integers: Whether it computes in int8.
        calibration: Its calibration, or why it has none.
    """

    def __init__(
        self, *, spec: NetworkSpec, mask: Mask, integers: bool, calibration: Calibration | str
    ) -> None:
        self._spec, self._mask, self._integers = spec, mask, integers
        self._calibration = calibration

    @property
    def uncalibrated(self) -> str | None:
        """Why certificates say nothing of scope and error; None with a calibration."""
        return self._calibration if isinstance(self._calibration, str) else None

    def certificate(
        self,
        zero_filled: NDArray[Any],
        image: NDArray[Any],
        mask: Mask,
        *,
        beyond: tuple[str, ...] = (),
        coils: int = 1,
        noise: Noise | None = None,
        fov_mm: float | None = None,
        contrast: str | None = None,
    ) -> Certificate:
        """Say what can be said of an image.

        Args:
            zero_filled: [H, W], as the network read it.
            image: Its image [H, W], in the same unit.
            mask: What was sampled.
            beyond: What of the scan it was not trained for, in sentences.
            coils: Coils that were combined before the network.
            noise: Of k-space, from a noise scan; None estimates it.
            fov_mm: Field of view, the longer side, where the header tells.
            contrast: Where the header tells.
        """
        zero_filled, image = in_range(zero_filled, image)
        scope, bound = self._judged(zero_filled, image, mask, beyond, fov_mm, contrast)
        return Certificate(
            samples=kept_samples(zero_filled, image, mask, self._spec, coils=coils, noise=noise),
            correction=relative_correction(zero_filled, image),
            scope=scope,
            bound=bound,
        )

    def _judged(
        self,
        zero_filled: NDArray[Any],
        image: NDArray[Any],
        mask: Mask,
        beyond: tuple[str, ...],
        fov_mm: float | None,
        contrast: str | None,
    ) -> tuple[Scope, Bound]:
        known = self._calibration
        header = beyond
        if isinstance(known, Calibration):
            header = (*beyond, *known.unlike_header(fov_mm, contrast))
        outside = Bound(reason="The slice is outside the scope, where no bound holds.")
        if isinstance(known, str):
            if header:
                return Scope(inside=False, reasons=header), outside
            return Scope(inside=None, reasons=(known,)), Bound(reason=known)
        if header:
            return Scope(inside=False, reasons=header), outside
        if mask != self._mask:
            why = f"The calibration is for mask {self._mask.name!r} alone."
            return Scope(inside=None, reasons=(why,)), Bound(reason=why)
        statistics = slice_statistics(zero_filled, image, mask)
        if statistics is None:
            why = "The input is constant, and tells nothing."
            return Scope(inside=None, reasons=(why,)), Bound(reason=why)
        scope = known.scope(statistics)
        if not scope.inside:
            return scope, outside
        if known.integers != self._integers:
            kinds = ("int8", "float") if known.integers else ("float", "int8")
            return scope, Bound(
                reason=f"The calibration was made in {kinds[0]}, the network runs in {kinds[1]}."
            )
        return scope, known.bound(statistics)
