"""The equal forms of data consistency, by name (torch-free)."""

from __future__ import annotations

from enum import StrEnum

from kdmri_edge.errors import MaskError
from kdmri_edge.physics.masks import Mask

__all__ = ["Form", "choose_form"]


class Form(StrEnum):
    """How P x is computed; all forms give the same result.

    Attributes:
        PROJECTION: One matrix product along phase encode; line masks only.
        DFT: Products with DFT matrices in real arithmetic; any mask, any runtime.
        FFT: torch.fft; training, libtorch and the reference.
    """

    PROJECTION = "projection"
    DFT = "dft"
    FFT = "fft"


def choose_form(mask: Mask, wanted: str = "auto") -> Form:
    """Return the form to use for a mask: as wanted, or the fastest that every runtime takes.

    Raises:
        MaskError: The projection form is asked for a mask that does not sample whole lines.
    """
    if wanted == "auto":
        return Form.PROJECTION if mask.is_lines else Form.DFT
    form = Form(wanted)
    if form is Form.PROJECTION and not mask.is_lines:
        raise MaskError(
            f"Mask {mask.name!r} does not sample whole lines, so it has no projection form.",
            "Use --dc dft (or --dc auto).",
        )
    return form
