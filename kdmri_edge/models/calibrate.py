"""What convolutions read, for the steps of their integers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kdmri_edge.models.build import Network
from kdmri_edge.models.stack import ConvStack

__all__ = ["activation_ranges"]


def activation_ranges(
    network: Network, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Return the largest magnitude that each convolution reads, but for the first of a cascade.

    The first one reads the image itself, of which 8 bits are too few: in a trial on brains at 4x it
    cost nearly all that quantisation cost, at three per cent of the arithmetic.

    Args:
        network: A float network, which is run without gradients.
        batches: (normalised zero-filled images [B, C, H, W], operator of data consistency).

    Returns:
        By the convolution's name, e.g. {"cascades.0.convs.1": 3.2}.
    """
    found: dict[str, float] = {}
    hooks = []
    for stack_name, stack in network.named_modules():
        if not isinstance(stack, ConvStack):
            continue
        for place, conv in enumerate(stack.convs[1:], start=1):

            def look(
                module: nn.Module, given: tuple[Tensor], name: str = f"{stack_name}.convs.{place}"
            ) -> None:
                found[name] = max(found.get(name, 0.0), float(given[0].detach().abs().max()))

            hooks.append(conv.register_forward_pre_hook(look))
    try:
        with torch.no_grad():
            for x_u, operator in batches:
                network(x_u, operator)
    finally:
        for hook in hooks:
            hook.remove()
    return found
