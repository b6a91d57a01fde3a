"""One stage of training: a resumable loop on Lightning Fabric."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdmri_edge.data.case import Case
from kdmri_edge.distillation.batches import (
    drawn,
    inserted_into,
    parts,
    seen,
    sees_other_mask,
    step_mask,
    step_matrix,
    step_noise,
    tensors,
)
from kdmri_edge.distillation.engine import in_bf16
from kdmri_edge.distillation.initial_weights import seeded
from kdmri_edge.distillation.log import StageProgress
from kdmri_edge.distillation.losses import Joint
from kdmri_edge.distillation.optimizers import over
from kdmri_edge.distillation.prefetch import Prefetch
from kdmri_edge.distillation.recipe import DistillRecipe, Masks, Schedule
from kdmri_edge.distillation.replay import CudaRecorder, Record, Replayed
from kdmri_edge.distillation.stages import Batch, Inputs, Sized, Stage, TrainContext
from kdmri_edge.distillation.state import WeightAverage, load_state, save_state
from kdmri_edge.distillation.stored import AnyCase
from kdmri_edge.distillation.taps import Taught
from kdmri_edge.errors import Interrupted, KdmriError
from kdmri_edge.models.blocks import channels_last, padded, sound_gradients
from kdmri_edge.models.network import Features, Network, network_operator
from kdmri_edge.models.protocol import NetworkSpec
from kdmri_edge.models.reparameterisation import sum_branches_once
from kdmri_edge.physics.consistency import maps_tensor
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import Form, projection_matrix
from kdmri_edge.physics.scaling import network_image
from kdmri_edge.utils.console import Phase, progress
from kdmri_edge.utils.interrupts import StopRequest, stop_on_interrupt

__all__ = ["TrainStep", "rate", "recorder", "thinned", "train", "validation_psnr"]

# 40, 80 and 120 of 150 epochs, as KD-MRI's published code trains its teacher.
_MILESTONES = (40 / 150, 80 / 150, 120 / 150)

_STOPPING = "Stopping after this step, which is then saved. Ctrl-C again ends at once."
# Slices that networks are evaluated on at once.
_AT_ONCE = 4


def rate(recipe: DistillRecipe, step: int, steps: int) -> float:
    """Return the learning rate of a step.

    Args:
        recipe: Gives peak, warm-up, course and final fraction.
        step: Step within the stage, from 0.
        steps: Steps of the stage.
    """
    warmup = min(recipe.optim.warmup, steps // 4)
    if step < warmup:
        return recipe.optim.learning_rate * (step + 1) / warmup
    if recipe.optim.schedule is Schedule.CONSTANT:
        return recipe.optim.learning_rate
    if recipe.optim.schedule is Schedule.STEP:
        return recipe.optim.learning_rate * 0.1 ** sum(step >= steps * part for part in _MILESTONES)
    done = (step - warmup) / max(1, steps - warmup)
    course = 0.5 * (1 + math.cos(math.pi * done))
    return recipe.optim.learning_rate * (
        recipe.optim.final_rate + (1 - recipe.optim.final_rate) * course
    )


def thinned(cases: Sequence[AnyCase], slices: int) -> list[Case]:
    """Keep about `slices` slices in all, spread evenly over all of them; quick to evaluate.

    Of more volumes than that some are left out.
    """
    total = sum(case.count for case in cases)
    every = max(1, round(total / slices))
    kept, begin = [], every // 2
    for case in cases:
        count = case.count
        own = slice(begin, None, every)
        chosen = range(count)[own]
        if chosen:
            kept.append(case.part(own))
        begin += len(chosen) * every - count
    return kept


@torch.no_grad()
def validation_psnr(
    model: nn.Module, operator: Tensor, cases: Sequence[AnyCase], title: str = "validation"
) -> float:
    """Return the mean over volumes of the PSNR in dB, in float32.

    Data range is the maximum of the target's slices, as in the benchmark.

    Args:
        model: The network; it is left in training mode.
        operator: Constant of data consistency, on the network's device.
        cases: Volumes, at least one.
        title: What to call it while it takes its time.
    """
    model.eval()
    with progress(title, sum(case.count for case in cases)) as advance:
        # of volumes in files one after another
        values = [_psnr(model, operator, case.part(slice(None)), advance) for case in cases]
    model.train()
    return float(np.mean(values))


def _psnr(model: nn.Module, operator: Tensor, case: Case, advance: Phase) -> float:
    """Return the PSNR of one volume in dB."""
    calls = []
    for start in range(0, len(case.target), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        x = torch.from_numpy(case.network_input(part)).to(operator.device)
        if not case.kspace:
            x = x.contiguous(memory_format=torch.channels_last)
        own = case.maps_of(part)
        maps = None if own is None else maps_tensor(own).to(operator.device)
        calls.append(model(x, operator, maps).cpu().numpy())
        advance(len(x))
    output = network_image(np.concatenate(calls), case.scale)
    error = np.mean(np.abs(output - case.target) ** 2, dtype=np.float64)
    return float(10 * np.log10(float(np.abs(case.target).max()) ** 2 / error))


Wrapped = Callable[[Tensor, Tensor, Tensor | None], Features]


def recorder(context: TrainContext) -> Record | None:
    """Return what records a training's steps; None where they run as they are.

    That is on CPUs, and among several processes, whose gradients meet in every step.
    """
    alone = context.fabric.world_size == 1
    return CudaRecorder() if alone and context.fabric.device.type == "cuda" else None


class TrainStep:
    """The steps of one stage.

    Args:
        wrapped: The network, as Fabric wraps it.
        optimiser: Of its parameters, wrapped alike; with a recorder it must be one whose
            steps can be recorded.
        average: Running average of the weights; None for none.
        stage: What is trained.
        context: What all stages share.
        record: See `recorder`.
        stop: Whether the user has asked this process to stop.
    """

    def __init__(
        self,
        wrapped: Wrapped,
        optimiser: torch.optim.Optimizer,
        average: WeightAverage | None,
        stage: Stage,
        context: TrainContext,
        record: Record | None,
        stop: StopRequest,
    ) -> None:
        self._stop, self._stopped = stop, False
        self._wrapped, self._optimiser, self._average = wrapped, optimiser, average
        self._stage, self._context = stage, context
        # This process's shards of the batch; their gradients are averaged here, the processes' by
        # DDP.
        self._own = max(1, context.recipe.batches.shards // context.fabric.world_size)
        self._batches = Prefetch(self._arrays, stage.steps, context.workers)
        # Who reads the batches: the network in training, and a teacher that reads another input.
        self._readers = [context]
        if stage.taught and context.teacher is not None:
            self._readers.append(context.teacher)
        # Noise needs the targets undersampled anew, also with the run's own mask; of inserted
        # structures what that mask samples is added.
        self._projections: dict[int | None, list[NDArray[Any] | None]] = {}
        self._inserts = context.recipe.insertion.share > 0
        if stage.noise or self._inserts:
            places: list[int | None] = [*range(len(context.sizes))] or [None]
            self._projections = {
                place: [
                    _projection(
                        own.mask,
                        reader.spec,
                        network_operator(reader.spec, own.mask, Form.PROJECTION),
                    )
                    for reader, own in zip(self._readers, self._sized(place), strict=True)
                ]
                for place in places
            }
        self._replayed = None
        if record is not None:
            self._replayed = Replayed(self._whole, record, context.fabric.device)
            for group in optimiser.param_groups:  # a number would be recorded as it is
                group["lr"] = torch.zeros((), device=context.fabric.device)

    def __call__(self, step: int) -> float:
        """Do a step; return its loss.

        Raises:
            KdmriError: The loss or its gradient is not finite.
        """
        stage = self._stage
        progress = step / stage.steps
        self._set_rate(stage.rate * rate(self._context.recipe, step, stage.steps))
        given = self._draw(step)
        if self._replayed is None:
            total, norm = self._gradients(given, progress, stage.first + step)
            value = self._checked(total, norm, step)
            self._update()
            return value
        total, norm = self._replayed(given, kind=progress >= stage.switch)
        return self._checked(total, norm, step)

    @property
    def stopped(self) -> bool:
        """Whether any process was asked to stop before the last step ended."""
        return self._stopped

    @property
    def waited(self) -> float:
        """Seconds that the steps have waited for their batches."""
        return self._batches.waited

    def close(self) -> None:
        """Let go of what was recorded, and of what was drawn ahead."""
        self._batches.close()
        if self._replayed is not None:
            self._replayed.forget()

    def _set_rate(self, value: float) -> None:
        for group in self._optimiser.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    def _sized(self, place: int | None) -> list[Sized]:
        """Return what the readers see of one of the recipe's matrices, None for the run's own."""
        return [reader if place is None else reader.sizes[place] for reader in self._readers]

    def _draw(self, step: int) -> list[Tensor]:
        """Return the readers' operators and the tensors of what each of them reads."""
        operators, arrays = self._batches(step)
        return [*operators, *tensors(arrays)]

    def _arrays(self, step: int) -> tuple[list[Tensor], list[NDArray[np.float32]]]:
        """Return the readers' operators and, shard by shard, what each of them reads.

        That is zero-filled images, targets and coil maps, of the same parts of the same slices;
        then the weights of the contrasts of inserted structures, if there are any.
        """
        stage, context = self._stage, self._context
        recipe, fabric = context.recipe, context.fabric
        number = stage.first + step
        place = None
        if context.sizes:
            place = step_matrix(len(context.sizes), seed=recipe.seed, step=number)
        sized = self._sized(place)
        operators = [own.operator for own in sized]
        nothing: list[NDArray[Any] | None] = [None] * len(sized)
        own_projections = self._projections.get(place, nothing)
        projections = own_projections if stage.noise else nothing
        if recipe.batches.masks is Masks.LINES or sees_other_mask(
            stage.other_masks, seed=recipe.seed, step=number
        ):
            height = sized[0].slices.target.shape[1]
            mask = step_mask(height, seed=recipe.seed, step=number)
            # Recorded, of one shape: another one would have to be recorded anew.
            recorded = self._replayed is not None
            operators = [
                network_operator(reader.spec, mask, Form.PROJECTION, any_mask=recorded)
                for reader in self._readers
            ]
            projections = [
                _projection(mask, reader.spec, operator)
                for reader, operator in zip(self._readers, operators, strict=True)
            ]
        noise = step_noise(stage.noise, seed=recipe.seed, step=number)
        arrays: list[NDArray[np.float32]] = []
        for shard in range(self._own):
            share: dict[str, Any] = {
                "step": number,
                "whole": not context.strips
                or step >= round(stage.steps * (1 - recipe.batches.whole_slices)),
                "flip": context.strips and recipe.batches.flip,
                "rank": self._rank(shard),
                "world": fabric.world_size * self._own,
            }
            inserted = None
            if self._inserts:
                shown = parts(sized[0].slices, recipe, **share)
                inserted = inserted_into(sized[0].slices, recipe, shown, step=number)
            for own, projection, of_own in zip(sized, projections, own_projections, strict=True):
                arrays += drawn(
                    own.slices,
                    recipe,
                    **share,
                    projection=projection,
                    noise=noise,
                    inserted=inserted,
                    own_projection=of_own,
                )
            if inserted is not None:
                arrays.append(seen(inserted.contrasts, shown))
        return operators, arrays

    def _batch(
        self, operators: Sequence[Tensor], images: Iterator[Tensor], progress: float
    ) -> Batch:
        """Put a shard of what was drawn together, on the device."""
        read = [
            {
                "operator": operator,
                "x_u": next(images),
                "target": next(images),
                "maps": None if reader.slices.maps is None else next(images),
            }
            for reader, operator in zip(self._readers, operators, strict=True)
        ]
        own, *other = read
        teacher = Inputs(**cast(Any, other[0])) if other else None
        contrasts = next(images) if self._inserts else None
        return Batch(**cast(Any, own), progress=progress, teacher=teacher, contrasts=contrasts)

    def _gradients(
        self, given: Sequence[Tensor], progress: float, number: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the norm of its gradient, which is clipped.

        Args:
            given: From `_draw`.
            progress: Part of the stage that is done.
            number: Of the step within the run, by which a network's own random numbers are drawn
                (dropout), so that a resumed run has those of one that was not interrupted; None
                where a step is recorded.
        """
        fabric, stage = self._context.fabric, self._stage
        total = torch.zeros((), device=fabric.device)
        count = len(self._readers)
        operators = [fabric.to_device(operator) for operator in given[:count]]
        images = (fabric.to_device(tensor) for tensor in given[count:])
        for shard in range(self._own):
            batch = self._batch(operators, images, progress)
            waits = fabric.world_size > 1 and shard + 1 < self._own
            with (
                nullcontext() if number is None else self._seeded(number, self._rank(shard)),
                fabric.no_backward_sync(cast(Any, self._wrapped)) if waits else nullcontext(),
            ):
                features = self._wrapped(batch.x_u, batch.operator, batch.maps)
                loss = stage.criterion(features, batch) / self._own
                fabric.backward(loss)
            total += loss.detach()
        parameters = [p for group in self._optimiser.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._context.recipe.optim.clip)
        return total, norm

    def _seeded(self, number: int, rank: int) -> contextlib.AbstractContextManager[None]:
        """Draw PyTorch's random numbers by seed, step and shard."""
        seeds = np.random.SeedSequence((self._context.recipe.seed, number, rank))
        seed = int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1))
        return seeded(seed, self._context.fabric.device)

    def _rank(self, shard: int) -> int:
        """Return the number of one of this process's shards among those of all processes."""
        return self._context.fabric.global_rank * self._own + shard

    def _update(self) -> None:
        self._optimiser.step()
        self._optimiser.zero_grad()
        if self._average is not None:
            self._average.update()

    def _whole(self, given: Sequence[Tensor], kind: Hashable) -> tuple[Tensor, Tensor]:
        """Do what of a step is the device's alone; the kind is whether it is past the switch."""
        result = self._gradients(given, self._stage.switch if kind else 0.0)
        self._update()
        return result

    def _checked(self, total: Tensor, norm: Tensor, step: int) -> float:
        # Over all processes, so that they go on or stop together.
        asked = torch.full_like(total, float(self._stop.asked))
        both = torch.stack((total, asked))
        reduced = cast(Tensor, self._context.fabric.all_reduce(both, reduce_op="mean"))
        value, self._stopped = float(reduced[0]), bool(reduced[1] > 0)
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise KdmriError(
                f"The loss of stage {self._stage.name!r} became {value:g} (gradient"
                f" {float(norm):g}) at step {step + 1}.",
                "Lower the learning rate, e.g. --set optim.learning_rate=1e-3, or check the data.",
            )
        return value


