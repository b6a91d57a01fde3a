"""Training with the rounding of int8 exports: quantisation-aware, with learned ranges.

Every layer computes with rounded weights and rounded inputs, exactly as the exported graph
will (`quantisation.scheme`). Gradients pass through the rounding as if it were not there, and the
ranges of what layers read are learned (LSQ, Esser et al., ICLR 2020, eq. 3; here their
logarithm). Hidden channels that one layer hands on to one other may learn a factor each: a range of
their own, at no cost, since the factor becomes a part of the weights on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kdmri_edge.models.layers import Weighted, Wrapped, replace_module
from kdmri_edge.models.network import Network
from kdmri_edge.quantisation.equalisation import for_last, handed_on
from kdmri_edge.quantisation.scheme import (
    BELOW,
    FINE,
    LARGEST,
    PARTS,
    TINY,
    activation_kind,
    grid,
    image_channels,
    split_channels,
    taken_apart,
    writes_blocks,
)

__all__ = ["FakeQuantLayer", "add_fake_quantisation", "remove_fake_quantisation"]

_GEAR = 50
"""Optimisers turn a range so many times as fast as a weight: Adam moves both by its learning rate,
which for weights of a trained network is small, while ranges may have to shrink by a third."""


def _nearest(value: Tensor) -> Tensor:
    """Round, half to even as QuantizeLinear does; the gradient passes."""
    return value + (torch.round(value) - value).detach()


class FakeQuantLayer(Wrapped):
    """A layer that computes with the values that its int8 export will have.

    Args:
        layer: The float layer; it stays a part of this one, and learns.
        largest: Largest magnitude of what it reads, to start from.
        image: How many channels of that, the first ones, are an image's.
        parts: How many of them, the first ones, it is given in two parts; None for an image's.
        rectified: It reads the output of a ReLU.
        unsigned: Round as for CPUs, else as for TensorRT.
        below: How far below zero an image's values reach; None for as far as above.
        hidden: How many of the channels that it reads, the last ones, learn a factor each, which
            becomes a part of the weights (`equalisation.HandedOn.rescale`); 0 for none.
    """

    def __init__(
        self,
        layer: Weighted,
        largest: float,
        *,
        image: int = 0,
        parts: int | None = None,
        rectified: bool,
        unsigned: bool,
        below: float | None = None,
        hidden: int = 0,
    ) -> None:
        super().__init__(layer)
        self.log_range = nn.Parameter(torch.tensor(math.log(max(largest, TINY)) / _GEAR))
        self.log_factors = nn.Parameter(torch.zeros(hidden)) if hidden else None
        self.image = image
        self.parts = image if parts is None else parts
        self.kind = activation_kind(parted=self.parts > 0, rectified=rectified, unsigned=unsigned)
        self.grid = grid(self.kind, largest, below)
        self.below_known = below is not None and self.kind == "u8c"
        self.axes = _axes(layer, unsigned=unsigned)

    @property
    def largest(self) -> float:
        """Largest magnitude of what it reads, as learned."""
        return float(self._range().detach())

    @property
    def below(self) -> float | None:
        """How far below zero that reaches; None for as far as above."""
        if not self.below_known:
            return None
        return -self.largest * self.grid.lowest / self.grid.highest

    @property
    def factors(self) -> Tensor | None:
        """What the last channels that it reads are divided by before they are rounded, [hidden]."""
        return None if self.log_factors is None else (_GEAR * self.log_factors).exp()

    def _range(self) -> Tensor:
        return (_GEAR * self.log_range).exp()

    def _rounded(self, x: Tensor) -> Tensor:
        step = self._range() / self.grid.highest
        # A range meets the gradients of all pixels: scaled down as in LSQ, section 2.2.
        part = 1 / math.sqrt(x.numel() / len(x) * self.grid.highest)
        step = step * part + (step * (1 - part)).detach()
        return _nearest(torch.clamp(x / step, *self.grid)) * step

    def rounded_weight(self) -> Tensor:
        """Return the rounded weight, [out, in + parts, ...] of a convolution.

        That is of the channels in two parts, of what rounding takes away from them, of the others.
        """
        weight, factors = cast(Tensor, self.conv.weight), self.factors
        if factors is not None:
            into = 0 if isinstance(self.conv, nn.ConvTranspose2d) else 1
            weight = weight * for_last(factors, into, weight)
        if self.parts:
            own, others = weight[:, : self.parts], weight[:, self.parts :]
            weight = torch.cat((own, own / FINE, others), 1)
        limit = LARGEST["s8"]
        step = weight.detach().abs().amax(self.axes, keepdim=True).clamp_min(TINY) / limit
        return _nearest(torch.clamp(weight / step, -limit, limit)) * step

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute what the layer does, in float32: bf16 would round once more."""
        with torch.autocast(input.device.type, enabled=False):
            x, factors = input.float(), self.factors
            if factors is not None:
                channels = x.dim() - 1 if isinstance(self.conv, nn.Linear) else 1
                x = x / for_last(factors, channels, x)
            if self.parts:
                own, others = x[:, : self.parts], x[:, self.parts :]
                coarse = self._rounded(own)
                x = torch.cat((coarse, FINE * (own - coarse), others), 1)
            x, weight = self._rounded(x), self.rounded_weight()
            if isinstance(self.conv, nn.Conv2d):  # whose weight may be for more channels
                return cast(Tensor, self.conv._conv_forward(x, weight, self.conv.bias))
            return cast(
                Tensor, functional_call(self.conv, {"weight": weight}, (x, *args), dict(kwargs))
            )


