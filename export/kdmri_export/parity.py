"""The parity gate: an exported graph must give what PyTorch gives, in its own runtime."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdmri_edge.errors import ParityError
from kdmri_edge.metrics import psnr, ssim
from kdmri_edge.physics.forms import Form
from kdmri_edge.reconstructor import Reconstructor
from kdmri_edge.runtime.session import Session, reconstruct
from kdmri_export.golden import Golden

__all__ = ["TOLERANCES", "Figures", "Tolerance", "check", "compare", "tolerance_for"]

Array = NDArray[Any]

# A network is not linear: inputs away from the usual scale find errors that the usual one hides.
_NETWORK_SCALES = (0.01, 1.0, 100.0)
# A scanner's unit is arbitrary; the scaling around the network has to absorb it.
_IMAGE_SCALES = (1e-6, 1.0, 1e6)
# A mask that samples everything leaves rounding alone: above this, PSNR has no meaning.
_EQUAL_DB = 100.0


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
    "bf16": Tolerance(max_error=5e-2, nrmse=2e-2, psnr_db=0.2, ssim=5e-3),
}


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


def _against_truth(output: Array, reference: Array, truth: Array) -> Figures:
    base = compare(output, reference)
    if not np.isfinite(output).all():  # no quality is defined then: the gate has to fail
        return base.worst(Figures(max_error=np.nan, nrmse=np.nan, psnr_db=np.nan, ssim=np.nan))
    target, ours, theirs = np.abs(truth), np.abs(output), np.abs(reference)
    # SSIM's window of 7 pixels does not fit into tiny matrices, which only tests have.
    has_window = min(target.shape[-2:]) >= 7
    change = abs(ssim(target, ours) - ssim(target, theirs)) if has_window else 0.0
    return Figures(
        max_error=base.max_error,
        nrmse=base.nrmse,
        psnr_db=abs(min(psnr(target, ours), _EQUAL_DB) - min(psnr(target, theirs), _EQUAL_DB)),
        ssim=change,
    )


def _torch_session(reconstructor: Reconstructor) -> Any:
    class Reference(Session):
        info = None  # type: ignore[assignment]

        def run(self, x_u: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.inference_mode():
                result: NDArray[np.float32] = reconstructor(torch.from_numpy(x_u)).numpy()
            return result

    return Reference()


def check(
    session: Session,
    reconstructor: Reconstructor,
    data: Golden,
    *,
    precision: str,
    dynamic: bool = False,
) -> dict[str, Any]:
    """Run the gate.

    Args:
        session: The exported graph in its runtime.
        reconstructor: The same network in PyTorch, float32, with the form that was exported.
        data: Golden slices.
        precision: Which tolerances apply.
        dynamic: The graph takes any batch: all slices are also run in one call.

    Returns:
        For the manifest: tolerance, figures, and the scales that were tried.

    Raises:
        ParityError: A figure exceeds its tolerance; the message names all of them.
    """
    reference = _torch_session(reconstructor)
    name, tolerance = tolerance_for(precision, reconstructor.form)
    figures = Figures(max_error=0.0, nrmse=0.0, psnr_db=0.0, ssim=0.0)
    for scale in _NETWORK_SCALES:
        for x_u in data.network_input:
            x_u = np.ascontiguousarray(x_u[None] * np.float32(scale))
            figures = figures.worst(compare(session.run(x_u), reference.run(x_u)))
    if dynamic:
        x_u = np.ascontiguousarray(data.network_input)
        figures = figures.worst(compare(session.run(x_u), reference.run(x_u)))
    for scale in _IMAGE_SCALES:
        zero_filled = data.zero_filled * data.zero_filled.dtype.type(scale)
        ours, theirs = reconstruct(session, zero_filled), reconstruct(reference, zero_filled)
        figures = figures.worst(_against_truth(ours / scale, theirs / scale, data.target))
    exceeded = figures.exceeded(tolerance)
    if exceeded:
        text = ", ".join(
            f"{key} {getattr(figures, key):.2g} (limit {getattr(tolerance, key):.2g})"
            for key in exceeded
        )
        raise ParityError(
            f"The exported graph does not reproduce PyTorch: {text}.",
            "Nothing was written; try another --dc form, or report the versions that"
            " `kdmri-edge doctor` prints.",
        )
    return {
        "passed": True,
        "tolerance_name": name,
        "tolerance": asdict(tolerance),
        "figures": asdict(figures),
        "network_input_scales": list(_NETWORK_SCALES),
        "image_scales": list(_IMAGE_SCALES),
        "slices": len(data.zero_filled),
        "against": f"PyTorch {torch.__version__} float32, {reconstructor.form} form",
    }
