"""The worst small perturbation of acquired samples, found by projected gradient ascent (PyTorch).

After Antun et al., PNAS 2020: perturbations that are as small as the noise, but aimed. They are
added to the samples that are taken and to no others, with the norm of white noise of a given level;
noise of the same norm, not aimed, stands beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdmri_edge.models.checkpoint import load_reconstructor
from kdmri_edge.models.reconstructor import Reconstructor

__all__ = ["STEPS", "Attack", "worst_change"]

STEPS: Final = 10
"""Steps of gradient ascent."""

_REACH: Final = 2.5  # a step's length times the number of steps, over the largest norm


@dataclass(frozen=True, kw_only=True, slots=True)
class Attack:
    """What perturbations of one norm do to a slice.

    Attributes:
        random: root mean square of the image's change by noise, over the image's maximum.
        worst: the same by the worst perturbation that was found.
        input: root mean square of the perturbation itself in the zero-filled image, likewise.
    """

    random: float
    worst: float
    input: float


def worst_change(
    checkpoint: Path,
    zero_filled: NDArray[np.float32],
    sampled: NDArray[np.bool_],
    *,
    level: float,
    steps: int = STEPS,
    seed: int = 0,
) -> list[Attack]:
    """Search the worst perturbation of each slice.

    Args:
        checkpoint: The network, of one image.
        zero_filled: What it is given, divided by each slice's scale, [S, channels, H, W].
        sampled: Which samples are taken, [H, 1] or [H, W].
        level: Standard deviation of the noise in the fully sampled image, over the maximum of the
            zero-filled image.
        steps: Of gradient ascent.
        seed: Of the noise.

    Returns:
        One for each slice.
    """
    network = load_reconstructor(checkpoint)
    network.requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    whole = np.broadcast_to(sampled, zero_filled.shape[-2:])
    mask = torch.from_numpy(np.ascontiguousarray(whole, np.float32))
    slices = torch.from_numpy(np.ascontiguousarray(zero_filled))
    return [_attack(network, one[None], mask, level, steps, random) for one in slices]


def _attack(
    network: Reconstructor,
    x_u: Tensor,
    mask: Tensor,
    level: float,
    steps: int,
    random: torch.Generator,
) -> Attack:
    channels, (height, width) = x_u.shape[1], x_u.shape[-2:]
    peak = float(x_u.abs().max())
    with torch.no_grad():
        clean = network(x_u)
    largest = level * peak * float(mask.sum()) ** 0.5

    def bounded(samples: Tensor) -> Tensor:
        scaled: Tensor = samples * (largest / samples.norm())
        return scaled

    def added(samples: Tensor) -> Tensor:
        # where the image's origin lies changes phases of samples alone, not which are possible
        image = torch.fft.ifft2(torch.view_as_complex(samples) * mask, norm="ortho")
        parts = torch.view_as_real(image).permute(2, 0, 1)[None]
        return parts[:, :channels]

    noise = torch.randn((height, width, 2), generator=random) * mask[..., None]
    samples = bounded(noise)
    with torch.no_grad():
        change = float((network(x_u + added(samples)) - clean).pow(2).mean()) ** 0.5
    worst, at_worst = change, samples
    for _ in range(steps):
        samples = samples.detach().requires_grad_(True)
        loss = (network(x_u + added(samples)) - clean).pow(2).mean()
        value = float(loss.detach()) ** 0.5
        if value > worst:
            worst, at_worst = value, samples.detach()
        (gradient,) = torch.autograd.grad(loss, samples)
        gradient = gradient * mask[..., None]
        size = float(gradient.norm())
        if not size > 0:
            break
        step = _REACH / steps * largest * gradient / size
        samples = bounded(samples.detach() + step)
    with torch.no_grad():
        value = float((network(x_u + added(samples)) - clean).pow(2).mean()) ** 0.5
        if value > worst:
            worst, at_worst = value, samples
        given = float(added(at_worst).pow(2).mean()) ** 0.5
    scale = float(clean.abs().max()) or 1.0
    return Attack(random=change / scale, worst=worst / scale, input=given / scale)
