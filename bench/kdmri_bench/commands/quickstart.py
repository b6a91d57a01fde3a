"""`kdmri-edge quickstart`."""

from __future__ import annotations

from pathlib import Path

import click

from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import json_option

__all__ = ["quickstart"]


@click.command(cls=Command)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("quickstart"),
    show_default=True,
    help="Folder of the run.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one key of the quickstart recipe, e.g. teacher_steps=2000.",
)
@json_option("Print the report as JSON, not as a table.")
def quickstart(out: Path, assignments: tuple[str, ...], as_json: bool) -> None:
    """Distil, export and benchmark on an embedded phantom, in minutes on two cores.

    It trains a teacher and two students, exports them for every runtime that this machine has,
    measures each, and writes a page. It shows that the whole path works here. How good a student
    gets is shown by `kdmri-edge distill` on your own data, with its full number of steps.
    """
    from kdmri_edge.utils.extras import require

    require("torch", extra="all")
    require("lightning_fabric", extra="all")
    require("matplotlib", extra="all")
    from kdmri_bench.commands.outcome import next_steps, print_outcome
    from kdmri_bench.planning.settings import BenchSettings
    from kdmri_bench.quickstart import quickstart as run_quickstart
    from kdmri_edge.distillation.recipe import load_recipe
    from kdmri_edge.utils.console import say

    settings = BenchSettings(samples=20, warmup=3, rounds=1, end_to_end=5)
    done = run_quickstart(out, load_recipe("quickstart", assignments), settings)
    print_outcome(done.benchmark, as_json=as_json)
    say("Next, with what was made:")
    for step in next_steps(done.benchmark, [out]):
        say(f"  {step}")
    say("Then, on your own volumes (NIfTI, DICOM, HDF5, .npy, ...):")
    say("  kdmri-edge distill --data DIR --acceleration 4 --out runs/mine")
    say("  kdmri-edge bench runs/mine --data DIR")
