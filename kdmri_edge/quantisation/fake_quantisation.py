"""Training with the rounding of int8 exports: quantisation-aware, with learned ranges.

Every convolution computes with rounded weights and rounded inputs, exactly as the exported graph
will (`quantisation.scheme`). Gradients pass through the rounding as if it were not there, and the
ranges of what convolutions read are learned (LSQ, Esser et al., ICLR 2020, eq. 3; here their
logarithm).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from kdmri_edge.models.convolutions import replace_module
from kdmri_edge.models.network import Network
from kdmri_edge.quantisation.scheme import (
    BOUNDS,
    FINE,
    LARGEST,
    TINY,
    activation_kind,
    reads_image,
    taken_apart,
)

__all__ = ["FakeQuantConv", "add_fake_quantisation", "remove_fake_quantisation"]

_GEAR = 50
"""Optimisers turn a range so many times as fast as a weight: Adam moves both by its learning rate,
which for weights of a trained network is small, while ranges may have to shrink by a third."""


def _nearest(value: Tensor) -> Tensor:
    """Round, half to even as QuantizeLinear does; the gradient passes."""
    return value + (torch.round(value) - value).detach()


class FakeQuantConv(nn.Module):
    """A convolution that computes with the values that its int8 export will have.

    Args:
        conv: The float convolution; it stays a part of this one, and learns.
        largest: Largest magnitude of what it reads, to start from.
        rectified: It reads the output of a ReLU.
        unsigned: Round as for CPUs, else as for TensorRT.
    """

    def __init__(self, conv: nn.Conv2d, largest: float, *, rectified: bool, unsigned: bool) -> None:
        super().__init__()
        self.conv = conv
        self.log_range = nn.Parameter(torch.tensor(math.log(max(largest, TINY)) / _GEAR))
        self.image = reads_image(conv.in_channels, conv.groups)
        self.kind = activation_kind(image=self.image, rectified=rectified, unsigned=unsigned)
        self.by_tap = unsigned and taken_apart(conv)

    @property
    def largest(self) -> float:
        """Largest magnitude of what it reads, as learned."""
        return float(self._range().detach())

    def _range(self) -> Tensor:
        return (_GEAR * self.log_range).exp()

    def _rounded(self, x: Tensor) -> Tensor:
        step = self._range() / LARGEST[self.kind]
        # A range meets the gradients of all pixels: scaled down as in LSQ, section 2.2.
        part = 1 / math.sqrt(x.numel() / len(x) * LARGEST[self.kind])
        step = step * part + (step * (1 - part)).detach()
        return _nearest(torch.clamp(x / step, *BOUNDS[self.kind])) * step

    def weight(self) -> Tensor:
        """Return the rounded weight; of convolutions that read an image, for both of its parts."""
        weight = self.conv.weight
        if self.image:
            weight = torch.cat((weight, weight / FINE), 1)
        axes = (1,) if self.by_tap else (1, 2, 3)
        limit = LARGEST["s8"]
        step = weight.detach().abs().amax(axes, keepdim=True).clamp_min(TINY) / limit
        return _nearest(torch.clamp(weight / step, -limit, limit)) * step

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [B, I, H, W] to [B, O, H, W], in float32: bf16 would round once more."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if self.image:
                coarse = self._rounded(x)
                x = torch.cat((coarse, FINE * (x - coarse)), 1)
            return cast(
                Tensor, self.conv._conv_forward(self._rounded(x), self.weight(), self.conv.bias)
            )


def add_fake_quantisation(network: Network, ranges: Mapping[str, float], *, unsigned: bool) -> None:
    """Let all convolutions of a network compute with rounded values, in place.

    Args:
        network: An equalised network (`quantisation.equalisation`).
        ranges: Largest magnitude that each convolution reads, by its name.
        unsigned: Round as for CPUs, else as for TensorRT.
    """
    for described in network.convolutions():
        name = described.name
        conv = cast(nn.Conv2d, network.get_submodule(name))
        rounded = FakeQuantConv(
            conv, ranges[name], rectified=described.rectified, unsigned=unsigned
        )
        replace_module(network, name, rounded)


def remove_fake_quantisation(network: Network) -> dict[str, float]:
    """Give a network its float convolutions back, in place; return the ranges that were learned."""
    rounded = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, FakeQuantConv)
    }
    for name, module in rounded.items():
        replace_module(network, name, module.conv)
    return {name: module.largest for name, module in rounded.items()}
