"""Re-parameterised convolutions: parallel branches in training, one convolution afterwards.

A 3x3 convolution is linear, and so is a sum of 3x3 convolutions that read the same input: their
weights add up. While it trains, a convolution has beside its own weight an expanding branch (1x1,
then 3x3), three edge branches (1x1, then a fixed Sobel or Laplacian filter) and, where input and
output have as many channels, the identity; after Zhang et al., "Edge-oriented Convolution Block for
Real-time Super Resolution on Mobile Devices", ACM MM 2021. The branches are summed as weights, not
as images: a training step costs next to nothing more, and folding is exact, borders included (no
branch has a bias between its two convolutions).
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["Branches", "expand", "fold"]

# Sobel along H, Sobel along W, Laplacian; each with a sum of magnitudes of 2.
_EDGES = (
    ((0.25, 0.5, 0.25), (0.0, 0.0, 0.0), (-0.25, -0.5, -0.25)),
    ((0.25, 0.0, -0.25), (0.5, 0.0, -0.5), (0.25, 0.0, -0.25)),
    ((0.0, 0.25, 0.0), (0.25, -1.0, 0.25), (0.0, 0.25, 0.0)),
)
# Part of a convolution's usual first scale that each branch starts with.
_FIRST = 0.3


class Branches(nn.Module):
    """Adds the branches' weight to a convolution's own.

    Args:
        outputs: Output channels O of the convolution.
        inputs: Input channels I.
    """

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        between = max(outputs, inputs)
        self.squeeze = nn.Parameter(torch.randn(between, inputs) / math.sqrt(inputs))
        self.spread = nn.Parameter(
            torch.randn(outputs, between, 3, 3) * _FIRST / math.sqrt(9 * between)
        )
        self.edge = nn.Parameter(
            torch.randn(len(_EDGES), outputs, inputs) * _FIRST / math.sqrt(9 * inputs)
        )
        self.identity = nn.Parameter(torch.zeros(outputs)) if outputs == inputs else None
        self.register_buffer("filters", torch.tensor(_EDGES), persistent=False)
        centre = nn.functional.pad(torch.eye(outputs, inputs)[:, :, None, None], (1,) * 4)
        self.register_buffer("centre", centre, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight of the sum of all branches, [O, I, 3, 3] as `weight`."""
        # Autocast would round the weights themselves, and folding would no longer be exact.
        with torch.autocast(weight.device.type, enabled=False):
            filters = cast(Tensor, self.filters)
            spread = torch.matmul(self.squeeze.t(), self.spread.flatten(2))
            edges = torch.matmul(self.edge.permute(1, 2, 0), filters.flatten(1))
            total = weight + (spread + edges).view_as(weight)
            if self.identity is not None:
                # Fewer operations than a diagonal with a border made anew: training launches them
                # one by one.
                total = total + self.identity.view(-1, 1, 1, 1) * cast(Tensor, self.centre)
            # A copy, since `contiguous` leaves the strides of a single channel as they are, and by
            # those of the first convolution all later ones would compute in the slow layout.
            return total.clone(memory_format=torch.channels_last)


def _convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


def expand(network: nn.Module) -> None:
    """Give every 3x3 convolution of a network its branches, in place.

    The network computes what it did before: what the branches start with is taken off the
    convolutions' own weights, so that weights taken over from a teacher are not blurred by noise.

    The first weights of the branches come from PyTorch's global generator.
    """
    for conv in _convolutions(network):
        branches = Branches(conv.out_channels, conv.in_channels)
        with torch.no_grad():
            conv.weight -= branches(torch.zeros_like(conv.weight))
        parametrize.register_parametrization(conv, "weight", branches)


def fold(network: nn.Module) -> None:
    """Sum all branches into their convolutions, in place; a network without any stays as it is."""
    for conv in _convolutions(network):
        if parametrize.is_parametrized(conv, "weight"):
            parametrize.remove_parametrizations(conv, "weight", leave_parametrized=True)
