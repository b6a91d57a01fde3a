"""A plain stack of convolutions, the block that DC-CNN and VDSR are made of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdmri_edge.errors import ModelError
from kdmri_edge.models.layers import Layer
from kdmri_edge.models.specs import ModelSpec

__all__ = [
    "ConvStack",
    "channels_last",
    "columns_apart",
    "columns_joined",
    "padded",
    "smaller",
    "sound_gradients",
]

_Module = TypeVar("_Module", bound=nn.Module)


# What tensor cores take at once in half precision.
_AT_ONCE = 8
# Input channels that CPU kernels take at once in bf16.
_BLOCK = 16


class ConvStack(nn.Module):
    """Convolutions with ReLU between them, "same" padding.

    Args:
        spec: Gives number, widths, kernel and dilation of the convolutions.
        cascade: Which cascade's stack it is, from 0.

    Attributes:
        padded: Whether convolutions of fewer channels than a GPU's matrix units take at once are
            computed with zeros for the rest; the same result.
    """

    def __init__(self, spec: ModelSpec, cascade: int = 0) -> None:
        super().__init__()
        self.tap = spec.attention_tap
        self.padded = False
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, spec.kernel, padding=d * (spec.kernel // 2), dilation=d)
            for (i, o), d in zip(spec.widths_of(cascade), spec.dilation_of(cascade), strict=True)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stack's output [B, C, H, W] and the tapped activations [B, width, H, W]."""
        tapped = x
        last = len(self.convs)
        for number, conv in enumerate(self.convs, start=1):
            # not one that rounds as int8 would
            padded = self.padded and isinstance(conv, nn.Conv2d)
            x = _padded(cast(nn.Conv2d, conv), x, _AT_ONCE) if padded else conv(x)
            if number < last:
                x = F.relu(x)
            if number == self.tap:
                tapped = x
        return x, tapped

    def layers(self, name: str) -> list[Layer]:
        """Describe its convolutions.

        Args:
            name: Of the stack within its network.
        """
        names = [f"{name}.convs.{place}" for place in range(len(self.convs))]
        return [
            Layer(name=own, rectified=before is not None, follows=before)
            for before, own in zip([None, *names[:-1]], names, strict=True)
        ]


def smaller(image: Tensor, factor: int) -> Tensor:
    """Return images [B, C, H, W] as [B, C f^2, H / f, W / f] (pixel unshuffle).

    Args:
        image: The images.
        factor: f, a network's `spec.shuffle`.

    Raises:
        ModelError: A side is no multiple of `factor`.
    """
    _check_sides(image, factor)
    return F.pixel_unshuffle(image, factor)


def columns_apart(image: Tensor, factor: int) -> Tensor:
    """Return images [B, C, H, W] as [B f, C, H, W / f], one image for each column of f x f blocks.

    Rows come in the order of their place in a block: first the first rows of all blocks, then the
    second ones. So [B, f C f, H / f, W / f], what convolutions read, is the same memory; channel
    (b C + c) f + a of it holds row a and column b of the blocks of channel c. `smaller` has them in
    the order (c, a, b).

    Args:
        image: The images.
        factor: f, a network's `spec.shuffle`.

    Raises:
        ModelError: A side is no multiple of `factor`.
    """
    _check_sides(image, factor)
    batch, channels, height, width = image.shape
    high, wide = height // factor, width // factor
    blocks = image.reshape(batch, channels, high, factor, wide, factor)
    return blocks.permute(0, 5, 1, 3, 2, 4).reshape(batch * factor, channels, height, wide)


def columns_joined(image: Tensor, factor: int) -> Tensor:
    """Return images [B, C, H, W] of what `columns_apart` makes of them.

    Args:
        image: [B f, C, H, W / f].
        factor: f.
    """
    batch, channels, height, wide = image.shape
    blocks = image.reshape(batch // factor, factor, channels, factor, height // factor, wide)
    joined = blocks.permute(0, 2, 4, 3, 5, 1)
    return joined.reshape(batch // factor, channels, height, wide * factor)


def _check_sides(image: Tensor, factor: int) -> None:
    height, width = image.shape[-2:]
    if height % factor or width % factor:
        raise ModelError(
            f"This network takes images whose sides are multiples of {factor}, not"
            f" {height} x {width}.",
            "Use another network, or another matrix.",
        )


def _padded(conv: nn.Conv2d, x: Tensor, block: int) -> Tensor:
    """Convolve with as many channels as are taken at once, zeros for those that are missing."""
    inputs, outputs = -conv.in_channels % block, -conv.out_channels % block
    if not inputs and not outputs:
        return cast(Tensor, conv(x))
    weight = F.pad(conv.weight, (0, 0, 0, 0, 0, inputs, 0, outputs))
    x = F.pad(x, (0, 0, 0, 0, 0, inputs))
    bias = None if conv.bias is None else F.pad(conv.bias, (0, outputs))
    layout = torch.channels_last
    y = F.conv2d(
        x.contiguous(memory_format=layout),
        weight.contiguous(memory_format=layout),
        bias,
        stride=cast(tuple[int, int], conv.stride),
        padding=cast(tuple[int, int], conv.padding),
        dilation=cast(tuple[int, int], conv.dilation),
    )
    return y[:, : conv.out_channels]


@contextlib.contextmanager
def padded(*networks: nn.Module) -> Iterator[None]:
    """Pad the narrow convolutions of networks inside.

    Not for longer: what looks at a network's convolutions one by one would not see these run.
    """
    stacks = [m for network in networks for m in network.modules() if isinstance(m, ConvStack)]
    for stack in stacks:
        stack.padded = True
    try:
        yield
    finally:
        for stack in stacks:
            stack.padded = False


@contextlib.contextmanager
def sound_gradients(network: nn.Module) -> Iterator[None]:
    """Pad the convolutions inside whose gradient CPUs get wrong in bf16, for training there.

    oneDNN (as of PyTorch 2.14) takes the gradient of a dilated convolution's weights in blocks of
    16 input channels, and fills up the last one, if there are others before it, from memory that
    was never written: 24 channels give gradients that are wrong or not finite.
    """
    found = [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
        and module.groups == 1
        and module.in_channels > _BLOCK
        and module.in_channels % _BLOCK
        and max(module.dilation) > 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    ]
    for conv in found:
        vars(conv)["forward"] = partial(_padded, conv, block=_BLOCK)
    try:
        yield
    finally:
        for conv in found:
            del vars(conv)["forward"]


def channels_last(network: _Module) -> _Module:
    """Lay the weights out channels-last, in place: several times faster convolutions on CPUs."""
    # PyTorch 2.13 and 2.14 do not type this argument alike
    cast(Any, network).to(memory_format=torch.channels_last)
    return network
