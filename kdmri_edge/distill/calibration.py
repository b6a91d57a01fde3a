"""Activation maxima of a finished network, on slices that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kdmri_edge.distill.batches import TrainingSlices
from kdmri_edge.models.build import Network
from kdmri_edge.models.calibrate import activation_maxima

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
    every = max(1, len(slices.zero_filled) // _SLICES)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        chosen = torch.from_numpy(slices.zero_filled[::every])[:, None]
        for x_u in torch.split(chosen, _AT_ONCE):
            x_u = x_u.to(operator.device).contiguous(memory_format=torch.channels_last)
            yield x_u, operator

    return activation_maxima(network, batches())
