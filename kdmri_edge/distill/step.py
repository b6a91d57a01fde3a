"""One optimiser step of a stage: batch, gradients, update."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdmri_edge.distill.average import Average
from kdmri_edge.distill.batches import draw
from kdmri_edge.distill.masks import sees_other_mask, step_mask
from kdmri_edge.distill.noise import step_noise
from kdmri_edge.distill.recipe import Masks
from kdmri_edge.distill.replay import CudaRecorder, Record, Replayed
from kdmri_edge.distill.schedule import rate
from kdmri_edge.distill.stages import Batch, Stage, Surroundings
from kdmri_edge.errors import KdmriError
from kdmri_edge.models.features import Features
from kdmri_edge.models.spec import ModelSpec
from kdmri_edge.physics.forms import Form
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.projection import projection_matrix
from kdmri_edge.reconstructor import network_operator

__all__ = ["Steps", "recorder"]

Wrapped = Callable[[Tensor, Tensor, Tensor | None], Features]


def recorder(around: Surroundings) -> Record | None:
    """Return what records a training's steps; None where they run as they are.

    That is on CPUs, and among several processes, whose gradients meet in every step.
    """
    alone = around.fabric.world_size == 1
    return CudaRecorder() if alone and around.fabric.device.type == "cuda" else None


class Steps:
    """The steps of one stage.

    Args:
        wrapped: The network, as Fabric wraps it.
        optimiser: Adam over its parameters, wrapped alike; with a recorder it must be one whose
            steps can be recorded.
        average: Running average of the weights; None for none.
        stage: What is trained.
        around: What all stages share.
        record: See `recorder`.
    """

    def __init__(
        self,
        wrapped: Wrapped,
        optimiser: torch.optim.Optimizer,
        average: Average | None,
        stage: Stage,
        around: Surroundings,
        record: Record | None,
    ) -> None:
        self._wrapped, self._optimiser, self._average = wrapped, optimiser, average
        self._stage, self._around = stage, around
        # This process's shards of the batch; their gradients are averaged here, the processes' by
        # DDP.
        self._own = max(1, around.recipe.shards // around.fabric.world_size)
        # Noise needs the targets undersampled anew, also with the run's own mask.
        self._projection = None
        if stage.noise:
            own = network_operator(around.spec, around.mask, Form.PROJECTION)
            self._projection = _projection(around.mask, around.spec, own)
        self._replayed = None
        if record is not None:
            self._replayed = Replayed(self._whole, record, around.fabric.device)
            for group in optimiser.param_groups:  # a number would be recorded as it is
                group["lr"] = torch.zeros((), device=around.fabric.device)

    def __call__(self, step: int) -> float:
        """Do a step; return its loss.

        Raises:
            KdmriError: The loss or its gradient is not finite.
        """
        stage = self._stage
        progress = step / stage.steps
        self._set_rate(stage.rate * rate(self._around.recipe, step, stage.steps))
        tensors = self._draw(step)
        if self._replayed is None:
            total, norm = self._gradients(tensors, progress)
            value = self._checked(total, norm, step)
            self._update()
            return value
        total, norm = self._replayed(tensors, kind=progress >= stage.switch)
        return self._checked(total, norm, step)

    def close(self) -> None:
        """Let go of what was recorded."""
        if self._replayed is not None:
            self._replayed.forget()

    def _set_rate(self, value: float) -> None:
        for group in self._optimiser.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    def _draw(self, step: int) -> list[Tensor]:
        """Return operator and, shard by shard, zero-filled images, targets and coil maps."""
        stage, around = self._stage, self._around
        recipe, fabric = around.recipe, around.fabric
        number = stage.first + step
        operator, projection = around.operator, self._projection
        if recipe.masks is Masks.LINES or sees_other_mask(
            stage.other_masks, seed=recipe.seed, step=number
        ):
            height = around.slices.target.shape[1]
            mask = step_mask(height, seed=recipe.seed, step=number)
            # Recorded, of one shape: another one would have to be recorded anew.
            operator = network_operator(
                around.spec, mask, Form.PROJECTION, any_mask=self._replayed is not None
            )
            projection = _projection(mask, around.spec, operator)
        noise = step_noise(stage.noise, seed=recipe.seed, step=number)
        tensors = [operator]
        for shard in range(self._own):
            tensors += draw(
                around.slices,
                recipe,
                step=number,
                whole=not around.strips or step >= round(stage.steps * (1 - recipe.whole_slices)),
                flip=around.strips and recipe.flip,
                rank=fabric.global_rank * self._own + shard,
                world=fabric.world_size * self._own,
                projection=projection,
                noise=noise,
            )
        return tensors

    def _gradients(self, tensors: Sequence[Tensor], progress: float) -> tuple[Tensor, Tensor]:
        """Return the loss and the norm of its gradient, which is clipped."""
        fabric, stage = self._around.fabric, self._stage
        total = torch.zeros((), device=fabric.device)
        operator, images = fabric.to_device(tensors[0]), tensors[1:]
        each = len(images) // self._own
        for shard in range(self._own):
            shares = images[shard * each : (shard + 1) * each]
            x_u, target, *maps = [fabric.to_device(t) for t in shares]
            batch = Batch(
                x_u=x_u,
                target=target,
                operator=operator,
                progress=progress,
                maps=maps[0] if maps else None,
            )
            waits = fabric.world_size > 1 and shard + 1 < self._own
            with fabric.no_backward_sync(cast(Any, self._wrapped)) if waits else nullcontext():
                features = self._wrapped(batch.x_u, operator, batch.maps)
                loss = stage.criterion(features, batch) / self._own
                fabric.backward(loss)
            total += loss.detach()
        parameters = [p for group in self._optimiser.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._around.recipe.clip)
        return total, norm

    def _update(self) -> None:
        self._optimiser.step()
        self._optimiser.zero_grad()
        if self._average is not None:
            self._average.update()

    def _whole(self, tensors: Sequence[Tensor], kind: Hashable) -> tuple[Tensor, Tensor]:
        """Do what of a step is the device's alone; the kind is whether it is past the switch."""
        result = self._gradients(tensors, self._stage.switch if kind else 0.0)
        self._update()
        return result

    def _checked(self, total: Tensor, norm: Tensor, step: int) -> float:
        # Over all processes, so that they go on or stop together.
        value = float(cast(Tensor, self._around.fabric.all_reduce(total, reduce_op="mean")))
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise KdmriError(
                f"The loss of stage {self._stage.name!r} became {value:g} (gradient"
                f" {float(norm):g}) at step {step + 1}.",
                "Lower the learning rate, e.g. --set learning_rate=1e-3, or check the data.",
            )
        return value


def _projection(mask: Mask, spec: ModelSpec, operator: Tensor) -> NDArray[Any]:
    """Return what undersamples magnitudes (Re P, which is the operator) or complex images (P)."""
    if spec.channels == 2:
        return projection_matrix(mask).astype(np.complex64)
    matrix: NDArray[np.float32] = operator.numpy()
    return matrix
