"""A plain stack of convolutions, the block that every network here is made of."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kdmri_edge.models.spec import ModelSpec

__all__ = ["ConvStack"]


class ConvStack(nn.Module):
    """Convolutions with ReLU between them, "same" padding.

    Args:
        spec: Gives number, widths, kernel and dilation of the convolutions.
        cascade: Which cascade's stack it is, from 0.
    """

    def __init__(self, spec: ModelSpec, cascade: int = 0) -> None:
        super().__init__()
        self.tap = spec.attention_tap
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, spec.kernel, padding=d * (spec.kernel // 2), dilation=d)
            for (i, o), d in zip(spec.widths, spec.dilation_of(cascade), strict=True)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stack's output [B, C, H, W] and the tapped activations [B, width, H, W]."""
        tapped = x
        last = len(self.convs)
        for number, conv in enumerate(self.convs, start=1):
            x = conv(x)
            if number < last:
                x = F.relu(x)
            if number == self.tap:
                tapped = x
        return x, tapped
