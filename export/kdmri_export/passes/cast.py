"""Convolutions in half precision inside a float32 graph, with explicit casts.

Everything else, data consistency above all, stays in float32: rounding it would move acquired
samples. Strongly typed builders (TensorRT 11) compute what the graph says, so it has to say it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from kdmri_edge.models.convolutions import replace_module
from kdmri_edge.models.reconstructor import Reconstructor

__all__ = ["DTYPES", "cast_convolutions"]

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


class _Cast(nn.Module):
    """A convolution in half precision.

    Args:
        conv: The convolution.
        dtype: What it computes in.
        given: It is given halves, by the convolution that it follows.
        hands_on: What reads its output takes halves.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, *, given: bool, hands_on: bool) -> None:
        super().__init__()
        self.conv = conv.to(dtype)
        self.dtype, self.given, self.hands_on = dtype, given, hands_on

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv(x if self.given else x.to(self.dtype))
        return made if self.hands_on else made.float()


def cast_convolutions(reconstructor: Reconstructor, precision: str) -> int:
    """Let the convolutions of a network compute in a precision of `DTYPES`, in place.

    Between convolutions that follow each other there is no cast.

    Returns:
        How many there are.
    """
    network = reconstructor.model
    found = network.convolutions()
    followed = {described.follows for described in found}
    for described in found:
        conv = cast(nn.Conv2d, network.get_submodule(described.name))
        made = _Cast(
            conv,
            DTYPES[precision],
            given=described.follows is not None,
            hands_on=described.name in followed,
        )
        replace_module(network, described.name, made)
    return len(found)
