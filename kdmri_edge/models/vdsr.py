"""VDSR: one deep stack with a global residual (Kim et al., CVPR 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from kdmri_edge.models.features import Features
from kdmri_edge.models.spec import ModelSpec
from kdmri_edge.models.stack import ConvStack
from kdmri_edge.physics.forms import Form

__all__ = ["VDSR"]


class VDSR(nn.Module):
    """Super-resolution of an image whose k-space was cut to its centre.

    Args:
        spec: The architecture; it has one cascade and no data consistency.

    Attributes:
        form: Present for uniformity with DC-CNN; without effect.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.form = Form.PROJECTION
        self.stack = ConvStack(spec)

    def features(
        self, x_u: Tensor, operator: Tensor | None = None, maps: Tensor | None = None
    ) -> Features:
        """Reconstruct and keep what distillation reads.

        Args:
            x_u: Normalised low-resolution images on the full matrix, [B, C, H, W].
            operator: Ignored.
            maps: Ignored.
        """
        correction, tapped = self.stack(x_u)
        x = x_u + correction if self.spec.residual else correction
        return Features(x, [x], [tapped])

    def forward(
        self, x_u: Tensor, operator: Tensor | None = None, maps: Tensor | None = None
    ) -> Tensor:
        """Reconstruct: images [B, C, H, W] to images of the same shape."""
        return self.features(x_u, operator).output
