"""A running average of a network's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["Average"]


class Average:
    """Exponential moving average of all parameters, from the weights that it starts with.

    Args:
        network: What is averaged.
        decay: Part of the average that a step keeps, below 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._parameters = dict(network.named_parameters())
        self._decay = decay
        self.values = {name: p.detach().clone() for name, p in self._parameters.items()}

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from saved values.

        Raises:
            KeyError: A parameter's is missing.
        """
        for name, own in self.values.items():
            own.copy_(values[name])

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        torch._foreach_lerp_(
            list(self.values.values()), list(self._parameters.values()), 1 - self._decay
        )

    @torch.no_grad()
    def apply(self) -> None:
        """Give the network its average."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.values[name])
