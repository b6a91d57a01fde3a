"""Convolutions with one or two output channels, in a form that CPUs compute several times faster.

CPU kernels compute output channels in blocks of 8 or 16, so the last convolution of a cascade
(32 -> 1 channel) does the work of 32 -> 16: a third of the student's time in ONNX Runtime and
OpenVINO at float32. Its nine taps are instead taken as output channels of a 1x1 convolution, each
is shifted to its place (a depthwise convolution with a single 1 per kernel), and they are added up.
The sums are the same, in another order.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdmri_edge.models.layers import is_convolution
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.quantisation.scheme import taken_apart

__all__ = ["NarrowConv", "decompose_narrow_convs"]


class NarrowConv(nn.Module):
    """A convolution taken apart into taps, shifts and a sum.

    Args:
        conv: A square convolution with zero padding, one group and one dilation.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        outputs, inputs, side, _ = conv.weight.shape
        taps = side * side
        self.outputs, self.dilation = outputs, conv.dilation[0]
        self.padding = cast(tuple[int, int], conv.padding)
        self.stride = cast(tuple[int, int], conv.stride)
        weight = conv.weight.detach().permute(0, 2, 3, 1).reshape(outputs * taps, inputs, 1, 1)
        self.weight = nn.Parameter(weight.contiguous())
        # Given to one tap of each output, the bias needs no addition of its own.
        bias = weight.new_zeros(outputs, taps)
        if conv.bias is not None:
            bias[:, 0] = conv.bias.detach()
        self.bias = nn.Parameter(bias.flatten())
        shifts = (
            torch.eye(taps, dtype=weight.dtype)
            .reshape(taps, 1, side, side)
            .repeat(outputs, 1, 1, 1)
        )
        self.register_buffer("shifts", shifts)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: [B, I, H, W] to [B, O, H, W]."""
        taps = F.conv2d(x, self.weight)
        shifts = cast(Tensor, self.shifts)
        moved = F.conv2d(
            taps, shifts, self.bias, self.stride, self.padding, self.dilation, groups=len(shifts)
        )
        if self.outputs == 1:  # a Split into one part would be a node of its own
            return moved.sum(1, keepdim=True)
        parts = torch.chunk(moved, self.outputs, dim=1)
        return torch.cat([part.sum(1, keepdim=True) for part in parts], 1)


def decompose_narrow_convs(reconstructor: Reconstructor) -> None:
    """Replace the narrow convolutions of a network, in place."""
    for module in list(reconstructor.modules()):
        for name, child in module.named_children():
            hooked = child._forward_hooks or child._forward_pre_hooks  # would be lost
            if is_convolution(child) and taken_apart(child) and not hooked:
                setattr(module, name, NarrowConv(child))
