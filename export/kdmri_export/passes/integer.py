"""Convolutions in integers for TorchScript, by PyTorch's own quantised operators.

What is rounded, and how, is in `kdmri_edge.quantisation.scheme`; the values are those of training
with rounding (`kdmri_edge.quantisation.fake_quantisation`). PyTorch's kernels put out integers
alone, so a convolution whose output is not read by one other alone, behind a ReLU, such as the last
one before an image that would lose too much in eight bits, reads integers and computes with its
rounded weights in float, as ONNX Runtime does. Everything else stays in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdmri_edge.models.layers import RECTIFIERS, Wrapped, replace_module
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.quantisation.calibration import of_layers
from kdmri_edge.quantisation.fake_quantisation import FakeQuantLayer, add_fake_quantisation
from kdmri_edge.quantisation.scheme import FINE, LARGEST, TINY
from kdmri_export.passes.quantise import choose_quantised
from kdmri_export.transformed import Transformed

__all__ = ["RectifiedIntegers", "quantise_convolutions"]

_IN_FLOAT = "PyTorch's integer kernels need another convolution behind it, by way of a ReLU alone"
_BEFORE_PARTS = "what it puts out is read in two parts"


class _Reader(nn.Module):
    """What a layer in integers reads.

    Args:
        rounded: The layer.
        given: It is given its integers, by the convolution that it follows.
    """

    def __init__(self, rounded: FakeQuantLayer, *, given: bool) -> None:
        super().__init__()
        self.given, self.parts = given, rounded.parts
        self.step = max(rounded.largest, TINY) / rounded.grid.highest
        # PyTorch's kernels take unsigned activations alone: signed ones are moved up.
        self.zero_point = -rounded.grid.lowest

    def _rounded(self, x: Tensor) -> Tensor:
        return torch.quantize_per_tensor(x, self.step, self.zero_point, torch.quint8)

    def forward(self, x: Tensor) -> Tensor:
        """Return the integers."""
        if self.given:
            return x
        if self.parts:
            own, others = x[:, : self.parts], x[:, self.parts :]
            coarse = self._rounded(own).dequantize()
            x = torch.cat((coarse, FINE * (own - coarse), others), 1)
        return self._rounded(x)


class _IntegerConv(nn.Module):
    """A convolution and the ReLU behind it, to the integers that are read next.

    Args:
        rounded: The convolution.
        given: See `_Reader`.
        next_one: What reads its integers.
    """

    def __init__(self, rounded: FakeQuantLayer, next_one: _Reader, *, given: bool) -> None:
        super().__init__()
        self.reader = _Reader(rounded, given=given)
        self.packed = _packed(rounded)  # a module's own attribute, or it could not be traced
        self.step, self.zero_point = next_one.step, next_one.zero_point

    def forward(self, x: Tensor) -> Tensor:
        return cast(
            Tensor,
            torch.ops.quantized.conv2d_relu(
                self.reader(x), self.packed, self.step, self.zero_point
            ),
        )


class _RoundedLayer(Wrapped):
    """A layer that reads integers and computes with its rounded weights in float.

    Args:
        rounded: The layer.
        given: See `_Reader`.
    """

    def __init__(self, rounded: FakeQuantLayer, *, given: bool) -> None:
        super().__init__(copy.deepcopy(rounded.conv))
        self.reader = _Reader(rounded, given=given)
        weight = rounded.rounded_weight().detach()
        if isinstance(self.conv, nn.Conv2d):  # of what it reads in two parts
            self.conv.in_channels = weight.shape[1] * self.conv.groups
        self.conv.weight = nn.Parameter(weight)

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return cast(Tensor, self.conv(self.reader(input).dequantize(), *args, **kwargs))


class RectifiedIntegers(TorchFunctionMode):
    """While active, a network's own ReLUs leave integers as they are: their kernels have done it.

    A context for what traces a network after `quantise_convolutions`.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in RECTIFIERS:
            x = args[0] if args else (kwargs or {})["input"]
            if x.is_quantized:
                return x
        return func(*args, **(kwargs or {}))


def _packed(rounded: FakeQuantLayer) -> Any:
    """Return weights and bias as the kernels take them."""
    weight = rounded.rounded_weight().detach()
    step = weight.abs().amax((1, 2, 3)).clamp_min(TINY).double() / LARGEST["s8"]
    points = torch.zeros(len(weight), dtype=torch.long)
    integers = torch.quantize_per_channel(weight, step, points, 0, torch.qint8)
    conv = cast(nn.Conv2d, rounded.conv)
    return torch.ops.quantized.conv2d_prepack(
        integers, conv.bias, list(conv.stride), list(cast(tuple[int, int], conv.padding)),
        list(conv.dilation), conv.groups,
    )  # fmt: skip


def _takes_integers(layer: nn.Module) -> bool:
    """Tell whether PyTorch's kernels have such a convolution: padded with zeros, by numbers."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def quantise_convolutions(
    reconstructor: Reconstructor, ranges: Mapping[str, float], floats: Sequence[str] = ()
) -> Transformed:
    """Let the convolutions of a network compute in integers, and other layers as if, in place.

    Args:
        reconstructor: A network of equalised weights (`quantisation.equalisation`).
        ranges: Largest magnitude that each of its layers reads, by its name, and
            what else is known of that by the keys of `quantisation.scheme` (`BELOW`, `PARTS`).
        floats: Patterns of the names of layers that stay in float32.

    Returns:
        Which of them compute in integers.

    Raises:
        ExportError: The range of a layer is missing, or a pattern fits none.
    """
    network = reconstructor.model
    choice = choose_quantised(network, ranges, floats)
    found, chosen = choice.layers, choice.names
    whole = choice.transformed()  # now, while they are what they were
    add_fake_quantisation(network, of_layers(ranges, chosen), unsigned=True)
    rounded = {
        described.name: cast(FakeQuantLayer, network.get_submodule(described.name))
        for described in found
    }
    # Integers are handed on where one convolution alone reads them, as they are.
    readers = {
        described.follows: described.name
        for described in found
        if described.follows in rounded
        and _takes_integers(rounded[described.follows].conv)
        and not rounded[described.name].parts
    }
    before_parts = {one.follows for one in found if rounded[one.name].parts}
    given = set(readers.values())
    for name, conv in rounded.items():
        made: nn.Module
        if name in readers:
            next_one = _Reader(rounded[readers[name]], given=True)
            made = _IntegerConv(conv, next_one, given=name in given)
        else:
            made = _RoundedLayer(conv, given=name in given)
        replace_module(network, name, made)
    return whole.without(
        {
            name: _BEFORE_PARTS if name in before_parts else _IN_FLOAT
            for name in rounded
            if name not in readers
        }
    )
