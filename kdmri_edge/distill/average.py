"""A running average of a network's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

__all__ = ["Average"]


# What counts the updates among the saved values; the names of weights have dots.
_COUNT = "updates"


class Average:
    """Exponential moving average of all parameters.

    Its first updates forget faster, by (1 + n) / (10 + n) at the n-th, or the first weights would
    weigh in for as long as the average remembers.

    Args:
        network: What is averaged.
        decay: Part of the average that a later step keeps, below 1.

    Attributes:
        values: The average by the parameters' names, and the number of updates.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._parameters = dict(network.named_parameters())
        self._decay = decay
        self.values = {name: p.detach().clone() for name, p in self._parameters.items()}
        device = next(iter(self.values.values())).device
        self.values[_COUNT] = torch.zeros((), device=device)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from saved values.

        Raises:
            KeyError: A parameter's is missing.
        """
        for name, own in self.values.items():
            own.copy_(values[name])

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now, without waiting for the device."""
        count = self.values[_COUNT]
        # A tensor, so that a recorded update goes on counting.
        share = 1 - torch.clamp((1 + count) / (10 + count), max=self._decay)
        averages = [self.values[name] for name in self._parameters]
        steps = torch._foreach_sub(list(self._parameters.values()), averages)
        torch._foreach_mul_(steps, share)
        torch._foreach_add_(averages, steps)
        count += 1

    def apply(self) -> None:
        """Give the network its average."""
        self._give(self.values)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let the network be its average, inside."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.apply()
        try:
            yield
        finally:
            self._give(own)

    @torch.no_grad()
    def _give(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
