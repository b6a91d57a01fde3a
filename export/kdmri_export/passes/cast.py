"""Layers in half precision inside a float32 graph, with explicit casts.

Everything else, data consistency above all, stays in float32: rounding it would move acquired
samples. Strongly typed builders (TensorRT 11) compute what the graph says, so it has to say it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdmri_edge.models.layers import Wrapped, replace_module
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_export.transformed import Transformed, choose_layers

__all__ = ["DTYPES", "cast_convolutions", "cast_layers"]

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


class _Cast(Wrapped):
    """A layer in half precision.

    Args:
        layer: The layer, which stays as it is.
        dtype: What it computes in.
        given: It is given halves, by the layer that it follows.
        hands_on: What reads its output takes halves.
    """

    def __init__(
        self, layer: nn.Module, dtype: torch.dtype, *, given: bool, hands_on: bool
    ) -> None:
        super().__init__(copy.deepcopy(layer).to(dtype))
        self.dtype, self.given, self.hands_on = dtype, given, hands_on

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = input if self.given else input.to(self.dtype)
        made: Tensor = self.conv(x, *args, **kwargs)
        return made if self.hands_on else made.float()


def cast_layers(
    reconstructor: Reconstructor, precision: str, floats: Sequence[str] = ()
) -> Transformed:
    """Let the layers of a network compute in a precision of `DTYPES`, in place.

    Between layers that follow each other there is no cast.

    Args:
        reconstructor: The network.
        precision: Key of `DTYPES`.
        floats: Patterns of the names of layers that stay in float32.

    Returns:
        What was done.

    Raises:
        ExportError: A pattern fits no layer.
    """
    network = reconstructor.model
    choice = choose_layers(network, floats)
    done, chosen = choice.transformed(), choice.names
    hand_on = {one.follows for one in choice.layers if one.follows in chosen}
    for described in choice.layers:
        made = _Cast(
            network.get_submodule(described.name),
            DTYPES[precision],
            given=described.follows in chosen,
            hands_on=described.name in hand_on,
        )
        replace_module(network, described.name, made)
    return done


def cast_convolutions(reconstructor: Reconstructor, precision: str) -> int:
    """Let the layers of a network compute in a precision of `DTYPES`, in place; return how many."""
    return cast_layers(reconstructor, precision).total
