"""VDSR: one deep stack with a global residual (Kim et al., CVPR 2016)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdmri_edge.models.blocks import ConvStack, smaller
from kdmri_edge.models.layers import Structure
from kdmri_edge.models.network import Features, Network
from kdmri_edge.models.specs import ModelSpec
from kdmri_edge.physics.operators import Form

__all__ = ["VDSR"]

# Size of the last convolution's first weights, as a fraction of the others'.
_LAST = 0.1


class VDSR(Network):
    """Super-resolution of an image whose k-space was cut to its centre.

    Args:
        spec: The architecture; it has one cascade and no data consistency.

    Attributes:
        form: Present for uniformity with DC-CNN; without effect.
    """

    spec: ModelSpec

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.form = Form.PROJECTION
        self.stack = ConvStack(spec)
        self._draw()

    def _draw(self) -> None:
        """Draw weights that keep the size of activations (He et al., ICCV 2015), as VDSR has them.

        PyTorch's own shrink them by more than half in each layer: after eleven nothing of the image
        is left, and training at a high rate never found it again. The last convolution starts
        small, since what it writes is added to the image.
        """
        convs = [cast(nn.Conv2d, conv) for conv in self.stack.convs]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, conv.bias))
        with torch.no_grad():
            convs[-1].weight.mul_(_LAST)

    def features(
        self, x_u: Tensor, operator: Tensor | None = None, maps: Tensor | None = None
    ) -> Features:
        """Reconstruct and keep what distillation reads.

        Args:
            x_u: Normalised low-resolution images on the full matrix, [B, C, H, W].
            operator: Ignored.
            maps: Ignored.

        Raises:
            ModelError: A side of the images is no multiple of `spec.shuffle`.
        """
        factor = self.spec.shuffle
        correction, tapped = self.stack(x_u if factor == 1 else smaller(x_u, factor))
        if factor > 1:
            correction = F.pixel_shuffle(correction, factor)
        x = x_u + correction if self.spec.residual else correction
        return Features(x, [x], [tapped])

    def forward(
        self, x_u: Tensor, operator: Tensor | None = None, maps: Tensor | None = None
    ) -> Tensor:
        """Reconstruct: images [B, C, H, W] to images of the same shape."""
        return self.features(x_u, operator).output

    def structure(self) -> Structure:
        """Describe its layers, without a forward pass."""
        return Structure(layers=self.stack.layers("stack"))
