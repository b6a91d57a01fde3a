"""Networks of half resolution whose images stay at half resolution, for graphs.

Such a network takes each image apart into smaller ones before its convolutions, and puts what they
write together again for data consistency. Every runtime copies the image both times, which in eight
bits takes as long as a convolution. But for masks of whole lines data consistency is one product
along phase encode, and rows may come in any order for that, if the operator's do: it acts on the
smaller images as they are. The weights then read and write the channels in the order in which one
column of all blocks is an image (`models.blocks.columns_apart`).
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from kdmri_edge.models.blocks import ConvStack
from kdmri_edge.models.dccnn import DCCNN
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.physics.operators import Form
from kdmri_edge.quantisation.calibration import HIGHEST, LOWEST
from kdmri_export.passes.fold import fold_parametrizations
from kdmri_export.recipe import ExportRecipe

__all__ = ["copied_to_lower", "keep_images_small"]


def copied_to_lower(reconstructor: Reconstructor, recipe: ExportRecipe) -> Reconstructor:
    """Return a copy of a network that a writer may change, with what all graphs are made of.

    That are plain weights, and small images where the operator of data consistency is not kept as
    one.

    Args:
        reconstructor: Stays as it is.
        recipe: What is exported.
    """
    lowered = copy.deepcopy(reconstructor)
    fold_parametrizations(lowered.model)
    if not recipe.keep_op:
        keep_images_small(lowered, mask_input=recipe.mask_input)
    return lowered


def keep_images_small(lowered: Reconstructor, *, mask_input: bool = False) -> bool:
    """Let the images of a network stay small, in place; the result is the same.

    Args:
        lowered: A copy that is written, and nothing else, with plain weights
            (`passes.fold.fold_parametrizations`).
        mask_input: The operator is an input of the graph, which then puts its rows in order;
            otherwise the network's own is put in order here.

    Returns:
        Whether it was done: for DC-CNNs of `spec.shuffle` > 1 without coils, in the projection
        form.
    """
    model = lowered.model
    if not isinstance(model, DCCNN) or model.spec.shuffle == 1:
        return False
    if model.spec.coils or lowered.form is not Form.PROJECTION:
        return False
    order = _order(model.spec.channels, model.spec.shuffle)
    ways: dict[str, list[int]] = {}
    for number, stack in enumerate(model.cascades):
        convs = cast(ConvStack, stack).convs
        first, last = cast(nn.Conv2d, convs[0]), cast(nn.Conv2d, convs[-1])
        shown = 2 if number and model.spec.shows_zero_filled else 1
        read, written = _way(order, shown, first.in_channels), _way(order, 1, last.out_channels)
        with torch.no_grad():
            first.weight.copy_(first.weight[:, read].clone())
            last.weight.copy_(last.weight[written].clone())
            if last.bias is not None:
                last.bias.copy_(last.bias[written].clone())
        name = f"cascades.{number}.convs"
        ways[f"{name}.0"] = read
        for end in (HIGHEST, LOWEST):
            ways[f"{name}.{len(convs) - 1}{end}"] = written
    lowered.maxima = {
        key: [values[place] for place in ways[key]] if key in ways else values
        for key, values in lowered.maxima.items()
    }
    if not mask_input:
        lowered.operator = model.rows_apart(lowered.operator)
    model.small, model.ordered = True, not mask_input
    return True


def _order(channels: int, factor: int) -> Tensor:
    """Return the channel of `models.blocks.smaller` for each one of `columns_apart`."""
    numbers = torch.arange(channels * factor**2).reshape(channels, factor, factor)
    return numbers.permute(2, 0, 1).flatten()


def _way(order: Tensor, images: int, channels: int) -> list[int]:
    """Return which channel comes where: images one after the other, then what is no image's."""
    count = len(order)
    moved = [number * count + int(place) for number in range(images) for place in order]
    return [*moved, *range(len(moved), channels)]
