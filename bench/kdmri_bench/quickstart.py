"""The whole path on the embedded phantom: distil, export, benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdmri_bench.benchmark import Benchmark, measure_networks
from kdmri_bench.measuring.device import load_average
from kdmri_bench.planning.settings import BenchSettings
from kdmri_bench.planning.testdata import TestData
from kdmri_edge.data.case import make_case
from kdmri_edge.data.datasets import phantom_parts
from kdmri_edge.distillation.recipe import DistillRecipe
from kdmri_edge.distillation.request import PHANTOM, Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.masks import variable_density_lines
from kdmri_edge.utils.console import say

__all__ = ["MATRIX", "Quickstart", "quickstart"]

MATRIX = 240
_ACCELERATION = 4.0
_STATEMENT = "a procedural phantom (retrospective, single-coil, zero-phase k-space)"


@dataclass(frozen=True)
class Quickstart:
    """What a quickstart leaves.

    Attributes:
        run: The trained networks and their exports.
        benchmark: Their comparison.
    """

    run: Run
    benchmark: Benchmark


def quickstart(out: Path, recipe: DistillRecipe, settings: BenchSettings) -> Quickstart:
    """Distil on the phantom, export every network for every runtime of this machine, compare them.

    Args:
        out: The run folder; a run of the same settings there goes on where it stopped.
        recipe: Training settings.
        settings: Benchmark settings.

    Raises:
        RunError: `out` holds another run.
        KdmriError: See `distill` and `bench`.
    """
    load = load_average()  # of others: training keeps the machine busy itself
    mask = variable_density_lines(MATRIX, _ACCELERATION, seed=recipe.seed)
    request = Settings(
        data=PHANTOM,
        contrast=None,
        split=None,
        matrix=MATRIX,
        mask=mask,
        teacher="dccnn-d5c5",
        teacher_spec=preset("dccnn-d5c5"),
        student="dccnn-d3c5",
        student_spec=preset("dccnn-d3c5"),
        baseline=True,
        recipe=recipe,
    )
    say(f"1 of 2: training a teacher and two students on {recipe.phantom_volumes} drawn heads.")
    run = distill(request, out)
    say("2 of 2: exporting them for each runtime of this machine, and measuring them.")
    volumes = phantom_parts(
        recipe.seed,
        recipe.phantom_volumes,
        slices=recipe.phantom_slices,
        matrix=MATRIX,
        wanted=["test"],
    )["test"]
    cases = tuple(make_case(volume, mask) for volume in volumes)
    data = TestData(cases=cases, split=PHANTOM, statement=_STATEMENT)
    measured = measure_networks(run, data, settings, out=out / "bench", load=load)
    return Quickstart(run, measured)
