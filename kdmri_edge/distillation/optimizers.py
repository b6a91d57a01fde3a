"""What makes a step of the gradients: Adam, or Muon.

Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) takes the
momentum of a matrix of weights and moves all of its directions by the same amount: of its singular
value decomposition U S V^T it keeps U V^T. Adam moves every weight by about the same amount, and so
follows the few directions in which the gradients are large. PyTorch's own `torch.optim.Muon` takes
matrices alone, and rounds them to bfloat16; here the weights of a convolution are a matrix of its
outputs by all that they read, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from kdmri_edge.distillation.recipe import Optimizer
from kdmri_edge.models.reparameterisation import Branches

__all__ = ["Muon", "orthogonalised", "over"]

# The quintic of Jordan et al.: five steps bring singular values from 0.003 on to between 0.7 and
# 1.2, which serves as well as 1.
_QUINTIC: Final = (3.4445, -4.7750, 2.0315)
_STEPS: Final = 5
_MOMENTUM: Final = 0.95
# Norm below which a matrix counts as zero, and its step shrinks with it, as of Jordan et al.: what
# is left of the momentum of a layer that has died is no direction to follow.
_LEAST: Final = 1e-7
# Root mean square of a step over the rate, about that of Adam's (Liu et al., "Muon is scalable for
# LLM training", 2025, eq. 4): so the same schedule serves both.
_SIZE: Final = 0.2


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return about U V^T of matrices U S V^T.

    Args:
        matrices: float32 [N, rows, columns].

    Returns:
        The same shape; towards zero for matrices whose norm is below 1e-7.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=_LEAST)
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.mT if tall else x


class _Held(NamedTuple):
    """A parameter that holds one matrix, or several of the same size."""

    parameter: nn.Parameter
    shape: tuple[int, int, int]


def _matrices(network: nn.Module) -> Iterator[_Held]:
    """Yield the parameters that are matrices: not scales, biases, tables, or complex numbers."""
    for module in network.modules():
        if isinstance(module, (nn.LayerNorm, nn.Embedding)):
            continue
        for parameter in module.parameters(recurse=False):
            many = len(parameter) if isinstance(module, Branches) else 1
            sides = parameter.shape[1:] if isinstance(module, Branches) else parameter.shape
            if len(sides) < 2 or parameter.is_complex():
                continue
            rows, columns = sides[0], math.prod(sides[1:])
            if rows > 1 and columns > 1:
                yield _Held(parameter, (many, rows, columns))


class Muon(torch.optim.Adam):
    """Muon on the matrices of a network, Adam on all else.

    Args:
        network: Whose parameters are optimised. Convolutions of O outputs and I inputs are matrices
            of O rows and I times the kernel's size columns.
        lr: Learning rate, of both: a step has a root mean square of 0.2 of it in every matrix.
        **options: Of `torch.optim.Adam`.
    """

    def __init__(self, network: nn.Module, lr: float, **options: Any) -> None:
        super().__init__(network.parameters(), lr=lr, **options)
        sizes: dict[tuple[int, int], list[_Held]] = {}
        for held in {one.parameter: one for one in _matrices(network)}.values():
            sizes.setdefault(held.shape[1:], []).append(held)
        self._sizes = list(sizes.values())

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the matrices by Muon, then all else by Adam; the matrices' gradients are dropped.

        Args:
            closure: Unused: the gradients are those that the parameters have.
        """
        (group,) = self.param_groups
        for alike in self._sizes:
            self._move([one for one in alike if one.parameter.grad is not None], group["lr"])
        return super().step()

    @torch.no_grad()
    def _move(self, alike: list[_Held], rate: float | Tensor) -> None:
        """Move matrices of one size, all in one go: on a GPU, to start many takes its time."""
        if not alike:
            return
        wanted = [self._momentum(one).reshape(one.shape) for one in alike]
        made = orthogonalised(torch.cat(wanted))
        made = made * (-_SIZE * math.sqrt(max(made.shape[-2:])) * rate)
        steps = torch.split(made, [one.shape[0] for one in alike])
        for one, step in zip(alike, steps, strict=True):
            one.parameter.add_(step.reshape(one.parameter.shape))
            one.parameter.grad = None  # Adam passes by what has none

    def _momentum(self, one: _Held) -> Tensor:
        parameter, gradient = one.parameter, one.parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            # Adam looks for its count in all that is loaded.
            state["step"] = torch.zeros(())
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        momentum.mul_(_MOMENTUM).add_(gradient)
        return gradient + _MOMENTUM * momentum  # Nesterov's


def over(
    network: nn.Module, optimizer: Optimizer, rate: float, *, recorded: bool = False
) -> torch.optim.Optimizer:
    """Return an optimiser of a network's parameters.

    Args:
        network: Whose parameters are optimised, where they are.
        optimizer: Which.
        rate: Its first learning rate.
        recorded: Whether a GPU takes its steps alone, from a recording.
    """
    alone = {"fused": True, "capturable": True} if recorded else {}
    if optimizer is Optimizer.MUON:
        return Muon(network, rate, **alone)
    return torch.optim.Adam(network.parameters(), lr=rate, **alone)  # type: ignore[arg-type]
