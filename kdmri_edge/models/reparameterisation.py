"""Re-parameterised convolutions: parallel branches in training, one convolution afterwards.

A 3x3 convolution is linear, and so is a sum of 3x3 convolutions that read the same input: their
weights add up. While it trains, a convolution has beside its own weight an expanding branch (1x1,
then 3x3), three edge branches (1x1, then a fixed Sobel or Laplacian filter) and, where input and
output have as many channels, the identity; after Zhang et al., "Edge-oriented Convolution Block for
Real-time Super Resolution on Mobile Devices", ACM MM 2021. The branches are summed as weights, not
as images: a training step costs next to nothing more, and folding is exact, borders included (no
branch has a bias between its two convolutions).

Convolutions of the same size hold their branches together, so that in training all their weights
are summed in a few operations (`together`): to start hundreds of small ones takes longer than what
they do.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["Branches", "fuse", "reparameterise", "sum_branches_once"]

# Sobel along H, Sobel along W, Laplacian; each with a sum of magnitudes of 2.
_EDGES = (
    ((0.25, 0.5, 0.25), (0.0, 0.0, 0.0), (-0.25, -0.5, -0.25)),
    ((0.25, 0.0, -0.25), (0.5, 0.0, -0.5), (0.25, 0.0, -0.25)),
    ((0.0, 0.25, 0.0), (0.25, -1.0, 0.25), (0.0, 0.25, 0.0)),
)
# Part of a convolution's usual first scale that each branch starts with.
_FIRST = 0.3


class Branches(nn.Module):
    """Branches of G convolutions of the same size; adds up their weights.

    Args:
        convs: The convolutions, each O output by I input channels.
    """

    def __init__(self, convs: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        outputs, inputs = convs[0].out_channels, convs[0].in_channels
        between = max(outputs, inputs)
        squeeze, spread, edge = [], [], []
        for _ in convs:
            squeeze.append(torch.randn(between, inputs) / math.sqrt(inputs))
            first = torch.randn(outputs, between, 3, 3) * _FIRST / math.sqrt(9 * between)
            spread.append(first.permute(0, 2, 3, 1).flatten(0, 2))
            first = torch.randn(len(_EDGES), outputs, inputs) * _FIRST / math.sqrt(9 * inputs)
            edge.append(first.transpose(0, 1))
        # All in the order of channels-last weights: [G, M, I], [G, O * 9, M] and [G, O, 3, I].
        self.squeeze = nn.Parameter(torch.stack(squeeze))
        self.spread = nn.Parameter(torch.stack(spread))
        self.edge = nn.Parameter(torch.stack(edge))
        same = outputs == inputs
        self.identity = nn.Parameter(torch.zeros(len(convs), outputs)) if same else None
        self.register_buffer("filters", torch.tensor(_EDGES).flatten(1).t(), persistent=False)
        centre = torch.zeros(outputs, 9, inputs)
        centre[:, 4] = torch.eye(outputs, inputs)
        self.register_buffer("centre", centre, persistent=False)
        self._convs = list(convs)
        self.ready: tuple[Tensor, ...] | None = None

    def total(self, own: Tensor, number: int | None) -> Tensor:
        """Return the weights of the sum of all branches.

        Args:
            own: The convolution's own weight [O, I, 3, 3]; or those of all, [G, O, I, 3, 3].
            number: Which convolution; None for all.

        Returns:
            As `own`, in channels-last order.
        """
        kept: tuple[Tensor | None, ...] = (self.squeeze, self.spread, self.edge, self.identity)
        if number is not None:
            kept = tuple(None if tensor is None else tensor[number] for tensor in kept)
        squeeze, spread, edge = (cast(Tensor, tensor) for tensor in kept[:3])
        identity = kept[3]
        # Autocast would round the weights themselves, and folding would no longer be exact.
        with torch.autocast(own.device.type, enabled=False):
            edges = torch.matmul(cast(Tensor, self.filters), edge)  # [..., O, 9, I]
            total = own.movedim(-3, -1).reshape(edges.shape) + edges
            total = total + torch.matmul(spread, squeeze).view_as(edges)
            if identity is not None:
                total = total + identity[..., None, None] * cast(Tensor, self.centre)
            # Contiguous in this order, whatever the strides of a single channel say: by those of
            # the first convolution all later ones would compute in the slow layout.
            laid = total.contiguous().view(*total.shape[:-2], 3, 3, total.shape[-1])
        return laid.movedim(-1, -3)

    def prepare(self) -> None:
        """Sum all weights at once; under autocast in the type that convolutions will want."""
        originals = [_plain(conv) for conv in self._convs]
        total = self.total(torch.stack(originals), None)
        kind = total.device.type
        if torch.is_autocast_enabled(kind):
            total = total.to(torch.get_autocast_dtype(kind))
        self.ready = total.unbind()


class _Branched(nn.Module):
    """A convolution's parametrization: its part of the branches of its size."""

    def __init__(self, branches: Branches, number: int) -> None:
        super().__init__()
        self._branches, self._number = [branches], number  # in a list: the network holds them

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight of the sum of all branches, [O, I, 3, 3] as `weight`."""
        (branches,) = self._branches
        if branches.ready is not None:
            return branches.ready[self._number]
        return branches.total(weight, self._number)


def _plain(conv: nn.Conv2d) -> Tensor:
    """Return a convolution's own weight."""
    listed = cast(nn.ModuleDict, conv.parametrizations)["weight"]
    return cast(Tensor, listed.original)


def _convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


def reparameterise(network: nn.Module) -> None:
    """Give every 3x3 convolution of a network its branches, in place.

    The network computes what it did before: what the branches start with is taken off the
    convolutions' own weights, so that weights taken over from a teacher are not blurred by noise.

    The first weights of the branches come from PyTorch's global generator.
    """
    sizes: dict[tuple[int, int], list[nn.Conv2d]] = {}
    for conv in _convolutions(network):
        sizes.setdefault((conv.out_channels, conv.in_channels), []).append(conv)
    network.branches = nn.ModuleList()
    for convs in sizes.values():
        branches = Branches(convs).to(convs[0].weight.device)
        network.branches.append(branches)
        for number, conv in enumerate(convs):
            with torch.no_grad():
                conv.weight -= branches.total(torch.zeros_like(conv.weight), number)
            parametrize.register_parametrization(conv, "weight", _Branched(branches, number))


def fuse(network: nn.Module) -> None:
    """Sum all branches into their convolutions, in place; a network without any stays as it is."""
    for conv in _convolutions(network):
        if parametrize.is_parametrized(conv, "weight"):
            parametrize.remove_parametrizations(conv, "weight", leave_parametrized=True)
    for module in list(network.modules()):
        if isinstance(getattr(module, "branches", None), nn.ModuleList):
            del module.branches


@contextlib.contextmanager
def sum_branches_once(network: nn.Module) -> Iterator[None]:
    """Sum the weights of all branched convolutions at once, for the calls inside."""
    found = [module for module in network.modules() if isinstance(module, Branches)]
    try:
        for branches in found:
            branches.prepare()
        yield
    finally:
        for branches in found:
            branches.ready = None
