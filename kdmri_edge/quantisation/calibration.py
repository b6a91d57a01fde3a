"""Calibration for int8: the largest magnitudes that layers read, channel by channel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdmri_edge.errors import CheckpointError
from kdmri_edge.models.layers import KINDS, Structure
from kdmri_edge.models.network import Network
from kdmri_edge.quantisation.scheme import BELOW, NARROW, PARTS, can_be_parted, image_channels

__all__ = [
    "HIGHEST",
    "LOWEST",
    "activation_maxima",
    "check_magnitudes",
    "layer_of",
    "of_layers",
    "open_layers",
]

HIGHEST, LOWEST = ":highest", ":lowest"
"""What follows a layer's name where the largest values that it writes are meant, and those below
zero, without their sign."""

# The outermost values of a hidden channel are clipped: seven bits of a signed integer are better
# spent on the rest. On brains at 4x (10 slices a volume) the loss by signed int8 fell from 0.08 to
# 0.03 dB, by unsigned from 0.03 to 0.02.
_TAIL = 5e-4
# What an image holds below zero is the aliasing of its mask, which another image may have more of.
_MARGIN = 1.5
_LARGEST_MAGNITUDE = 3.4e38  # of float32, in which graphs hold it
_KEPT = 8192  # largest values of a channel that are held at once: the tail of 16 million


def activation_maxima(
    network: Network, batches: Iterable[tuple[Tensor, ...]], *, values: int | None = None
) -> dict[str, list[float]]:
    """Return the largest magnitude of each channel that each layer reads.

    Of hidden channels the outermost 0.05 % of all values are left out. Images keep theirs. Of
    layers whose output is rounded by itself in some runtimes (`open_layers`), the same is returned
    of what they write, a batch normalisation of it included.

    Args:
        network: A float network, which is run without gradients and in evaluation mode, as it is
            exported: in training it would draw dropout, and batch normalisation would go on
            learning. It is left as it was.
        batches: (normalised zero-filled images [B, C, H, W], operator of data consistency), and
            for networks with coils their sensitivities.
        values: How many values a channel has at most in all batches together; None where that is
            not known. Fewer of them have to be held then.

    Returns:
        By the layer's name, e.g. {"cascades.0.convs.0": [3.2]}; what they write by their names and
        `HIGHEST` or `LOWEST`; how far the image that they read may reach below zero by their names
        and `scheme.BELOW`, half as far again as it did, where that is not as far as above.

    Raises:
        RuntimeError: The network computes a layer without calling it.
    """
    held = _KEPT if values is None else min(_KEPT, int(_TAIL * values) + 1)
    found: dict[str, Tensor] = {}
    seen: Counter[str] = Counter()
    # by layer: how many of its channels, the first ones, keep their largest value
    whole: dict[str, int] = {}
    below: dict[str, float] = {}
    hooks = []
    structure = network.structure()
    for described in structure.layers:
        layer = network.get_submodule(described.name)
        whole[described.name] = 0 if described.rectified else image_channels(described, layer)

        def look(
            module: nn.Module,
            inputs: tuple[Tensor, ...],
            named: dict[str, Any],
            name: str = described.name,
        ) -> None:
            magnitudes = _by_channel(module, inputs[0] if inputs else named["input"]).abs()
            seen[name] += magnitudes[:, 0].numel()
            kept = 1 if whole[name] == magnitudes.shape[1] else held
            found[name] = _largest(found.get(name), magnitudes, kept)
            if whole[name]:
                image = _by_channel(module, inputs[0] if inputs else named["input"])
                low = -float(image[:, : whole[name]].amin())
                below[name + BELOW] = max(below.get(name + BELOW, 0.0), low)

        hooks.append(layer.register_forward_pre_hook(look, with_kwargs=True))
    for name, place in open_layers(network, structure).items():

        def look_behind(module: nn.Module, inputs: object, made: Tensor, name: str = name) -> None:
            values = _by_channel(network.get_submodule(name), made)
            for key, half in ((name + HIGHEST, values), (name + LOWEST, -values)):
                seen[key] += values[:, 0].numel()
                found[key] = _largest(found.get(key), half.clamp_min(0), held)

        whole |= {name + HIGHEST: 0, name + LOWEST: 0}
        hooks.append(network.get_submodule(place).register_forward_hook(look_behind))
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                network(*batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:  # by itself: its parts may be in evaluation for good
            module.training = True
    if unseen := whole.keys() - found.keys():
        raise RuntimeError(f"{min(unseen)} was not called by its network")
    maxima = {}
    for name, largest in found.items():  # in falling order
        outside = min(int(_TAIL * seen[name]), largest.shape[1] - 1)
        image = whole[name]
        chosen = torch.cat((largest[:image, 0], largest[image:, outside]))
        maxima[name] = [float(f"{value:.5g}") for value in chosen]
    for key, low in below.items():
        if _MARGIN * low < max(maxima[layer_of(key)]):
            maxima[key] = [float(f"{_MARGIN * low:.5g}")]
    return maxima


def open_layers(network: Network, structure: Structure) -> dict[str, str]:
    """Return the layers whose output runtimes round by itself, and where it is to be had.

    Integer kernels of convolutions put out integers (ONNX Runtime, PyTorch). Behind a ReLU alone
    these are what the next layer reads; elsewhere the output has a range of its own. What has no
    more channels than an image is left in float, and so is what has an image among its channels.

    Args:
        network: The network.
        structure: Of the network.

    Returns:
        By the layer's name the module whose output is meant: itself, or its batch normalisation.
    """
    handed_on = {name for one in structure.layers for name in (one.follows, one.carried_from)}
    behind = {layer: name for name, layer in structure.normalised.items()}
    found = {}
    for one in structure.layers:
        layer = network.get_submodule(one.name)
        if isinstance(layer, nn.Linear) or one.name in handed_on:
            continue
        if int(layer.out_channels) > NARROW:  # type: ignore[arg-type]
            found[one.name] = behind.get(one.name, one.name)
    return found


def layer_of(key: str) -> str:
    """Return the layer that a key of `activation_maxima` is about."""
    return key.partition(":")[0]


def of_layers(ranges: Mapping[str, float], names: Collection[str]) -> dict[str, float]:
    """Return what is known of some layers, by the keys of `activation_maxima`."""
    return {key: value for key, value in ranges.items() if layer_of(key) in names}


def check_magnitudes(
    network: Network, *, maxima: Mapping[str, object], ranges: Mapping[str, object]
) -> None:
    """Refuse what a checkpoint says of its activations where that is of no use.

    Args:
        network: The network.
        maxima: A list for each key of `activation_maxima`, with a number for each channel.
        ranges: A number for each key, of a network that was trained with rounding; maxima do not
            count then. Of ranges alone it is known how many channels are given in two parts
            (`scheme.PARTS`), which are no more than a convolution reads.

    Raises:
        CheckpointError: A number is none, or negative, or too large for float32, or they are not as
            many as the layer has channels.
    """
    modules = dict(network.named_modules())
    known = ranges or maxima
    for key, held in known.items():
        values = [held] if ranges else held
        layer = modules.get(layer_of(key))
        what = key.removeprefix(layer_of(key))
        count = _channels(layer, what)
        if what == PARTS:
            most = count if count and layer and can_be_parted(layer) else 0
            if not ranges or not _is_magnitude(held) or held not in range(most + 1):
                raise CheckpointError(
                    f"What the checkpoint says of {key!r} is no number of channels that a"
                    " convolution reads.",
                    "Take another precision, or train the network again.",
                )
            continue
        sound = (
            isinstance(values, list)
            and all(_is_magnitude(value) for value in values)
            and (bool(ranges) or len(values) == (count or len(values) or 1))
            and (what != HIGHEST or layer_of(key) + LOWEST in known)
        )
        if not sound:
            raise CheckpointError(
                f"What the checkpoint says of the activations of {key!r} is no"
                f" {'finite number' if ranges else 'list of finite numbers'} from 0 on"
                f"{'' if ranges else ', one for each channel'}.",
                "Take another precision, or train the network again.",
            )


def _is_magnitude(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 <= value <= _LARGEST_MAGNITUDE


def _channels(layer: nn.Module | None, what: str) -> int | None:
    """Return how many channels of a layer something is known of; None where it is no layer."""
    if not isinstance(layer, tuple(KINDS.values())):
        return None
    if what == BELOW:
        return 1
    kind = "features" if isinstance(layer, KINDS["Linear"]) else "channels"
    return int(getattr(layer, f"{'out' if what in (HIGHEST, LOWEST) else 'in'}_{kind}"))


def _by_channel(layer: nn.Module, given: Tensor) -> Tensor:
    """Return what a layer reads as [B, C, H, W], C being what its weights tell apart."""
    given = given.detach()
    if isinstance(layer, nn.Linear):
        return given.reshape(1, -1, given.shape[-1], 1).transpose(1, 2)
    return given if given.dim() == 4 else given[None]


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
