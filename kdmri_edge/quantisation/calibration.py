"""Calibration for int8: the largest magnitudes that convolutions read, channel by channel."""

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
    network: Network, batches: Iterable[tuple[Tensor, ...]], *, values: int | None = None
) -> dict[str, list[float]]:
    """Return the largest magnitude of each channel that each convolution reads.

    Of hidden channels the outermost 0.05 % of all values are left out. Images keep theirs.

    Args:
        network: A float network, which is run without gradients.
        batches: (normalised zero-filled images [B, C, H, W], operator of data consistency), and
            for networks with coils their sensitivities.
        values: How many values a channel has at most in all batches together; None where that is
            not known. Fewer of them have to be held then.

    Returns:
        By the convolution's name, e.g. {"cascades.0.convs.0": [3.2]}.

    Raises:
        RuntimeError: The network computes a convolution without calling it.
    """
    held = _KEPT if values is None else min(_KEPT, int(_TAIL * values) + 1)
    found: dict[str, Tensor] = {}
    seen: Counter[str] = Counter()
    hidden: dict[str, bool] = {}
    hooks = []
    for described in network.convolutions():
        conv = cast(nn.Conv2d, network.get_submodule(described.name))
        hidden[described.name] = described.rectified or not reads_image(conv.in_channels)

        def look(module: nn.Module, inputs: tuple[Tensor], name: str = described.name) -> None:
            magnitudes = inputs[0].detach().abs()
            seen[name] += magnitudes[:, 0].numel()
            found[name] = _largest(found.get(name), magnitudes, held if hidden[name] else 1)

        hooks.append(conv.register_forward_pre_hook(look))
    try:
        with torch.no_grad():
            for batch in batches:
                network(*batch)
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


def _largest(found: Tensor | None, values: Tensor, kept: int) -> Tensor:
    """Return the largest values of each channel, of those found before and of new ones.

    Args:
        found: [C, n], in falling order; None where there are none yet.
        values: [B, C, H, W], not negative.
        kept: How many to return, or all if there are fewer.
    """
    if found is None and len(values) > 1:
        # What one image holds tells which few values of the others to look at.
        found, values = _largest(None, values[:1], kept), values[1:]
    if found is not None and found.shape[1] == kept:
        fresh = _above(values, found[:, -1])
    else:
        fresh = values.transpose(0, 1).flatten(1)
    if found is not None:
        fresh = torch.cat((found, fresh), 1)
    return torch.topk(fresh, min(kept, fresh.shape[1]), 1).values


def _above(values: Tensor, threshold: Tensor) -> Tensor:
    """Return the values of each channel above a threshold [C], filled up with -1: [C, most].

    Of millions of values few are still among the largest. They are looked for in the order in which
    channels-last images lie in memory: to gather each channel's values first takes as long as the
    convolution.
    """
    rows = values.permute(0, 2, 3, 1).reshape(-1, len(threshold))
    # Not `>`, which would lose values that are not numbers.
    places = (rows <= threshold).bitwise_not_().flatten().nonzero().flatten()
    chosen = rows.flatten()[places]
    channel, order = (places % len(threshold)).sort()
    counts = torch.bincount(channel, minlength=len(threshold))
    column = torch.arange(len(channel), device=values.device) - (counts.cumsum(0) - counts)[channel]
    fresh = values.new_full((len(threshold), int(counts.max())), -1.0)
    fresh[channel, column] = chosen[order]
    return fresh
