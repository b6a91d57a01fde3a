"""Convolutions in half precision inside a float32 graph, with explicit casts.

Data consistency and the cascade's residual stay in float32: rounding them would move acquired
samples. Strongly typed builders (TensorRT 11) compute what the graph says, so it has to say it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdmri_edge.models.blocks import ConvStack
from kdmri_edge.models.reconstructor import Reconstructor

__all__ = ["DTYPES", "cast_convolutions"]

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


class _Cast(nn.Module):
    def __init__(self, stack: ConvStack, dtype: torch.dtype) -> None:
        super().__init__()
        self.stack = stack.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        correction, tapped = self.stack(x.to(self.dtype))
        return correction.float(), tapped


def cast_convolutions(reconstructor: Reconstructor, precision: str) -> None:
    """Let the convolutions of a network compute in a precision of `DTYPES`, in place."""
    for module in list(reconstructor.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ConvStack):
                setattr(module, name, _Cast(child, DTYPES[precision]))
