"""What convolutions read, for the steps of their integers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kdmri_edge.models.build import Network
from kdmri_edge.models.stack import ConvStack

__all__ = ["activation_maxima"]


def activation_maxima(
    network: Network, batches: Iterable[tuple[Tensor, ...]]
) -> dict[str, list[float]]:
    """Return the largest magnitude of each channel that each convolution reads.

    Args:
        network: A float network, which is run without gradients.
        batches: (normalised zero-filled images [B, C, H, W], operator of data consistency), and
            for networks with coils their sensitivities.

    Returns:
        By the convolution's name, e.g. {"cascades.0.convs.0": [3.2]}.
    """
    found: dict[str, Tensor] = {}
    hooks = []
    for stack_name, stack in network.named_modules():
        if not isinstance(stack, ConvStack):
            continue
        for place, conv in enumerate(stack.convs):

            def look(
                module: nn.Module, given: tuple[Tensor], name: str = f"{stack_name}.convs.{place}"
            ) -> None:
                largest = given[0].detach().abs().amax((0, 2, 3))
                found[name] = torch.maximum(found.get(name, largest), largest)

            hooks.append(conv.register_forward_pre_hook(look))
    try:
        with torch.no_grad():
            for given in batches:
                network(*given)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: [float(f"{value:.5g}") for value in largest] for name, largest in found.items()}
