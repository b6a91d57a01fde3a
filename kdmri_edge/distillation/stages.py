"""What a stage of training works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_fabric import Fabric
from torch import Tensor

from kdmri_edge.data.case import Case
from kdmri_edge.distillation.batches import TrainingSlices, strips_allowed
from kdmri_edge.distillation.log import TrainingLog
from kdmri_edge.distillation.messages import Forecast
from kdmri_edge.distillation.recipe import DistillRecipe
from kdmri_edge.models.network import Features
from kdmri_edge.models.protocol import NetworkSpec
from kdmri_edge.physics.masks import Mask

__all__ = ["Batch", "Criterion", "Inputs", "Sized", "Stage", "TrainContext"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What a network reads, and the image that it should give.

    Attributes:
        x_u: Zero-filled images [B, C, H, W], normalised.
        target: Fully sampled images, same shape and scale.
        operator: Constant of data consistency of the mask that `x_u` was sampled with.
        maps: Coil sensitivities [B, coils, 2, H, W]; None for one coil.
    """

    x_u: Tensor
    target: Tensor
    operator: Tensor
    maps: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch(Inputs):
    """What a step trains on.

    Attributes:
        progress: Part of the stage's steps that lies behind, from 0 to below 1.
        teacher: The same slices as the teacher reads them; None where it reads what the network in
            training reads.
        contrasts: Weights of the contrast of each inserted structure, [B, K, H, W], see
            `insertion.Inserted`; None where none are inserted.
    """

    progress: float
    teacher: Inputs | None = None
    contrasts: Tensor | None = None


Criterion = Callable[[Features, Batch], Tensor]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage trains.

    Attributes:
        name: Name in the log and of the state file.
        title: What the progress bar says.
        steps: Optimiser steps.
        criterion: Loss of (the network's features, the batch).
        first: Steps of the network's earlier stages. Its batches go on from there, so that at the
            same step every network of a run sees the same batch: which one came late in training
            moves a network by more than some ideas do.
        rate: Learning rate as a fraction of the recipe's.
        switch: The only value of a batch's progress that the criterion may look at: it may change
            there, once. On a GPU the steps on each side are recorded once and replayed.
        other_masks: Part of the steps whose batches are sampled with another line mask each.
        noise: Largest strength of the noise that its batches are sampled with.
        taught: Whether the criterion asks the teacher.
        ema: Decay of the running average of the weights that the stage ends with; 0 for the last
            weights themselves.
    """

    name: str
    title: str
    steps: int
    criterion: Criterion
    first: int = 0
    rate: float = 1.0
    switch: float = 1.0
    other_masks: float = 0.0
    noise: float = 0.0
    taught: bool = False
    ema: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Sized:
    """Training slices of one matrix.

    Attributes:
        slices: The slices.
        mask: The run's mask, or for another matrix one that is drawn like it.
        operator: Its constant of data consistency, on the device.
    """

    slices: TrainingSlices
    mask: Mask
    operator: Tensor


@dataclass(frozen=True, kw_only=True)
class TrainContext(Sized):
    """What all stages of a run share.

    Attributes:
        fabric: Devices and precision.
        recipe: Settings.
        slices: Training slices, of the run's own matrix.
        validation: Volumes to watch (thinned).
        mask: The run's own mask.
        operator: Its constant of data consistency, on the device.
        workers: Threads that read batches ahead, for slices that are not held in memory; else 0.
        sizes: Training slices of the recipe's matrices, of which every step sees one; empty where
            all steps see the run's own.
        spec: Architecture of a network that reads these slices: the student, or a teacher that
            reads the same.
        folder: Where state files go.
        log: The training log (written by the first process only).
        key: Fingerprint of the run's settings.
        forecast: Says how long the run will take; None where nobody watches.
        partner: Architecture of the other network of the pair, which sees the same parts of the
            same slices; None without one.
        teacher: What a teacher's stages share, and its slices, the same ones in the same order,
            where it reads another input than the student; else None.
    """

    fabric: Fabric
    recipe: DistillRecipe
    validation: Sequence[Case]
    spec: NetworkSpec
    folder: Path
    log: TrainingLog | None
    key: str
    forecast: Forecast | None = None
    partner: NetworkSpec | None = None
    teacher: TrainContext | None = None
    sizes: tuple[Sized, ...] = ()
    workers: int = 0

    @property
    def strips(self) -> bool:
        """Whether readout strips, mirrored or not, may stand for whole slices (`strips_allowed`).

        Otherwise whole slices are drawn, never mirrored.
        """
        return strips_allowed(self.mask, self.spec, self.partner or self.spec)
