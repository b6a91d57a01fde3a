"""Watching a network on the validation subjects while it learns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from kdmri_edge.data.cases import Case
from kdmri_edge.physics.sense import maps_tensor
from kdmri_edge.scaling import network_image, network_input

__all__ = ["thinned", "validation_psnr"]


def thinned(cases: Sequence[Case], slices: int) -> list[Case]:
    """Keep about `slices` slices in all, spread evenly over all of them; quick to evaluate.

    Of more volumes than that some are left out.
    """
    total = sum(len(case.target) for case in cases)
    every = max(1, round(total / slices))
    kept, begin = [], every // 2
    for case in cases:
        count = len(case.target)
        own = slice(begin, None, every)
        chosen = range(count)[own]
        if chosen:
            kept.append(case.part(own))
        begin += len(chosen) * every - count
    return kept


@torch.no_grad()
def validation_psnr(model: nn.Module, operator: Tensor, cases: Sequence[Case]) -> float:
    """Return the mean over volumes of the PSNR in dB, in float32.

    Data range is the maximum of the target's slices given, as in the benchmark.
    """
    values = []
    model.eval()
    for case in cases:
        inputs = torch.from_numpy(network_input(case.zero_filled, case.scale))
        inputs = inputs.to(operator.device).contiguous(memory_format=torch.channels_last)
        calls = []
        for start, x in zip(range(0, len(inputs), 4), torch.split(inputs, 4), strict=True):
            own = case.maps_of(slice(start, start + 4))
            maps = None if own is None else maps_tensor(own).to(operator.device)
            calls.append(model(x, operator, maps).cpu().numpy())
        output = network_image(np.concatenate(calls), case.scale)
        error = np.mean(np.abs(output - case.target) ** 2, dtype=np.float64)
        values.append(10 * np.log10(float(np.abs(case.target).max()) ** 2 / error))
    model.train()
    return float(np.mean(values))
