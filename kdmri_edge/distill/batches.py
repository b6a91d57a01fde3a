"""Training batches that depend on (seed, step) alone.

No generator state has to be saved: step 137 sees the same strips in one process, in two, and after
any number of interruptions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdmri_edge.data.cases import Case
from kdmri_edge.distill.noise import add_noise
from kdmri_edge.distill.recipe import DistillRecipe
from kdmri_edge.errors import DataError
from kdmri_edge.models.spec import Kind, ModelSpec
from kdmri_edge.physics.coils import combine, expand
from kdmri_edge.physics.masks import Mask
from kdmri_edge.scaling import as_channels, network_maps, slice_scale

__all__ = ["TrainingSlices", "batch_size", "draw", "strips_allowed"]

# Slices whose zero-filled maximum is below this part of their volume's hold next to no anatomy;
# scaled to unit maximum they would teach the network to reproduce noise.
_BLANK = 0.05

_Images = Iterable[NDArray[Any]]


@dataclass(frozen=True)
class TrainingSlices:
    """All training slices, normalised by their own scale.

    Attributes:
        target: [N, H, W] float32, complex64 for networks of two channels.
        zero_filled: [N, H, W] of the same dtype.
        maps: Sets of coil sensitivities, complex64 [sets, coils, H, W]; None for one coil.
        received: The set of each slice, intp [N]; None exactly when maps is.
    """

    target: NDArray[Any]
    zero_filled: NDArray[Any]
    maps: NDArray[np.complex64] | None = None
    received: NDArray[np.intp] | None = None

    @classmethod
    def from_cases(cls, cases: Sequence[Case]) -> TrainingSlices:
        """Join volumes, leaving blank slices out.

        Raises:
            DataError: No slice is left.
        """
        targets, inputs, received = [], [], []
        for case in cases:
            keep = np.abs(case.zero_filled).max((1, 2)) > _BLANK * np.abs(case.zero_filled).max()
            scale = case.scale[keep, None, None]
            targets.append(case.target[keep] / scale)
            inputs.append(case.zero_filled[keep] / scale)
            if case.received is not None:
                received.append(case.received[keep])
        if not sum(len(t) for t in targets):
            raise DataError("The training volumes hold no slice with anatomy.", "Check the data.")
        if not received:
            return cls(np.concatenate(targets), np.concatenate(inputs))
        # All volumes of a run are received by the same sets of coils.
        return cls(
            np.concatenate(targets), np.concatenate(inputs), cases[0].maps, np.concatenate(received)
        )

    def spread(self, count: int) -> list[int]:
        """Return the numbers of `count` slices or some more (of fewer all), evenly spread."""
        return list(range(0, len(self.target), max(1, len(self.target) // count)))

    def maps_of(self, numbers: Sequence[int] | NDArray[np.intp] | slice) -> NDArray[Any] | None:
        """Return the sensitivities of slices, complex64 [B, coils, H, W]; None for one coil."""
        if self.maps is None or self.received is None:
            return None
        chosen: NDArray[np.complex64] = self.maps[self.received[numbers]]
        return chosen


def strips_allowed(mask: Mask, spec: ModelSpec) -> bool:
    """Return whether readout strips, mirrored or not, may stand for whole slices.

    With data consistency that takes a line mask: its P acts along phase encode alone. Without it
    (VDSR) the network is convolutions only, which see no farther than their receptive radius, so
    any mask will do. Mirroring a slice mirrors its mask: super-resolution's block stays as it is,
    but for the unpaired frequency of an even size.

    Args:
        mask: What the slices were sampled with.
        spec: The network; teacher and student agree in what counts here.
    """
    return mask.is_lines or spec.kind is Kind.VDSR


def batch_size(recipe: DistillRecipe, width: int, *, whole: bool) -> int:
    """Return the images of a step, over all processes.

    Args:
        recipe: Gives batch size and strip width.
        width: Readout columns W of a slice.
        whole: For steps on whole slices, which get about as many pixels as those on strips.
    """
    return max(1, round(recipe.batch * min(recipe.strip, width) / width)) if whole else recipe.batch


def draw(
    slices: TrainingSlices,
    recipe: DistillRecipe,
    *,
    step: int,
    whole: bool,
    flip: bool,
    rank: int = 0,
    world: int = 1,
    projection: NDArray[Any] | None = None,
    noise: float = 0.0,
) -> tuple[Tensor, ...]:
    """Return this process's share of a step's batch.

    Args:
        slices: The training slices.
        recipe: Gives batch size, strip width and seed.
        step: Step of the network, over all of its stages.
        whole: Draw whole slices, with about as many pixels per step.
        flip: Mirror half of them along readout.
        rank: This process.
        world: Number of processes; `batch_size` must be divisible by it.
        projection: Re(P) [H, H] of a line mask, or for complex slices P: their targets are
            undersampled with it anew, and scaled by what that leaves. None takes the zero-filled
            images as they are.
        noise: Strength of what is added before that (`distill.noise`); the targets stay clean.

    Returns:
        Zero-filled and target images, [B / world, C, H, W] float32, channels-last; with coils also
        their sensitivities [B / world, coils, 2, H, W], cut and mirrored alike.
    """
    count, _, width = slices.target.shape
    columns = width if whole else min(recipe.strip, width)
    batch = batch_size(recipe, width, whole=whole)
    random = np.random.default_rng([recipe.seed, step])
    chosen = random.integers(0, count, batch)
    starts = random.integers(0, width - columns + 1, batch)
    mirrored = random.random(batch) < 0.5
    own = list(zip(chosen, starts, mirrored, strict=True))[rank::world]
    numbers = [n for n, _, _ in own]
    maps = slices.maps_of(numbers)
    # Views: of a strip's slice, only the strip is copied.
    zero_filled: _Images = [slices.zero_filled[n] for n in numbers]
    target: _Images = [slices.target[n] for n in numbers]
    if projection is not None:
        # On whole slices: the scale is the slice's, not the strip's.
        full = slices.target[numbers]
        received = full if maps is None else expand(full, maps)
        if noise:
            places = range(rank, batch, world)
            received = add_noise(received, noise, seed=recipe.seed, step=step, places=places)
        sampled = np.matmul(projection, received)
        sampled = sampled if maps is None else combine(sampled, maps)
        scale = slice_scale(sampled)[:, None, None]
        zero_filled, target = sampled / scale, full / scale

    def strips(source: _Images) -> NDArray[Any]:
        return np.stack(
            [
                image[..., a : a + columns][..., :: -1 if flip and m else 1]
                for image, (_, a, m) in zip(source, own, strict=True)
            ]
        )

    pair = [
        torch.from_numpy(as_channels(strips(source))).contiguous(memory_format=torch.channels_last)
        for source in (zero_filled, target)
    ]
    if maps is None:
        return pair[0], pair[1]
    return pair[0], pair[1], torch.from_numpy(network_maps(strips(maps)))
