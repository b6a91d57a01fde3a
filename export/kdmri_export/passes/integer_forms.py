"""Layers in a form for which runtimes have integer kernels.

A Linear becomes a product with a matrix [I, O], which is then a constant of the graph. A transposed
convolution that makes a block of each pixel becomes a 1x1 convolution whose channels are the pixels
of the block. The sums are the same.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdmri_edge.errors import ExportError
from kdmri_edge.models.layers import replace_module
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.quantisation.scheme import writes_blocks

__all__ = ["Blocks", "Product", "to_integer_forms"]


class Product(nn.Module):
    """A Linear as a product with a matrix.

    Args:
        linear: The layer.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().t().contiguous())
        # Taken away with its sign turned: ONNX Runtime makes one operator of a product and a sum,
        # for which it has no integer kernel that puts out floats.
        self.negative_bias = None if linear.bias is None else nn.Parameter(-linear.bias.detach())

    def forward(self, input: Tensor) -> Tensor:
        """Compute what the layer does: [..., I] to [..., O]."""
        made = torch.matmul(input, self.weight)
        return made if self.negative_bias is None else made - self.negative_bias


class Blocks(nn.Module):
    """A transposed convolution that makes a block of each pixel, as a 1x1 convolution.

    Args:
        layer: See `quantisation.scheme.writes_blocks`.
    """

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        super().__init__()
        inputs, _, *sides = layer.weight.shape
        self.block = cast(tuple[int, int], tuple(sides))
        weight = layer.weight.detach().permute(1, 2, 3, 0).reshape(-1, inputs, 1, 1)
        self.weight = nn.Parameter(weight.contiguous())
        pixels = self.block[0] * self.block[1]
        self.bias = None
        if layer.bias is not None:
            self.bias = nn.Parameter(layer.bias.detach().repeat_interleave(pixels))

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Compute what the layer does: [B, I, H, W] to [B, O, H kh, W kw]."""
        made = F.conv2d(input, self.weight, self.bias)
        high, wide = self.block
        if high == wide:
            made = F.pixel_shuffle(made, high)
        else:
            rest, place = made.shape[:-3], made.shape[-2:]
            made = made.reshape(*rest, -1, high, wide, *place)
            made = made.movedim(-2, -4).transpose(-1, -2).flatten(-2).flatten(-3, -2)
        if output_size is not None and tuple(output_size[-2:]) != tuple(made.shape[-2:]):
            raise ExportError(
                "A transposed convolution is asked for an output_size that is no multiple of its"
                " stride, which has no integer kernel.",
                "Keep it in float32 by --float and its name.",
            )
        return made


def to_integer_forms(reconstructor: Reconstructor, names: Collection[str]) -> None:
    """Bring layers into that form, in place; their names stay.

    Args:
        reconstructor: The network.
        names: Of the layers that are to compute in integers.
    """
    network = reconstructor.model
    for name in names:
        layer = network.get_submodule(name)
        if isinstance(layer, nn.Linear):
            replace_module(network, name, Product(layer))
        elif isinstance(layer, nn.ConvTranspose2d) and writes_blocks(layer):
            replace_module(network, name, Blocks(layer))
