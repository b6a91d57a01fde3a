"""From a specification to a torch module."""

from __future__ import annotations

from kdmri_edge.models.dccnn import DCCNN
from kdmri_edge.models.specs import Kind, ModelSpec
from kdmri_edge.models.vdsr import VDSR

__all__ = ["Network", "build_model"]

Network = DCCNN | VDSR

_FAMILIES: dict[Kind, type[DCCNN] | type[VDSR]] = {Kind.DCCNN: DCCNN, Kind.VDSR: VDSR}


def build_model(spec: ModelSpec) -> Network:
    """Return a network with freshly drawn weights (PyTorch's default initialisation)."""
    return _FAMILIES[spec.kind](spec)
