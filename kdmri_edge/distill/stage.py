"""One stage of training: a resumable loop on Lightning Fabric."""

from __future__ import annotations

import contextlib
import time
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from kdmri_edge.distill.average import Average
from kdmri_edge.distill.joint import Joint
from kdmri_edge.distill.progress import StageProgress
from kdmri_edge.distill.schedule import rate
from kdmri_edge.distill.stages import Stage, Surroundings
from kdmri_edge.distill.state import load_state, save_state
from kdmri_edge.distill.step import Steps, recorder
from kdmri_edge.distill.validation import validation_psnr
from kdmri_edge.models.branches import together
from kdmri_edge.models.build import Network
from kdmri_edge.models.features import Features
from kdmri_edge.models.stack import padded

__all__ = ["channels_last", "train"]

_Module = TypeVar("_Module", bound=nn.Module)


class _WithFeatures(nn.Module):
    """Make `features` the forward pass, which is what autocast and DDP wrap."""

    def __init__(self, network: Network | Joint) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Features:
        with together(self.network):
            return self.network.features(x_u, operator, maps)


def channels_last(network: _Module) -> _Module:
    """Lay the weights out channels-last, in place: several times faster convolutions on CPUs."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def train(network: Network | Joint, stage: Stage, around: Surroundings) -> None:
    """Train `network` in place for one stage, from its last checkpoint if there is one.

    Raises:
        KdmriError: The loss or its gradient is not finite.
        CheckpointError: The state to resume from is damaged or of other settings.
    """
    fabric, recipe = around.fabric, around.recipe
    channels_last(network)
    # Before the optimiser is restored: its state goes where the weights are.
    fabric.to_device(network)
    record = recorder(around)
    # One that a GPU takes its steps with alone, as recording wants it.
    alone = {"fused": True, "capturable": True} if record is not None else {}
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate, **alone)  # type: ignore[arg-type]
    average = Average(network, stage.ema) if stage.ema else None
    state_file = around.folder / f"{stage.name}.safetensors"
    done = load_state(state_file, network, optimiser, around.key, average)
    wrapped, optimiser = fabric.setup(_WithFeatures(network), optimiser)
    wrapped.train()
    do = Steps(wrapped, optimiser, average, stage, around, record)
    if around.log is not None:
        around.log.rewind(stage.name, done)
    began = time.perf_counter()
    show = fabric.is_global_zero
    # What tensor cores need, in training only.
    on_gpu = fabric.device.type == "cuda"
    with (
        contextlib.closing(do),
        padded(network) if on_gpu else nullcontext(),
        StageProgress(stage.title, stage.steps, done, show=show) as shown,
    ):
        for step in range(done, stage.steps):
            loss = do(step)
            finished = step + 1
            last = finished == stage.steps
            shown.advance(finished, loss)
            if last or finished % recipe.validate_every == 0:
                psnr = None
                if show and around.validation:
                    with nullcontext() if average is None else average.applied():
                        psnr = validation_psnr(network, around.operator, around.validation)
                    shown.validated(finished, loss, psnr)
                if around.log is not None:
                    seconds = time.perf_counter() - began
                    learning_rate = stage.rate * rate(recipe, step, stage.steps)
                    around.log.add(stage.name, finished, loss, learning_rate, psnr, seconds)
            if show and (last or finished % recipe.checkpoint_every == 0):
                save_state(state_file, network, optimiser, finished, around.key, average)
            if last or finished % recipe.validate_every == 0:
                fabric.barrier()
    if average is not None:
        average.apply()
