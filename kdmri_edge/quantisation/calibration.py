"""What convolutions read, for the steps of their integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from kdmri_edge.models.network import Network
from kdmri_edge.quantisation.scheme import reads_image

__all__ = ["activation_maxima"]

# The outermost values of a hidden channel are clipped: seven bits of a signed integer are better
# spent on the rest. On brains at 4x (10 slices a volume) the loss by signed int8 fell from 0.08 to
# 0.03 dB, by unsigned from 0.03 to 0.02.
_TAIL = 5e-4
_KEPT = 8192  # largest values of a channel that are held at once: the tail of 16 million


def activation_maxima(
    network: Network, batches: Iterable[tuple[Tensor, ...]]
) -> dict[str, list[float]]:
    """Return the largest magnitude of each channel that each convolution reads.

    Of hidden channels the outermost 0.05 % of all values are left out. Images keep theirs.

    Args:
        network: A float network, which is run without gradients.
        batches: (normalised zero-filled images [B, C, H, W], operator of data consistency), and
            for networks with coils their sensitivities.

    Returns:
        By the convolution's name, e.g. {"cascades.0.convs.0": [3.2]}.

    Raises:
        RuntimeError: The network computes a convolution without calling it.
    """
    found: dict[str, Tensor] = {}
    seen: Counter[str] = Counter()
    hidden: dict[str, bool] = {}
    hooks = []
    for described in network.convolutions():
        conv = cast(nn.Conv2d, network.get_submodule(described.name))
        hidden[described.name] = described.rectified or not reads_image(conv.in_channels)

        def look(module: nn.Module, given: tuple[Tensor], name: str = described.name) -> None:
            values = given[0].detach().abs().transpose(0, 1).flatten(1)
            seen[name] += values.shape[1]
            if name in found:
                values = torch.cat((found[name], values), 1)
            kept = _KEPT if hidden[name] else 1
            found[name] = torch.topk(values, min(kept, values.shape[1]), 1).values

        hooks.append(conv.register_forward_pre_hook(look))
    try:
        with torch.no_grad():
            for given in batches:
                network(*given)
    finally:
        for hook in hooks:
            hook.remove()
    if unseen := hidden.keys() - found.keys():
        raise RuntimeError(f"{min(unseen)} was not called by its network")
    maxima = {}
    for name, largest in found.items():  # in falling order
        outside = int(_TAIL * seen[name]) if hidden[name] else 0
        chosen = largest[:, min(outside, largest.shape[1] - 1)]
        maxima[name] = [float(f"{value:.5g}") for value in chosen]
    return maxima