def _axes(layer: Weighted, *, unsigned: bool) -> tuple[int, ...]:
    """Return the axes of a weight that share a step."""
    if isinstance(layer, nn.Linear):
        return (1,)
    if isinstance(layer, nn.ConvTranspose2d):
        return (0,) if writes_blocks(layer) else (0, 2, 3)
    return (1,) if unsigned and taken_apart(layer) else (1, 2, 3)


def add_fake_quantisation(
    network: Network, ranges: Mapping[str, float], *, unsigned: bool, factors: bool = False
) -> None:
    """Let the layers of a network compute with rounded values, in place.

    Args:
        network: An equalised network (`quantisation.equalisation`).
        ranges: Largest magnitude that each layer reads, by its name; with `BELOW` how far an image
            reaches below zero, where that is known, and with `PARTS` how many channels are given
            in two parts, where it is not an image's alone. Layers without a range, and those whose
            weight is used elsewhere, too, or computed, stay as they are.
        unsigned: Round as for CPUs, else as for TensorRT.
        factors: Let hidden channels learn a factor each before they are rounded.
    """
    links = handed_on(network) if factors else ()
    hidden = {one.reads: one.count for one in links if one.rectified}
    for described in network.layers():
        name = described.name
        layer = cast(Weighted, network.get_submodule(name))
        if name not in ranges or described.tied or not isinstance(layer.weight, nn.Parameter):
            continue
        image = image_channels(described, layer)
        rounded = FakeQuantLayer(
            layer,
            ranges[name],
            image=image,
            parts=split_channels(ranges, name, image),
            rectified=described.rectified,
            unsigned=unsigned,
            below=ranges.get(name + BELOW),
            hidden=hidden.get(name, 0),
        )
        replace_module(network, name, rounded)


def remove_fake_quantisation(network: Network) -> dict[str, float]:
    """Give a network its float layers back, in place; return the ranges that were learned.

    Factors that were learned become a part of the weights.
    """
    rounded = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, FakeQuantLayer)
    }
    for name, module in rounded.items():
        replace_module(network, name, module.conv)
    # Not before: layers that are wrapped are none that tracing a network finds.
    links = {one.reads: one for one in handed_on(network)}
    for name, module in rounded.items():
        if module.factors is not None:
            links[name].rescale(network, module.factors.detach())
    largest = {name: module.largest for name, module in rounded.items()}
    below = {name + BELOW: module.below for name, module in rounded.items()}
    parts = {
        name + PARTS: float(module.parts)
        for name, module in rounded.items()
        if module.parts != module.image
    }
    return largest | parts | {key: value for key, value in below.items() if value is not None}
