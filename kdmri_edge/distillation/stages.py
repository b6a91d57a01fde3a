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

__all__ = ["Batch", "Criterion", "Stage", "TrainContext"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What a step trains on.

    Attributes:
        x_u: Zero-filled images [B, C, H, W], normalised.
        target: Fully sampled images, same shape and scale.
        operator: Constant of data consistency of the mask that `x_u` was sampled with.
        progress: Part of the stage's steps that lies behind, from 0 to below 1.
        maps: Coil sensitivities [B, coils, 2, H, W]; None for one coil.
    """

    x_u: Tensor
    target: Tensor
    operator: Tensor
    progress: float
    maps: Tensor | None = None


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
    ema: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainContext:
    """What all stages of a run share.

    Attributes:
        fabric: Devices and precision.
        recipe: Settings.
        slices: Training slices.
        validation: Volumes to watch (thinned).
        mask: The run's own mask.
        operator: Its constant of data consistency, on the device.
        spec: Architecture of the student; the teacher agrees in channels and coils.
        folder: Where state files go.
        log: The training log (written by the first process only).
        key: Fingerprint of the run's settings.
        forecast: Says how long the run will take; None where nobody watches.
    """

    fabric: Fabric
    recipe: DistillRecipe
    slices: TrainingSlices
    validation: Sequence[Case]
    mask: Mask
    operator: Tensor
    spec: NetworkSpec
    folder: Path
    log: TrainingLog | None
    key: str
    forecast: Forecast | None = None

    @property
    def strips(self) -> bool:
        """Whether readout strips, mirrored or not, may stand for whole slices (`strips_allowed`).

        Otherwise whole slices are drawn, never mirrored.
        """
        return strips_allowed(self.mask, self.spec)
