"""Adapters of other projects' networks that follow no named convention."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from kdmri_edge.models import Adapter, InputKind

__all__ = ["ComplexImages", "WithPhysics"]


class WithPhysics(nn.Module):
    """A network of deepinv as deepinv's users call it: with the physics of a mask.

    Args:
        network: Takes (y, physics).
        mask: [H, W], zero frequency in the middle.
    """

    mask: Tensor

    def __init__(self, network: nn.Module, mask: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mask", mask)

    def forward(self, y: Tensor) -> Tensor:
        """Reconstruct k-space [B, 2, H, W]."""
        from deepinv.physics import MRI

        made: Tensor = self.network(y, MRI(mask=self.mask))
        return made


class ComplexImages(Adapter):
    """A network of complex images [B, 1, H, W, 2], as MONAI's ComplexUnet is."""

    reads: ClassVar[InputKind] = InputKind.COMPLEX

    def forward(
        self, x_u: Tensor, operator: Tensor | None = None, maps: Tensor | None = None
    ) -> Tensor:
        """Bring real and imaginary part to the last axis, and back."""
        made: Tensor = self.module(x_u.permute(0, 2, 3, 1)[:, None].contiguous())
        return made[:, 0].permute(0, 3, 1, 2)
