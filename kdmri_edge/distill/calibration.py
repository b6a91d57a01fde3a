"""Activation maxima of a finished network, on slices that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kdmri_edge.distill.batches import TrainingSlices
from kdmri_edge.models.build import Network
from kdmri_edge.models.calibrate import activation_maxima
from kdmri_edge.physics.sense import maps_tensor
from kdmri_edge.scaling import as_channels

__all__ = ["training_maxima"]

_SLICES = 64
_AT_ONCE = 4


def training_maxima(
    network: Network, operator: Tensor, slices: TrainingSlices
) -> dict[str, list[float]]:
    """Return what int8 exports need, from training slices spread evenly over the volumes.

    Args:
        network: The network, on the operator's device.
        operator: Constant of data consistency.
        slices: Training slices, under the network's own mask.
    """

    def batches() -> Iterator[tuple[Tensor, ...]]:
        chosen = slices.spread(_SLICES)
        for start in range(0, len(chosen), _AT_ONCE):
            numbers = chosen[start : start + _AT_ONCE]
            x_u = torch.from_numpy(as_channels(slices.zero_filled[numbers])).to(operator.device)
            maps = slices.maps_of(numbers)
            further = () if maps is None else (maps_tensor(maps).to(operator.device),)
            yield x_u.contiguous(memory_format=torch.channels_last), operator, *further

    return activation_maxima(network, batches())
