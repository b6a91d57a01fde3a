"""Convolutions in integers for TorchScript, by PyTorch's own quantised operators.

What is rounded, and how, is in `kdmri_edge.quantisation.scheme`; the values are those of training
with rounding (`kdmri_edge.quantisation.fake_quantisation`). PyTorch's kernels put out integers
alone, so the last convolution of a stack, whose image would lose too much in eight bits, reads
integers and computes with its rounded weights in float, as ONNX Runtime does. Data consistency and
the cascade's residual stay in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdmri_edge.errors import ExportError
from kdmri_edge.models.blocks import ConvStack
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.quantisation.fake_quantisation import FakeQuantConv, add_fake_quantisation
from kdmri_edge.quantisation.scheme import FINE, LARGEST, TINY

__all__ = ["quantise_convolutions"]

# PyTorch's kernels take unsigned activations alone: signed integers are moved by half their range.
_ZERO_POINT = {"u8": 0, "u8c": 128, "s8": 128}


class _IntegerConv(nn.Module):
    """A convolution and a ReLU from integers to the integers that are read next.

    Args:
        rounded: The convolution.
        step: Of what it puts out.
        zero_point: The same.
    """

    def __init__(self, rounded: FakeQuantConv, step: float, zero_point: int) -> None:
        super().__init__()
        self.packed = _packed(rounded)  # a module's own attribute, or it could not be traced
        self.step, self.zero_point = step, zero_point

    def forward(self, x: Tensor) -> Tensor:
        return cast(
            Tensor,
            torch.ops.quantized.conv2d_relu(x, self.packed, self.step, self.zero_point),
        )


class _IntegerStack(nn.Module):
    """A stack of convolutions that hand integers to each other.

    Args:
        stack: Of `FakeQuantConv`.
    """

    def __init__(self, stack: ConvStack) -> None:
        super().__init__()
        convs = [cast(FakeQuantConv, conv) for conv in stack.convs]
        self.image = convs[0].image
        self.steps = [max(conv.largest, TINY) / LARGEST[conv.kind] for conv in convs]
        self.zero_points = [_ZERO_POINT[conv.kind] for conv in convs]
        self.convs = nn.ModuleList(
            _IntegerConv(conv, step, point)
            for conv, step, point in zip(convs, self.steps[1:], self.zero_points[1:], strict=False)
        )
        last = convs[-1]
        self.last = copy.deepcopy(last.conv)
        with torch.no_grad():
            self.last.weight = nn.Parameter(last.weight())

    def _integers(self, x: Tensor, place: int) -> Tensor:
        return torch.quantize_per_tensor(
            x, self.steps[place], self.zero_points[place], torch.quint8
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        given = x
        if self.image:
            coarse = self._integers(x, 0).dequantize()
            x = torch.cat((coarse, FINE * (x - coarse)), 1)
        x = self._integers(x, 0)
        for conv in self.convs:
            x = conv(x)
        return self.last(x.dequantize()), given


def _packed(rounded: FakeQuantConv) -> Any:
    """Return weights and bias as the kernels take them."""
    weight = rounded.weight().detach()
    step = weight.abs().amax((1, 2, 3)).clamp_min(TINY).double() / LARGEST["s8"]
    points = torch.zeros(len(weight), dtype=torch.long)
    integers = torch.quantize_per_channel(weight, step, points, 0, torch.qint8)
    conv = rounded.conv
    return torch.ops.quantized.conv2d_prepack(
        integers, conv.bias, list(conv.stride), list(cast(tuple[int, int], conv.padding)),
        list(conv.dilation), conv.groups,
    )  # fmt: skip


def quantise_convolutions(reconstructor: Reconstructor, ranges: Mapping[str, float]) -> None:
    """Let the convolutions of a network compute in integers, in place.

    Args:
        reconstructor: A network of equalised weights (`quantisation.equalisation`).
        ranges: Largest magnitude that each of its convolutions reads, by its name.

    Raises:
        ExportError: The range of a convolution is missing.
    """
    try:
        add_fake_quantisation(reconstructor.model, ranges, unsigned=True)
    except KeyError as missing:
        raise ExportError(
            f"What convolution {missing.args[0]!r} reads is not known.",
            "The activation maxima belong to another network; export in another precision.",
        ) from missing
    for module in list(reconstructor.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ConvStack):
                setattr(module, name, _IntegerStack(child))
