"""One stage of training: a resumable loop on Lightning Fabric."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from kdmri_edge.data.cases import Case
from kdmri_edge.distill.batches import TrainingSlices, draw
from kdmri_edge.distill.log import TrainingLog
from kdmri_edge.distill.masks import step_mask
from kdmri_edge.distill.progress import StageProgress
from kdmri_edge.distill.recipe import DistillRecipe, Masks
from kdmri_edge.distill.schedule import rate
from kdmri_edge.distill.state import load_state, save_state
from kdmri_edge.distill.validation import validation_psnr
from kdmri_edge.errors import KdmriError
from kdmri_edge.models.build import Network
from kdmri_edge.models.features import Features
from kdmri_edge.models.spec import ModelSpec
from kdmri_edge.physics.forms import Form
from kdmri_edge.physics.projection import projection_matrix
from kdmri_edge.reconstructor import network_operator

__all__ = ["Batch", "Criterion", "Stage", "Surroundings", "channels_last", "train"]


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
    """

    name: str
    title: str
    steps: int
    criterion: Criterion
    first: int = 0
    rate: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What all stages of a run share.

    Attributes:
        fabric: Devices and precision.
        recipe: Settings.
        slices: Training slices.
        validation: Volumes to watch (thinned).
        operator: Constant of data consistency, on the device.
        spec: Architecture of the student; the teacher agrees in channels and coils.
        strips: Whether readout strips, mirrored or not, may stand for whole slices, see
            `strips_allowed`; otherwise whole slices are drawn, never mirrored.
        folder: Where state files go.
        log: The training log (written by the first process only).
        key: Fingerprint of the run's settings.
    """

    fabric: Fabric
    recipe: DistillRecipe
    slices: TrainingSlices
    validation: Sequence[Case]
    operator: Tensor
    spec: ModelSpec
    strips: bool
    folder: Path
    log: TrainingLog | None
    key: str


class _WithFeatures(nn.Module):
    """Make `features` the forward pass, which is what autocast and DDP wrap."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Features:
        return self.network.features(x_u, operator, maps)


def channels_last(network: Network) -> Network:
    """Lay the weights out channels-last, in place: several times faster convolutions on CPUs."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def train(network: Network, stage: Stage, around: Surroundings) -> None:
    """Train `network` in place for one stage, from its last checkpoint if there is one.

    Raises:
        KdmriError: The loss or its gradient is not finite.
        CheckpointError: The state to resume from is damaged or of other settings.
    """
    fabric, recipe = around.fabric, around.recipe
    channels_last(network)
    # Before the optimiser is restored: its state goes where the weights are.
    fabric.to_device(network)
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    state_file = around.folder / f"{stage.name}.safetensors"
    done = load_state(state_file, network, optimiser, around.key)
    wrapped, optimiser = fabric.setup(_WithFeatures(network), optimiser)
    wrapped.train()
    if around.log is not None:
        around.log.rewind(stage.name, done)
    began = time.perf_counter()
    show = fabric.is_global_zero
    with StageProgress(stage.title, stage.steps, done, show=show) as shown:
        for step in range(done, stage.steps):
            loss = _step(wrapped, optimiser, stage, around, step)
            finished = step + 1
            last = finished == stage.steps
            shown.advance(finished, loss)
            if last or finished % recipe.validate_every == 0:
                psnr = None
                if show and around.validation:
                    psnr = validation_psnr(network, around.operator, around.validation)
                    shown.validated(finished, loss, psnr)
                if around.log is not None:
                    seconds = time.perf_counter() - began
                    learning_rate = stage.rate * rate(recipe, step, stage.steps)
                    around.log.add(stage.name, finished, loss, learning_rate, psnr, seconds)
            if show and (last or finished % recipe.checkpoint_every == 0):
                save_state(state_file, network, optimiser, finished, around.key)
            if last or finished % recipe.validate_every == 0:
                fabric.barrier()


def _step(
    wrapped: Callable[[Tensor, Tensor, Tensor | None], Features],
    optimiser: torch.optim.Optimizer,
    stage: Stage,
    around: Surroundings,
    step: int,
) -> float:
    fabric, recipe = around.fabric, around.recipe
    for group in optimiser.param_groups:
        group["lr"] = stage.rate * rate(recipe, step, stage.steps)
    # This process's shards of the batch; their gradients are averaged here, the processes' by DDP.
    own = max(1, recipe.shards // fabric.world_size)
    total = torch.zeros((), device=fabric.device)
    operator, projection = around.operator, None
    if recipe.masks is Masks.LINES:
        height = around.slices.target.shape[1]
        mask = step_mask(height, seed=recipe.seed, step=stage.first + step)
        drawn = network_operator(around.spec, mask, Form.PROJECTION)
        operator, projection = fabric.to_device(drawn), drawn.numpy()
        if around.spec.channels == 2:
            projection = projection_matrix(mask).astype(np.complex64)
    for shard in range(own):
        x_u, target, *maps = draw(
            around.slices,
            recipe,
            step=stage.first + step,
            whole=not around.strips or step >= round(stage.steps * (1 - recipe.whole_slices)),
            flip=around.strips and recipe.flip,
            rank=fabric.global_rank * own + shard,
            world=fabric.world_size * own,
            projection=projection,
        )
        batch = Batch(
            x_u=fabric.to_device(x_u),
            target=fabric.to_device(target),
            operator=operator,
            progress=step / stage.steps,
            maps=fabric.to_device(maps[0]) if maps else None,
        )
        waits = fabric.world_size > 1 and shard + 1 < own
        with fabric.no_backward_sync(cast(Any, wrapped)) if waits else nullcontext():
            loss = stage.criterion(wrapped(batch.x_u, operator, batch.maps), batch) / own
            fabric.backward(loss)
        total += loss.detach()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
    # Over all processes, so that they go on or stop together.
    value = float(cast(Tensor, fabric.all_reduce(total, reduce_op="mean")))
    if not (math.isfinite(value) and math.isfinite(float(norm))):
        raise KdmriError(
            f"The loss of stage {stage.name!r} became {value:g} (gradient {float(norm):g}) at step"
            f" {step + 1}.",
            "Lower the learning rate, e.g. --set learning_rate=1e-3, or check the data.",
        )
    optimiser.step()
    optimiser.zero_grad()
    return value
