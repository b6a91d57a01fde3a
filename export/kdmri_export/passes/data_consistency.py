"""Data consistency in plain aten operations.

TorchScript takes them as they are, so that libtorch alone can run the graph. The ONNX exporter
turns them into MatMul nodes (projection and DFT-matmul forms) or DFT nodes (the FFT form, which is
what an export without this project gives).
"""

from __future__ import annotations

import copy

from torch import Tensor

from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.physics.consistency import FORMULAS, SENSE_FORMULAS
from kdmri_edge.physics.operators import Form

__all__ = ["lower"]


def _aten(
    x: Tensor, x_u: Tensor, operator: Tensor, gain: float, form: str, maps: Tensor | None = None
) -> Tensor:
    if maps is None:
        return FORMULAS[Form(form)](x, x_u, operator, gain)
    return SENSE_FORMULAS[Form(form)](x, x_u, maps, operator, gain)


def lower(reconstructor: Reconstructor) -> Reconstructor:
    """Return a copy whose data consistency is spelled out in aten operations."""
    lowered = copy.deepcopy(reconstructor)
    if hasattr(lowered.model, "consistency"):
        lowered.model.consistency = _aten
    return lowered
