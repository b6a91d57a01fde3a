"""How far a runtime's images are from PyTorch's, and how far they may be."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.physics.operators import Form

__all__ = ["TOLERANCES", "Figures", "Tolerance", "coarser", "compare", "tolerance_for"]

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """Largest deviation that passes.

    Attributes:
        max_error: Largest difference over the reference's range.
        nrmse: Root-mean-square difference over the reference's root-mean-square.
        psnr_db: Change of PSNR against the phantom's truth, in dB.
        ssim: Change of SSIM against it.
    """

    max_error: float
    nrmse: float
    psnr_db: float
    ssim: float


TOLERANCES: dict[str, Tolerance] = {
    "f32": Tolerance(max_error=1e-4, nrmse=1e-4, psnr_db=0.001, ssim=1e-5),
    # Runtimes compute DFT nodes of lengths that are no power of two less exactly than products.
    "f32, DFT nodes": Tolerance(max_error=1e-3, nrmse=1e-3, psnr_db=0.01, ssim=1e-4),
    "f16": Tolerance(max_error=1e-2, nrmse=5e-3, psnr_db=0.05, ssim=1e-3),
    "int8": Tolerance(max_error=1e-1, nrmse=3e-2, psnr_db=0.3, ssim=1e-2),
    "bf16": Tolerance(max_error=5e-2, nrmse=2e-2, psnr_db=0.2, ssim=5e-3),
}


def coarser(first: str, second: str) -> str:
    """Return the one of two precisions that may deviate more.

    A graph of one precision may be executed in another: float16 weights in float32 arithmetic.
    """
    return max(first, second, key=lambda name: TOLERANCES[name].max_error)


def tolerance_for(precision: str, form: Form) -> tuple[str, Tolerance]:
    """Return the row of the table that applies, with its name."""
    name = "f32, DFT nodes" if precision == "f32" and form is Form.FFT else precision
    return name, TOLERANCES[name]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Deviation of an export from PyTorch float32; the largest over all golden inputs.

    Attributes:
        max_error: Largest difference over the reference's range.
        nrmse: Root-mean-square difference over the reference's root-mean-square.
        psnr_db: Absolute change of PSNR against the phantom's truth, in dB.
        ssim: Absolute change of SSIM against it.
    """

    max_error: float
    nrmse: float
    psnr_db: float
    ssim: float

    def worst(self, other: Figures) -> Figures:
        """Return the larger of each figure."""
        pairs = zip(asdict(self).items(), asdict(other).values(), strict=True)
        # numpy's maximum keeps a NaN, which Python's max() would drop and let pass
        return Figures(**{name: float(np.maximum(a, b)) for (name, a), b in pairs})

    def exceeded(self, tolerance: Tolerance) -> list[str]:
        """Name the figures beyond tolerance; not-a-number is beyond any."""
        limits = asdict(tolerance)
        return [name for name, value in asdict(self).items() if not value <= limits[name]]


def compare(output: Array, reference: Array) -> Figures:
    """Compare two outputs of any one shape; the change of PSNR and SSIM is left at zero."""
    difference = np.abs(output.astype(np.complex128) - reference)
    span = float(np.abs(reference.max() - reference.min())) or 1.0
    energy = float(np.sqrt(np.mean(np.abs(reference) ** 2))) or 1.0
    return Figures(
        max_error=float(difference.max()) / span,
        nrmse=float(np.sqrt(np.mean(difference**2))) / energy,
        psnr_db=0.0,
        ssim=0.0,
    )
