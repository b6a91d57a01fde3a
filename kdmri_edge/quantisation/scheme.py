"""How int8 exports round: shared by the graphs that are written and by training with rounding.

Eight bits are too few for an image: in a trial on brains at 4x, quantising what the first
convolution of each cascade reads cost nearly all that quantisation cost. So it is given the rounded
image, and as further channels what rounding took away, magnified (`FINE`), with the same weights
divided by that: twelve bits in integer arithmetic, at no cost, since kernels compute input channels
in blocks of four or more. Feature maps that it reads beside the image, handed on by the cascade
before, are hidden channels brought to the image's range (`quantisation.equalisation`), for all
share one scale. For CPUs they follow as they are; of signed integers, which have half of the steps
for them, they are given in two parts like the image. What other convolutions read can be, too, for
twice the products (`PARTS`): on brains at 4x that made up for the last hundredths of a dB.

Weights become signed int8 with one scale per output channel. What a layer reads is quantised
with one scale. For CPUs, whose kernels want unsigned integers all along, it is unsigned: with zero
point 0 after a ReLU, else 128, or less where an image hardly falls below zero, as magnitudes do:
on brains at 4x the steps of image and feature maps are then smaller by a third. For TensorRT it is
signed with zero point 0, half of the range unused after a ReLU.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, TypeGuard

if TYPE_CHECKING:
    from torch.nn import Conv2d, ConvTranspose2d, Module

    from kdmri_edge.models.layers import Layer
    from kdmri_edge.models.network import Network

__all__ = [
    "BELOW",
    "BOUNDS",
    "FINE",
    "LARGEST",
    "NARROW",
    "PARTS",
    "TINY",
    "activation_kind",
    "can_be_parted",
    "grid",
    "image_channels",
    "in_two_parts",
    "split_channels",
    "taken_apart",
    "writes_blocks",
]

LARGEST: Final = {"s8": 127, "u8": 255, "u8c": 127}
"""Steps from zero to the largest value: of signed, unsigned, and unsigned about 128 activations.

Weights are "s8". Of "u8c" that reach less far below zero there are more (`grid`).
"""

BOUNDS: Final = {"s8": (-128, 127), "u8": (0, 255), "u8c": (-128, 127)}
"""Smallest and largest multiple of the step that each kind can hold."""

BELOW: Final = ":below"
"""What follows a layer's name where the lowest value is meant that it reads of an image, without
its sign. It is a bound: what lies below is clipped. It is 0 of what a ReLU puts out and is given in
two parts, the second of which has a few steps below zero in any case (`grid`)."""

PARTS: Final = ":parts"
"""What follows a layer's name where it is meant how many of the channels that it reads, the first
ones, it is given in two parts. Where nothing is said of that, they are an image's alone."""

FINE: Final = 16
"""Magnification of what rounding took from an image: at most half a step, it then spans 16."""

TINY: Final = 1e-12
"""Floor of a range, so that a channel without values has a step."""

NARROW: Final = 2
"""Convolutions of at most so many outputs are exported tap by tap for CPUs: a scale for each."""

_IMAGE: Final = 2


def image_channels(described: Layer, layer: Module) -> int:
    """Return how many of the channels that a layer reads, the first ones, are an image's.

    Networks say so, and of others a convolution of one or two channels is taken to read one.

    Args:
        described: What its network says of it.
        layer: The layer itself.
    """
    if not can_be_parted(layer):
        return 0
    return described.image or (layer.in_channels if layer.in_channels <= _IMAGE else 0)


def split_channels(ranges: Mapping[str, float], name: str, image: int) -> int:
    """Return how many of the channels that a layer reads, the first ones, it is given in two parts.

    Args:
        ranges: What is known of a network's activations, by its layers' names and `PARTS`.
        name: Of the layer.
        image: How many of them are an image's (`image_channels`).
    """
    return int(ranges.get(name + PARTS, image))


def can_be_parted(layer: Module) -> TypeGuard[Conv2d]:
    """Tell whether a layer can be given what it reads in two parts: a convolution of one group."""
    from torch.nn import Conv2d

    return isinstance(layer, Conv2d) and layer.groups == 1


def in_two_parts(
    network: Network, names: Container[str], *, unsigned: bool, also: Container[str] = ()
) -> dict[str, float]:
    """Return which layers are given more than an image in two parts, by their names and `PARTS`.

    What a ReLU puts out reaches below zero in its second part alone, which is said by `BELOW`.

    Args:
        network: The network.
        names: The layers that are rounded.
        unsigned: Round as for CPUs; else feature maps beside an image are among it.
        also: Layers that are given all they read so.
    """
    found = {}
    for one in network.layers():
        layer = network.get_submodule(one.name)
        if one.name not in names or not can_be_parted(layer):
            continue
        maps = one.carried_from is not None and image_channels(one, layer) > 0
        if one.name in also or (maps and not unsigned):
            found[one.name + PARTS] = float(layer.in_channels)
            if one.rectified:
                found[one.name + BELOW] = 0.0
    return found


def writes_blocks(layer: ConvTranspose2d) -> bool:
    """Tell whether each pixel that a transposed convolution reads becomes a block of its own.

    It is then a 1x1 convolution to as many channels as a block has pixels, which has integer
    kernels where the transposed one has none, and a scale for each pixel of a block.
    """
    return (
        layer.stride == layer.kernel_size
        and layer.groups == 1
        and all(one == 0 for one in (*layer.padding, *layer.output_padding))
        and all(one == 1 for one in layer.dilation)
    )


def taken_apart(conv: Conv2d) -> bool:
    """Tell whether a convolution is exported tap by tap for CPUs: narrow, and a plain square."""
    return (
        conv.out_channels <= NARROW
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and all(len(set(pair)) == 1 for pair in (conv.kernel_size, conv.dilation))
    )


class Grid(NamedTuple):
    """The integers that activations become.

    Attributes:
        lowest: Smallest multiple of the step, 0 or below.
        highest: Largest multiple of the step, which stands for the largest magnitude.
    """

    lowest: int
    highest: int


def grid(kind: str, largest: float, below: float | None = None) -> Grid:
    """Return the integers of a kind of activations, relative to the zero point.

    Args:
        kind: See `LARGEST`.
        largest: Largest magnitude that a layer reads.
        below: How far below zero that reaches, of "u8c"; None for as far as above.
    """
    if kind != "u8c" or below is None:
        return Grid(*BOUNDS[kind])
    every = LARGEST["u8"]
    whole = max(largest, TINY) + max(below, 0.0)
    # what rounding takes away has either sign, and spans FINE steps
    lowest = min(max(round(every * max(below, 0.0) / whole), FINE // 2), -BOUNDS[kind][0])
    return Grid(-lowest, every - lowest)


def activation_kind(*, parted: bool, rectified: bool, unsigned: bool) -> str:
    """Return the kind of integers that a layer reads.

    Args:
        parted: It reads an image, or something else in two parts: the second has either sign.
        rectified: It reads the output of a ReLU.
        unsigned: Whether unsigned integers are wanted (CPUs).
    """
    if not unsigned:
        return "s8"
    return "u8" if rectified and not parted else "u8c"
