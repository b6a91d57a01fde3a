"""Training batches that depend on (seed, step) alone.

Data consistency takes the mask as an input (its projection matrix P), so one network can serve all
line masks; it only has to have met many. The families are those that scanners play out (random and
equispaced lines around a centre, as fastMRI defines them) and the variable density of KD-MRI.

No generator state has to be saved: step 137 sees the same strips in one process, in two, and after
any number of interruptions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdmri_edge.data.case import Case, Measurement, Reception
from kdmri_edge.data.simulation import draw_noise
from kdmri_edge.distillation.insertion import Inserted, Place, insert
from kdmri_edge.distillation.recipe import ACCELERATIONS, DistillRecipe
from kdmri_edge.distillation.stored import AnyCase, Rows, SliceCache, StoredCase, rows_of
from kdmri_edge.errors import DataError
from kdmri_edge.models.protocol import InputKind, NetworkSpec
from kdmri_edge.physics.coils import combine, expand
from kdmri_edge.physics.masks import (
    Mask,
    equispaced_lines,
    random_lines,
    variable_density_lines,
)
from kdmri_edge.physics.scaling import as_channels, network_maps, slice_scale

__all__ = [
    "ACCELERATIONS",
    "HELD_OUT",
    "SMALLEST",
    "Part",
    "TrainingSlices",
    "add_noise",
    "batch_size",
    "drawn",
    "inserted_into",
    "parts",
    "seen",
    "sees_other_mask",
    "step_mask",
    "step_matrix",
    "step_noise",
    "strips_allowed",
    "tensors",
]

HELD_OUT: Final = 1000
"""Training draws its masks with seeds from here on; seeds below are for testing."""

SMALLEST: Final = 90
"""Phase-encode lines of which every acceleration leaves a centre."""

_FAMILIES: Final = (random_lines, equispaced_lines, variable_density_lines)


def step_mask(height: int, *, seed: int, step: int) -> Mask:
    """Draw the mask of a step; the same in every process and after every restart.

    Args:
        height: Phase-encode lines N, at least `SMALLEST`.
        seed: The recipe's.
        step: Step of the network.
    """
    random = np.random.default_rng([seed, step, HELD_OUT])
    family = _FAMILIES[int(random.integers(len(_FAMILIES)))]
    acceleration = float(random.uniform(*ACCELERATIONS))
    return family(height, acceleration, seed=int(random.integers(HELD_OUT, 2**31)))


def sees_other_mask(part: float, *, seed: int, step: int) -> bool:
    """Decide whether a step's batch is sampled with `step_mask` instead of the run's own mask.

    Args:
        part: Part of the steps that are.
        seed: The recipe's.
        step: Step of the network.
    """
    return bool(np.random.default_rng([seed, step, HELD_OUT + 1]).random() < part)


def step_matrix(count: int, *, seed: int, step: int) -> int:
    """Draw which of a recipe's matrices a step sees; the same in every process.

    Args:
        count: Number of matrices.
        seed: The recipe's.
        step: Step of the network.
    """
    return int(np.random.default_rng([seed, step, HELD_OUT + 2]).integers(count))


# After the recipe's seed and the step: streams of their own, beside those of batches and masks.
_STRENGTH: Final = 2000
_SAMPLES: Final = 2001


def step_noise(largest: float, *, seed: int, step: int) -> float:
    """Draw the strength of a step's noise, uniformly up to the largest; the same everywhere.

    Args:
        largest: What `recipe.Batches.noise` says; 0 gives 0.
        seed: The recipe's.
        step: Step of the network.

    Returns:
        Standard deviation of the noise of the fully sampled image, relative to the scale of the
        slice that it is added to.
    """
    return largest * float(np.random.default_rng([seed, step, _STRENGTH]).random())


def add_noise(
    images: NDArray[Any], strength: float, *, seed: int, step: int, places: range
) -> NDArray[Any]:
    """Add white noise to fully sampled images, or to what each coil receives of them.

    The Fourier transform is unitary, so that white noise of an image is that of its k-space.

    Args:
        images: [B, ..., H, W], float32 or complex64; of one scale each.
        strength: See `step_noise`; for complex images of both parts together.
        seed: The recipe's.
        step: Step of the network.
        places: Of the images in the whole batch, [B], so that processes share the batch of one.
    """
    noisy = images.copy()
    for image, place in zip(noisy, places, strict=True):
        random = np.random.default_rng([seed, step, _SAMPLES, place])
        if np.iscomplexobj(image):
            image += np.float32(strength) * draw_noise(random, image.shape)
        else:
            image += np.float32(strength) * random.standard_normal(image.shape, dtype=np.float32)
    return noisy


# Slices whose zero-filled maximum is below this part of their volume's hold next to no anatomy;
# scaled to unit maximum they would teach the network to reproduce noise.
_BLANK = 0.05

_OF_IMAGES: Final = 4
"""Axes of a batch of images; maps and k-space have an axis of coils more."""

_Images = Iterable[NDArray[Any]]


@dataclass(frozen=True)
class TrainingSlices:
    """All training slices, normalised by their own scale.

    Attributes:
        target: [N, H, W] float32, complex64 for networks of two channels; of a data set that
            memory does not hold, what reads these slices when they are indexed.
        zero_filled: [N, H, W] of the same dtype; for networks of k-space the root sum of squares of
            the coils' images.
        maps: Sets of coil sensitivities, complex64 [sets, coils, H, W]; None for one coil.
        received: The set of each slice, intp [N]; None exactly when maps is.
        reception: How the coils' k-space comes about, in the unit of the images here; None where no
            coils are simulated.
        kspace: Whether networks are given that k-space in place of `zero_filled`.
    """

    target: NDArray[Any] | Rows
    zero_filled: NDArray[Any] | Rows
    maps: NDArray[np.complex64] | Rows | None = None
    received: NDArray[np.intp] | None = None
    reception: Reception | Measurement | None = None
    kspace: bool = False

    @classmethod
    def from_cases(
        cls,
        cases: Sequence[AnyCase],
        like: Sequence[AnyCase] | None = None,
        cache: SliceCache | None = None,
    ) -> TrainingSlices:
        """Join volumes, leaving blank slices out.

        Args:
            cases: The volumes, all in memory or all in files.
            like: The same volumes for another network, by which it is told which slices are blank,
                so that both have the same ones; None tells it by `cases`.
            cache: Keeps slices that are read from files; None keeps none.

        Raises:
            DataError: No slice is left.
        """
        kept = [other.peaks > _BLANK * other.peaks.max() for other in like or cases]
        if not any(keep.any() for keep in kept):
            raise DataError("The training volumes hold no slice with anatomy.", "Check the data.")
        stored = [case for case in cases if isinstance(case, StoredCase)]
        if stored:
            places = [(n, int(s)) for n, keep in enumerate(kept) for s in np.flatnonzero(keep)]
            return cls(**rows_of(stored, places, cache or SliceCache(0)))
        held = [case for case in cases if isinstance(case, Case)]
        return cls._in_memory(held, kept)

    @classmethod
    def _in_memory(cls, cases: Sequence[Case], kept: Sequence[NDArray[np.bool_]]) -> TrainingSlices:
        """Join volumes that are held in memory."""
        targets: list[NDArray[Any]] = []
        inputs, received, receptions = [], [], []
        for case, keep in zip(cases, kept, strict=True):
            scale = case.scale[keep, None, None]
            targets.append(case.target[keep] / scale)
            inputs.append(case.zero_filled[keep] / scale)
            if case.received is not None:
                received.append(case.received[keep])
            if case.reception is not None:
                own = targets[-1] if np.iscomplexobj(targets[-1]) else None
                receptions.append(case.reception.part(keep).scaled(case.scale[keep], own))
        target, zero_filled = np.concatenate(targets), np.concatenate(inputs)
        # All volumes of a run are received by the same sets of simulated coils; those that were
        # measured have maps of each slice.
        maps, sets = cases[0].maps, np.concatenate(received) if received else None
        if maps is not None and not receptions:
            own_maps = [case.maps_of(keep) for case, keep in zip(cases, kept, strict=True)]
            maps = np.concatenate([each for each in own_maps if each is not None])
            sets = np.arange(len(target))
        return cls(
            target,
            zero_filled,
            maps,
            sets,
            _joined(receptions, target),
            cases[0].kspace,
        )

    def spread(self, count: int) -> list[int]:
        """Return the numbers of `count` slices or some more (of fewer all), evenly spread."""
        return list(range(0, len(self.target), max(1, len(self.target) // count)))

    def kspace_of(self, numbers: Sequence[int]) -> NDArray[np.complex64]:
        """Return what the coils measure of slices, complex64 [B, coils, H, W].

        It is in the unit of `zero_filled`: of a network of k-space, as such a network is given it.

        Raises:
            ValueError: No coils are simulated.
        """
        if self.reception is None:
            raise ValueError("these slices have no coils")
        return self.reception.part(numbers).kspace()

    def network_input(self, numbers: Sequence[int]) -> NDArray[np.float32]:
        """Return what a network is given of slices, [B, C, H, W] or [B, coils, 2, H, W]."""
        if self.kspace:
            return network_maps(self.kspace_of(numbers))
        return as_channels(self.zero_filled[numbers])

    def maps_of(self, numbers: Sequence[int] | NDArray[np.intp] | slice) -> NDArray[Any] | None:
        """Return the sensitivities of slices, complex64 [B, coils, H, W]; None for one coil."""
        if self.maps is None or self.received is None:
            return None
        chosen: NDArray[np.complex64] = self.maps[self.received[numbers]]
        return chosen


def _joined(
    parts: Sequence[Reception | Measurement], target: NDArray[Any]
) -> Reception | Measurement | None:
    """Join what is received of several volumes; complex targets are its images, held once."""
    measured = [part for part in parts if isinstance(part, Measurement)]
    if measured:
        return Measurement(coils=np.concatenate([part.coils for part in measured]))
    simulated = [part for part in parts if isinstance(part, Reception)]
    if not simulated:
        return None
    own = np.iscomplexobj(target)
    return replace(
        simulated[0],
        image=target if own else np.concatenate([part.image for part in simulated]),
        received=np.concatenate([part.received for part in simulated]),
        noise=np.concatenate([part.noise for part in simulated]),
        seeds=np.concatenate([part.seeds for part in simulated]),
    )


def strips_allowed(mask: Mask, *specs: NetworkSpec) -> bool:
    """Return whether readout strips, mirrored or not, may stand for whole slices.

    With data consistency that takes a line mask: its P acts along phase encode alone. Without it
    (VDSR) the network sees no farther than its receptive radius, so any mask will do. A network
    that has no such radius has to see whole slices, as one of k-space has to. Mirroring a slice
    mirrors its mask: super-resolution's block stays as it is, but for the unpaired frequency of an
    even size.

    Args:
        mask: What the slices were sampled with.
        specs: The networks that see the same batches: all of them have to allow it.
    """
    return all(
        spec.receptive_radius is not None
        and spec.reads is not InputKind.KSPACE
        and (mask.is_lines or not spec.has_data_consistency)
        for spec in specs
    )


def batch_size(recipe: DistillRecipe, width: int, *, whole: bool) -> int:
    """Return the images of a step, over all processes.

    Args:
        recipe: Gives batch size and strip width.
        width: Readout columns W of a slice.
        whole: For steps on whole slices, which get about as many pixels as those on strips.
    """
    return (
        max(1, round(recipe.batches.size * min(recipe.batches.strip, width) / width))
        if whole
        else recipe.batches.size
    )


def tensors(arrays: Sequence[NDArray[np.float32]]) -> tuple[Tensor, ...]:
    """Return what `drawn` gives as tensors; images [B, C, H, W] are channels-last.

    PyTorch copies with several threads: a thread that draws ahead leaves this to the one that
    trains, lest two teams of threads compete.
    """
    made = (torch.from_numpy(array) for array in arrays)
    return tuple(
        tensor.contiguous(memory_format=torch.channels_last)
        if tensor.ndim == _OF_IMAGES
        else tensor
        for tensor in made
    )


@dataclass(frozen=True, slots=True)
class Part:
    """What a batch shows of a slice.

    Attributes:
        number: Place in the whole batch.
        slice: Number of the slice.
        start: First column.
        columns: How many.
        mirrored: Whether it is mirrored along readout.
    """

    number: int
    slice: int
    start: int
    columns: int
    mirrored: bool


def parts(
    slices: TrainingSlices,
    recipe: DistillRecipe,
    *,
    step: int,
    whole: bool,
    flip: bool,
    rank: int = 0,
    world: int = 1,
) -> list[Part]:
    """Draw what this process's share of a step's batch shows; see `drawn` for the arguments."""
    count, _, width = slices.target.shape
    columns = width if whole else min(recipe.batches.strip, width)
    batch = batch_size(recipe, width, whole=whole)
    random = np.random.default_rng([recipe.seed, step])
    chosen = random.integers(0, count, batch)
    starts = random.integers(0, width - columns + 1, batch)
    mirrored = random.random(batch) < 0.5
    every = zip(chosen, starts, mirrored, strict=True)
    return [
        Part(number, int(n), int(start), columns, flip and bool(mirror))
        for number, (n, start, mirror) in enumerate(every)
    ][rank::world]


def seen(images: _Images, own: Sequence[Part]) -> NDArray[Any]:
    """Return what a batch shows of its slices, [..., H, columns] each."""
    return np.stack(
        [
            image[..., part.start : part.start + part.columns][..., :: -1 if part.mirrored else 1]
            for image, part in zip(images, own, strict=True)
        ]
    )


def inserted_into(
    slices: TrainingSlices, recipe: DistillRecipe, own: Sequence[Part], *, step: int
) -> Inserted:
    """Draw the structures that the slices of a batch are given, see `insertion.insert`.

    Args:
        slices: The training slices; of several readers' any.
        recipe: Says which structures.
        own: What the batch shows of them.
        step: Step of the network.
    """
    places = [Place(number=part.number, start=part.start, columns=part.columns) for part in own]
    return insert(
        [slices.target[part.slice] for part in own],
        places,
        recipe.insertion,
        strip=recipe.batches.strip,
        seed=recipe.seed,
        step=step,
    )


def drawn(
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
    inserted: Inserted | None = None,
    own_projection: NDArray[Any] | None = None,
) -> tuple[NDArray[np.float32], ...]:
    """Return this process's share of a step's batch, without PyTorch.

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
        noise: Strength of what is added before that; the targets stay clean.
        inserted: Structures of the same part of the batch; None for none.
        own_projection: Of the mask that the zero-filled images were sampled with, for structures
            where `projection` is None.

    Returns:
        Zero-filled and target images, [B / world, C, H, W] float32; with coils also
        their sensitivities [B / world, coils, 2, H, W], cut and mirrored alike. For networks of
        k-space that, [B / world, coils, 2, H, W], in place of the zero-filled images.
    """
    own = parts(slices, recipe, step=step, whole=whole, flip=flip, rank=rank, world=world)
    numbers = [part.slice for part in own]
    if slices.kspace:
        return slices.network_input(numbers), as_channels(slices.target[numbers])
    maps = slices.maps_of(numbers)
    # Views: of a strip's slice, only the strip is copied.
    zero_filled: _Images = [slices.zero_filled[n] for n in numbers]
    target: _Images = [slices.target[n] for n in numbers]
    if projection is not None:
        # On whole slices: the scale is the slice's, not the strip's.
        full = slices.target[numbers]
        if inserted is not None:
            full = np.asarray(full * inserted.factors)
        received = full if maps is None else expand(full, maps)
        if noise:
            places = range(rank, rank + world * len(own), world)
            received = add_noise(received, noise, seed=recipe.seed, step=step, places=places)
        sampled = _sampled(received, projection, maps)
        scale = slice_scale(sampled)[:, None, None]
        zero_filled, target = sampled / scale, full / scale
    elif inserted is not None:
        # What is sampled of the change is added, so that noise and all else of the input stay.
        full = slices.target[numbers]
        change: NDArray[Any] = full * (inserted.factors - 1)
        received = change if maps is None else expand(change, maps)
        sampled = slices.zero_filled[numbers] + _sampled(received, own_projection, maps)
        scale = slice_scale(sampled)[:, None, None]
        zero_filled, target = sampled / scale, (full + change) / scale

    pair = as_channels(seen(zero_filled, own)), as_channels(seen(target, own))
    return pair if maps is None else (*pair, network_maps(seen(maps, own)))


def _sampled(
    images: NDArray[Any], projection: NDArray[Any] | None, maps: NDArray[Any] | None
) -> NDArray[Any]:
    """Return what is sampled of fully sampled images, [B, H, W] or of coils [B, coils, H, W]."""
    sampled = np.matmul(projection, images)  # type: ignore[arg-type]
    return sampled if maps is None else combine(sampled, maps)
