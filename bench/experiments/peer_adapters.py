"""Adapters of other projects' networks that follow no named convention."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from kdmri_edge.models import Adapter, InputKind

__all__ = ["ComplexImages", "DeepInverse"]


class ComplexImages(Adapter):
    """A network of complex images [B, 1, H, W, 2], as MONAI's ComplexUnet is."""

    reads: ClassVar[InputKind] = InputKind.COMPLEX

    def forward(
        self, x_u: Tensor, operator: Tensor | None = None, maps: Tensor | None = None
    ) -> Tensor:
        """Bring real and imaginary part to the last axis, and back."""
        made: Tensor = self.module(x_u.permute(0, 2, 3, 1)[:, None].contiguous())
        return made[:, 0].permute(0, 3, 1, 2)


class DeepInverse(Adapter):
    """A network (y, physics) of deepinv, for complex images and masks of lines.

    Args:
        module: The network.
        lines: Returns the mask [H] for an H, zero frequency in the middle.
    """

    reads: ClassVar[InputKind] = InputKind.COMPLEX

    def __init__(self, module: nn.Module, lines: Callable[[int], Tensor]) -> None:
        super().__init__(module)
        self._lines = lines

    def forward(
        self, x_u: Tensor, operator: Tensor | None = None, maps: Tensor | None = None
    ) -> Tensor:
        """Give it the samples that the zero-filled image was made of, and their physics."""
        from deepinv.physics import MRI

        height, width = x_u.shape[-2:]
        mask = self._lines(height).to(x_u).view(height, 1).expand(height, width)
        physics = MRI(mask=mask, img_size=(height, width))
        made: Tensor = self.module(physics.A(x_u), physics)
        return made
