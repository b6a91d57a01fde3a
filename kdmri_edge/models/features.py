"""What a network shows to distillation beside its output."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Features"]


class Features(NamedTuple):
    """Output and inner results of one forward pass.

    Attributes:
        output: Reconstruction [B, C, H, W].
        stages: Image after each cascade, [B, C, H, W]; the last one is the output.
        attention: Activations of the attention tap in each cascade, [B, width, H, W].
    """

    output: Tensor
    stages: list[Tensor]
    attention: list[Tensor]
