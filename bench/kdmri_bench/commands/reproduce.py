"""`kdmri-edge reproduce`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kdmri_bench.commands.options import threads_option
from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import json_option
from kdmri_edge.errors import BenchError
from kdmri_edge.utils.console import print_result

__all__ = ["reproduce"]


def _accelerations(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise BenchError(
            f"--accelerations {text!r} is no list of whole numbers.", "Write e.g. 4,5,8."
        ) from None


@click.command(cls=Command)
@click.argument("task", metavar="brain|cardiac|sr")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path),
    help="Folder of volumes; its subjects must follow the recorded split of the task.",
)  # fmt: skip
@click.option(
    "--masks", type=click.Path(path_type=Path),
    help="The paper's masks, kd_mri_masks.json.  [default: ../masks/ beside the data]",
)  # fmt: skip
@click.option("--accelerations", default="4,5,8", show_default=True, help="Comma-separated.")
@click.option(
    "--folds/--no-folds", default=True, show_default=True,
    help="Also train the three folds at 4x, so that every brain is a test subject once.",
)  # fmt: skip
@click.option("--seeds", default=1, show_default=True, help="How many seeds, from 0.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Steps of every network.  [default: the recipes' own]",
)
@click.option(
    "--out", type=click.Path(path_type=Path),
    help="Folder of the reproduction; the same command goes on where it stopped."
    "  [default: reproduce/TASK]",
)  # fmt: skip
@click.option("--contrast", help="Only volumes of this contrast, e.g. T1w.  [default: all]")
@threads_option("PyTorch's choice")
@click.option(
    "--jobs", default=1, show_default=True,
    help="Trainings side by side, each in its own process. It pays on a GPU, which one of these"
    " networks leaves mostly idle; on a CPU, whose cores they share, it does not.",
)  # fmt: skip
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of all recipes.",
)
@click.option(
    "--carried", is_flag=True,
    help="Also train teacher (c), dccnn-d5c5-carried, its students dccnn-edge and"
    " dccnn-edge-small, and teacher (b)'s student dccnn-edge-half, for rows of their own.",
)  # fmt: skip
@click.option(
    "--networks", metavar="NAMES",
    help="Train these alone, and the teachers that they need, e.g. teacher-b,carried-half."
    " Comma-separated, of teacher-a, teacher-b, plain, kd-mri, edge, teacher-c, carried,"
    " carried-small, carried-half.  [default: the first five]",
)  # fmt: skip
@click.option("--report-only", is_flag=True, help="Train nothing; report what is finished.")
@json_option("Print the report as JSON.")
def reproduce(
    task: str,
    data: Path,
    masks: Path | None,
    accelerations: str,
    folds: bool,
    seeds: int,
    steps: int | None,
    out: Path | None,
    contrast: str | None,
    threads: int | None,
    jobs: int,
    assignments: tuple[str, ...],
    carried: bool,
    networks: str | None,
    report_only: bool,
    as_json: bool,
) -> None:
    """Make KD-MRI's comparison fair: teacher and students with equal data and equal steps.

    Trains, for every acceleration and split, the teacher as the paper trains it (a), the teacher
    with our tuning (b), the plain student, the student by KD-MRI's three steps and the edge
    student; evaluates the test subjects, and writes report.json, report.csv, table.md, the training
    curves and the panels into OUT. It takes hours on a CPU. Interrupt it at any time: the same
    command goes on, and ends with the same table.

    \b
    First a look at the whole path, minutes instead of hours:
      kdmri-edge reproduce brain --data DIR --accelerations 4 --no-folds --steps 100 --out look
    Then tables like those of this project, whose brains had 2,000 steps:
      kdmri-edge reproduce brain --data DIR --steps 2000
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.utils.extras import require

    # What evaluation and pictures need is asked for now, not after hours of training.
    for module in ("torch", "lightning_fabric", "safetensors", "skimage", "matplotlib"):
        require(module, extra="all")
    from kdmri_bench.reproduce.protocol import plan
    from kdmri_bench.reproduce.report import markdown
    from kdmri_bench.reproduce.run import reproduce as run
    from kdmri_edge.distillation.engine import Engine

    cases = plan(
        task,
        data,
        masks=masks,
        accelerations=_accelerations(accelerations),
        folds=folds,
        seeds=seeds,
        steps=steps,
        assignments=assignments,
        contrast=contrast,
        carried=carried,
        networks=tuple(name.strip() for name in networks.split(",")) if networks else (),
    )
    out = out or Path("reproduce") / task
    engine = Engine(threads=threads)
    report = run(cases, out, engine=engine, train=not report_only, jobs=jobs)
    if report:  # a distributed run reports from its first process
        print_result(json.dumps(report) if as_json else markdown(report))
