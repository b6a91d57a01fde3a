"""How fast training is: `python -m experiments.throughput`.

Two loops take turns in one process, so that their ratio holds on a noisy machine: the stage loop
of `kdmri-edge distill` (readout strips, channels-last, bf16 where the device has it, data
consistency as one float32 product), and a plain PyTorch loop as published code writes it
(whole slices, default layout, float32, data consistency by FFT over both axes). Both train the
same network with Adam on an L1 loss; the data is random, which does not change the time.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from torch.nn import functional as F

from experiments.script import Script, record
from kdmri_edge.distillation.batches import TrainingSlices
from kdmri_edge.distillation.engine import Engine, describe, make_fabric
from kdmri_edge.distillation.loop import train
from kdmri_edge.distillation.losses import distance
from kdmri_edge.distillation.recipe import DistillRecipe, load_recipe
from kdmri_edge.distillation.stages import Stage, TrainContext
from kdmri_edge.models.build import build_model
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.consistency import operator_tensor
from kdmri_edge.physics.masks import variable_density_lines
from kdmri_edge.physics.operators import Form
from kdmri_edge.utils.console import progress, say
from kdmri_edge.utils.provenance import provenance

__all__ = ["duration", "measure", "sentence"]

SCHEMA: Final = 1
_MATRIX: Final = 240
_SLICES: Final = 16
_PLAIN_BATCH: Final = 4  # of the published code
_LEAST_ON_GPU: Final = 800


def _ours(network_name: str, steps: int, folder: Path, recipe: DistillRecipe) -> tuple[Any, Any]:
    """Return what the stage loop trains, and a call that trains it for `steps` steps."""
    mask = variable_density_lines(_MATRIX, 4.0, seed=0)
    fabric = make_fabric(Engine(), recipe.precision)
    random = np.random.default_rng(0)
    target = random.random((_SLICES, _MATRIX, _MATRIX), np.float32)
    context = TrainContext(
        fabric=fabric,
        recipe=recipe,
        slices=TrainingSlices(target, target.copy()),
        validation=(),
        mask=mask,
        operator=fabric.to_device(operator_tensor(mask, Form.PROJECTION, 1)),
        spec=preset(network_name),
        folder=folder,
        log=None,
        key="throughput",
    )
    torch.manual_seed(0)
    network = build_model(preset(network_name))
    network.form = Form.PROJECTION
    number = iter(range(1_000_000))

    def call() -> None:
        stage = Stage(
            name=f"stage-{next(number)}",
            title="stage loop",
            steps=steps,
            criterion=lambda features, batch: distance(
                recipe.optim.loss, features.output, batch.target
            ),
        )
        train(network, stage, context)

    return fabric, call


def _plain(network_name: str, steps: int, device: torch.device) -> Callable[[], None]:
    """Return a call that runs the plain loop for `steps` steps of `_PLAIN_BATCH` slices."""
    mask = variable_density_lines(_MATRIX, 4.0, seed=0)
    torch.manual_seed(0)
    network = build_model(preset(network_name)).to(device)
    network.form = Form.FFT
    operator = operator_tensor(mask, Form.FFT, 1).expand(_MATRIX, _MATRIX).contiguous().to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    x_u = torch.rand(_PLAIN_BATCH, 1, _MATRIX, _MATRIX, device=device)
    target = torch.rand(_PLAIN_BATCH, 1, _MATRIX, _MATRIX, device=device)

    def call() -> None:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=True):
            loop()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def loop() -> None:  # with PyTorch's own settings
        for _ in range(steps):
            loss = F.l1_loss(network(x_u, operator), target)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    return call


def _seconds(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(network_name: str = "dccnn-d3c5", *, rounds: int = 5, steps: int = 8) -> dict[str, Any]:
    """Time both loops in turns.

    Args:
        network_name: Preset to train.
        rounds: How often each loop has its turn, after one to warm up.
        steps: Steps of the stage loop per turn, on a GPU at least 800; the plain loop, whose
            steps are slower, takes a quarter of them.

    Returns:
        Slices of 240 x 240 per second (median over rounds, and each round's), their ratio (median
        of the rounds' ratios, smallest and largest), what ran, and the provenance.

    Raises:
        ModelError: No such preset.
    """
    recipe = DistillRecipe(name="throughput", validate_every=10**9, checkpoint_every=10**9)
    if torch.cuda.is_available():  # where a turn's first steps are recorded, the rest replayed
        steps = max(steps, _LEAST_ON_GPU)
    strips = (
        recipe.batches.size * recipe.batches.strip / _MATRIX * (1 - recipe.batches.whole_slices)
    )
    whole = (
        max(1, round(recipe.batches.size * recipe.batches.strip / _MATRIX))
        * recipe.batches.whole_slices
    )
    plain_steps = max(1, steps // 4)
    with tempfile.TemporaryDirectory() as folder:
        fabric, ours = _ours(network_name, steps, Path(folder), recipe)
        plain = _plain(network_name, plain_steps, fabric.device)
        ours(), plain()
        speeds: list[tuple[float, float]] = []
        with progress("Training loops", rounds) as advance:
            for _ in range(rounds):
                speeds.append(
                    (
                        steps * (strips + whole) / _seconds(ours),
                        plain_steps * _PLAIN_BATCH / _seconds(plain),
                    )
                )
                advance(1)
        ran = describe(fabric)
    ratios = [a / b for a, b in speeds]
    return {
        "schema": SCHEMA,
        "network": network_name,
        "matrix": _MATRIX,
        "ran_on": ran,
        "kdmri_edge": _summary([a for a, _ in speeds]),
        "plain_loop": _summary([b for _, b in speeds]),
        "ratio": {
            "median": statistics.median(ratios),
            "smallest": min(ratios),
            "largest": max(ratios),
        },
        "rounds": rounds,
        "provenance": provenance(0),
    }


def sentence(result: dict[str, Any]) -> str:
    """Say the result in one sentence."""
    ratio, size = result["ratio"], result["matrix"]
    return (
        f"Training {result['network']} on {result['ran_on']['device']}"
        f" ({result['ran_on']['threads']} threads, {result['ran_on']['precision']}):"
        f" {result['kdmri_edge']['slices_per_s']:.1f} slices of {size} x {size} per second; a plain"
        f" PyTorch loop (default layout, float32, whole slices, FFT)"
        f" {result['plain_loop']['slices_per_s']:.1f}: {ratio['median']:.1f}x as fast"
        f" ({ratio['smallest']:.1f} to {ratio['largest']:.1f} over {result['rounds']} rounds that"
        " took turns)."
    )


def duration(result: dict[str, Any]) -> str:
    """Say what a distillation with the default recipe takes at the rate that was measured."""
    recipe = load_recipe("edge")
    trained, size = result["network"], result["matrix"]
    slices = recipe.batches.size * recipe.batches.strip / size  # as many pixels
    macs = {
        name: sum(preset(name).macs(size, size).values())
        for name in (trained, "dccnn-d3c5", "dccnn-d5c5")
    }
    pace = slices / result["kdmri_edge"]["slices_per_s"] / macs[trained] / 3600  # hours
    student = recipe.imitation_steps * pace * macs["dccnn-d3c5"]
    teacher = recipe.teacher_steps * pace * macs["dccnn-d5c5"]
    return (
        f"Recipe `edge` has {recipe.teacher_steps:,} steps of {recipe.batches.size} strips of"
        f" {recipe.batches.strip} columns for each of three networks. At the"
        f" {result['kdmri_edge']['slices_per_s']:.1f} slices of {size} x {size} per second of"
        f" {trained} on {result['ran_on']['device']}, {result['ran_on']['threads']} threads,"
        f" {result['ran_on']['precision']}, these are at least {teacher:.1f} hours for the teacher"
        f" and {student:.1f} for each student (imitation, which runs the teacher too, and"
        f" validation not counted)."
    )


def _summary(speeds: list[float]) -> dict[str, Any]:
    return {"slices_per_s": statistics.median(speeds), "rounds": speeds}


@click.command(cls=Script)
@click.option("--network", default="dccnn-d3c5", show_default=True, help="Preset to train.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1, 1000))
@click.option(
    "--steps", default=8, show_default=True, type=click.IntRange(4), help="Per turn, stage loop."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write report.json into this folder.")
def main(network: str, rounds: int, steps: int, out: Path | None) -> None:
    """Compare the training loop's speed with a plain PyTorch loop's, in one run."""
    result = measure(network, rounds=rounds, steps=steps)
    record(result, out)
    say(sentence(result))


if __name__ == "__main__":
    main()