def _projection(mask: Mask, spec: NetworkSpec, operator: Tensor) -> NDArray[Any]:
    """Return what undersamples magnitudes (Re P, which is the operator) or complex images (P)."""
    if spec.channels == 2:
        return projection_matrix(mask).astype(np.complex64)
    matrix: NDArray[np.float32] = operator.numpy()
    return matrix


class _WithFeatures(nn.Module):
    """Make `features` the forward pass, which is what autocast and DDP wrap."""

    def __init__(self, network: Network | Joint | Taught) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Features:
        with sum_branches_once(self.network):
            return self.network.features(x_u, operator, maps)


def _part(waited: float, seconds: float) -> float:
    return waited / seconds if seconds > 0 else 0.0


def _evaluated(network: Network | Joint | Taught, context: TrainContext) -> int:
    """Evaluate a network on a few slices, for how long that takes; return how many."""
    if not context.validation:
        return 0
    few = context.validation[0].part(slice(_AT_ONCE))
    validation_psnr(network, context.operator, [few], "expected duration")
    return len(few.target)


def train(network: Network | Joint | Taught, stage: Stage, context: TrainContext) -> None:
    """Train `network` in place for one stage, from its last checkpoint if there is one.

    Raises:
        Interrupted: The user has asked to stop; the state after the last step is saved.
        KdmriError: The loss or its gradient is not finite.
        CheckpointError: The state to resume from is damaged or of other settings.
    """
    fabric, recipe = context.fabric, context.recipe
    channels_last(network)
    # Before the optimiser is restored: its state goes where the weights are.
    fabric.to_device(network)
    record = recorder(context)
    optim = recipe.optim
    optimiser = over(network, optim.optimizer, optim.learning_rate, recorded=record is not None)
    average = WeightAverage(network, stage.ema) if stage.ema else None
    state_file = context.folder / f"{stage.name}.safetensors"
    done = load_state(state_file, network, optimiser, context.key, average)
    wrapped, optimiser = fabric.setup(_WithFeatures(network), optimiser)
    wrapped.train()
    if context.log is not None:
        context.log.rewind(stage.name, done)
    began = time.perf_counter()
    show = fabric.is_global_zero
    # In training only: what tensor cores need, and what CPUs get wrong otherwise.
    on_gpu = fabric.device.type == "cuda"
    on_cpu = fabric.device.type == "cpu" and in_bf16(fabric)
    with (
        stop_on_interrupt(_STOPPING if show else None) as stop,
        contextlib.closing(
            TrainStep(wrapped, optimiser, average, stage, context, record, stop)
        ) as train_step,
        # not of tapped networks: padded convolutions are not called as modules
        padded(network) if on_gpu and not isinstance(network, Taught) else nullcontext(),
        sound_gradients(network) if on_cpu else nullcontext(),
        StageProgress(
            stage.title, stage.steps, done, show=show, streamed=context.workers > 0
        ) as shown,
    ):
        for step in range(done, stage.steps):
            loss = train_step(step)
            finished = step + 1
            last = finished == stage.steps
            if context.forecast is not None:
                context.forecast.stepped(stage.name, finished, lambda: _evaluated(network, context))
            if last or finished % recipe.validate_every == 0:
                psnr = None
                if show and context.validation:
                    with nullcontext() if average is None else average.applied():
                        title = f"{stage.title}: validation"
                        psnr = validation_psnr(network, context.operator, context.validation, title)
                    shown.validated(finished, loss, psnr)
                if context.log is not None:
                    seconds = time.perf_counter() - began
                    learning_rate = stage.rate * rate(recipe, step, stage.steps)
                    waiting = _part(train_step.waited, seconds)
                    context.log.add(
                        stage.name, finished, loss, learning_rate, psnr, seconds, waiting
                    )
            # Not before the validation: the bar would stand at its end meanwhile.
            shown.waited(_part(train_step.waited, time.perf_counter() - began))
            shown.advance(finished, loss)
            stopped = train_step.stopped
            if show and (last or stopped or finished % recipe.checkpoint_every == 0):
                save_state(state_file, network, optimiser, finished, context.key, average)
            if last or finished % recipe.validate_every == 0:
                fabric.barrier()
            if stopped:
                raise Interrupted(
                    f"Interrupted after step {finished} of {stage.steps} of {stage.title}, which is"
                    " saved."
                )
    if average is not None:
        average.apply()
