"""What each idea is worth: `python -m experiments.ablation`.

Every variant changes one thing about a student (or about the teacher, where the idea would help it
too) and is trained with the same seed, data and number of steps; all are compared on the validation
volumes, which is where choices are made. The test volumes are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click

from experiments.script import Script
from kdmri_bench.measuring.quality import closed_percent
from kdmri_bench.reproduce.processes import Piece, check_jobs, train_side_by_side
from kdmri_bench.reproduce.protocol import TASKS, CaseSpec, Training, plan
from kdmri_edge.data.datasets import attribution_of
from kdmri_edge.distillation.engine import Engine
from kdmri_edge.distillation.recipe import load_recipe
from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run_folder import Run, devices
from kdmri_edge.errors import BenchError
from kdmri_edge.models.checkpoint import read_checkpoint_meta
from kdmri_edge.utils.files import atomic_path, write_json
from kdmri_edge.utils.provenance import provenance

__all__ = ["SETS", "VARIANTS", "Variant", "ablate", "markdown"]

SCHEMA: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One row of the table.

    Attributes:
        name: Of its run folder.
        title: What it is, for the table.
        role: The network that is looked at: "teacher", "plain" or "student".
        assignments: Settings that differ from recipe kd-mri.
        network: What is trained from images alone, as a teacher is; None for the paper's pair.
    """

    name: str
    title: str
    role: str
    assignments: tuple[str, ...] = ()
    network: str | None = None


def _student(name: str, title: str, *assignments: str) -> Variant:
    return Variant(name=name, title=title, role="student", assignments=assignments)


def _both(name: str, what: str, *assignments: str) -> tuple[Variant, Variant]:
    """Return what an idea that needs no teacher gives to the teacher, and to the plain student."""
    return (
        Variant(name=name, title=f"teacher (b): {what}", role="teacher", assignments=assignments),
        Variant(name=name, title=f"plain student: {what}", role="plain", assignments=assignments),
    )


_PUBLISHED = (
    "optim.learning_rate=1e-3",
    "optim.schedule=step",
    "optim.warmup=0",
    "optim.reparameterise_teacher=false",
)
_ONE_STAGE = ("attention_steps=0", "imitation_steps=1")
_NO_TEACHER = (*_ONE_STAGE, "distillation.alpha=1.0")
_CASCADES = (*_ONE_STAGE, "distillation.imitation=cascades", "distillation.alpha=0.3333")
_EARLY = (*_CASCADES, "distillation.imitation_until=0.35")
_INHERIT = "distillation.inherit=true"
_DILATION = "distillation.dilation=[1, 2, 1]"
_EDGE = (*_EARLY, _INHERIT, _DILATION)
_FALLING = "distillation.dilation=[1, 4, 1, 1, 3, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1]"
_RISING = "distillation.dilation=[1, 1, 1, 1, 2, 1, 1, 2, 1, 1, 3, 1, 1, 4, 1]"
VARIANTS: Final = (
    Variant(
        name="teacher-a",
        title="teacher (a): Adam 1e-3, published schedule",
        role="teacher",
        assignments=_PUBLISHED,
    ),
    *_both("base", "2e-3, cosine with warm-up, re-parameterised"),
    *_both(
        "single",
        "without re-parameterisation",
        "optim.reparameterise_teacher=false",
        "optim.reparameterise=false",
    ),
    *_both("ema", "running average of the weights (0.998)", "optim.ema=0.998"),
    *_both("ssim", "L1 + SSIM", "optim.loss=l1-ssim"),
    _student("dilation", "no teacher: middle convolutions dilated by 2", *_NO_TEACHER, _DILATION),
    _student(
        "inherit",
        "first and last convolutions from teacher (b), no imitation",
        *_NO_TEACHER,
        _INHERIT,
    ),
    _student("inherit-dilation", "both, no imitation", *_NO_TEACHER, _INHERIT, _DILATION),
    _student("base", "KD-MRI: attention, then imitation of the last image"),
    _student(
        "relation",
        "relations of feature maps instead of attention",
        "distillation.transfer=relation",
    ),
    _student("final", "imitation of the last image, no attention", *_ONE_STAGE),
    _student("cascades", "imitation after every cascade", *_CASCADES),
    _student("early", "the same in the first 35 % of the steps only", *_EARLY),
    _student("early-inherit", "and the teacher's first and last convolutions", *_EARLY, _INHERIT),
    _student("edge", "and middle convolutions dilated by 2", *_EDGE),
    _student("edge-late", "that, imitating to the end", *_EDGE, "distillation.imitation_until=1.0"),
    _student("edge-131", "that, dilation 1 3 1", *_EDGE, "distillation.dilation=[1, 3, 1]"),
    _student("edge-221", "that, dilation 2 2 1", *_EDGE, "distillation.dilation=[2, 2, 1]"),
    _student(
        "edge-bridge",
        "that, middle convolution fitted to the teacher's three (bridged)",
        *_EDGE,
        "distillation.bridge=true",
    ),
    _student("edge-falling", "that, middle dilation 4 3 2 2 1 by cascade", *_EDGE, _FALLING),
    _student("edge-rising", "that, middle dilation 1 2 2 3 4 by cascade", *_EDGE, _RISING),
    _student("edge-ssim", "that, L1 + SSIM", *_EDGE, "optim.loss=l1-ssim"),
    _student("edge-ema", "that, running average of the weights (0.998)", *_EDGE, "optim.ema=0.998"),
    _student(
        "edge-masks",
        "that, a quarter of the imitation on other masks",
        *_EDGE,
        "batches.other_masks=0.25",
    ),
    _student("edge-noise", "that, noise of up to 1 % on its inputs", *_EDGE, "batches.noise=0.01"),
    _student(
        "edge-joint",
        "that, from a teacher trained jointly for a third of the steps (SFT)",
        *_EDGE,
        "joint_steps=1",
        "imitation_steps=2",
    ),
)


def _beside(network: str, rate: str) -> tuple[Variant, ...]:
    """Return what Adam, at a rate that suits a network, and Muon make of it."""
    branched = (f"optim.learning_rate={rate}",)
    single = "optim.reparameterise_teacher=false"
    muon = ("optim.optimizer=muon", "optim.learning_rate=3e-3")
    return tuple(
        Variant(
            name=f"{network}-{name}",
            title=f"{network}: {title}",
            role="teacher",
            assignments=assignments,
            network=network,
        )
        for name, title, assignments in (
            ("adam", f"Adam, {rate}, re-parameterised", branched),
            ("adam-single", f"Adam, {rate}", (*branched, single)),
            ("muon", "Muon, 3e-3", (*muon, single)),
        )
    )


OPTIMIZERS: Final = (
    *_beside("dccnn-edge-half", "1e-3"),
    *_beside("dccnn-d3c5", "2e-3"),
    *_beside("dccnn-d5c5", "2e-3"),
)
SETS: Final = {"ideas": VARIANTS, "optimizers": OPTIMIZERS}
"""What is tried together."""

# Runs with a teacher of their own, whose plain student or student is looked at too.
_OWN_TEACHER: Final = {v.name for v in VARIANTS if v.role == "plain"} | {"edge-joint"}


def _settings(case: CaseSpec, variant: Variant, folder: Path) -> Settings:
    """Return the request of a variant's run.

    Args:
        case: Data, mask, seed and steps.
        variant: Which; of those that share a run, any.
        folder: Of all runs.
    """
    own = variant.name in _OWN_TEACHER
    training = Training(
        folder=variant.name,
        recipe="kd-mri",
        taught_by=None if own or variant.role == "teacher" else "base",
        baseline=any(v.name == variant.name and v.role == "plain" for v in VARIANTS),
        teacher=variant.network,
        distilled=any(v.name == variant.name and v.role == "student" for v in VARIANTS),
    )
    varied = replace(case, assignments=(*case.assignments, *variant.assignments))
    return varied.settings(training, folder)


def ablate(
    case: CaseSpec,
    out: Path,
    *,
    variants: Sequence[Variant] = VARIANTS,
    engine: Engine | None = None,
    jobs: int = 1,
    train: bool = True,
) -> dict[str, Any]:
    """Train all variants, going on where it stopped, and write report.json and table.md.

    Args:
        case: Data, mask, seed and steps.
        out: Folder of the runs and the report.
        variants: What to try; the first with the name "base" gives teacher and plain student.
        engine: Where to train.
        jobs: Trainings side by side; the report does not depend on it.
        train: Without, only what is already trained is reported.

    Returns:
        The report.

    Raises:
        BenchError: See `check_jobs`.
        KdmriError: See `distill`.
    """
    case = replace(case, steps=case.steps or load_recipe("kd-mri").student_steps)
    base = out / "base"
    pieces = []
    first = [base.name] if any(variant.network is None for variant in variants) else []
    for name in dict.fromkeys((*first, *(variant.name for variant in variants))):
        settings = _settings(case, next(v for v in variants if v.name == name), out)
        # The base run first: its teacher teaches the others.
        after = (base,) if settings.teacher_checkpoint is not None else ()
        pieces.append(Piece(out / name, settings, f"Variant {name}", after))

    report: dict[str, Any] = {}

    def write() -> None:
        report.update(_report(case, out, variants))
        write_json(out / "report.json", report)

    if train:
        train_side_by_side(pieces, jobs, engine or Engine(), finished=write)
    else:
        write()
    with atomic_path(out / "table.md") as temporary:
        temporary.write_text(markdown(report) + "\n", encoding="utf-8")
    return report


def _psnr(out: Path, variant: Variant) -> float | None:
    run = Run(out / variant.name)
    if not run.has(variant.role):
        return None
    value = read_checkpoint_meta(run.file(variant.role))["training"]["validation_psnr_db"]
    return None if value is None else float(value)


def _report(case: CaseSpec, out: Path, variants: Sequence[Variant]) -> dict[str, Any]:
    found = {(v.name, v.role): _psnr(out, v) for v in variants}
    plain, teacher = found.get(("base", "plain")), found.get(("base", "teacher"))
    rows: list[dict[str, Any]] = []
    for variant in variants:
        value = found[variant.name, variant.role]
        closed = float("nan")
        if value is not None and plain is not None and teacher is not None:
            closed = float(closed_percent(value, plain, teacher))
        rows.append(
            {
                "name": variant.name,
                "title": variant.title,
                "role": variant.role,
                "assignments": list(variant.assignments),
                "validation_psnr_db": value,
                "gap_closed_percent": closed if math.isfinite(closed) else None,
                "trained_on": [] if value is None else devices([out / variant.name / "run.json"]),
            }
        )
    return {
        "schema": SCHEMA,
        "task": case.task.name,
        "acceleration": case.acceleration,
        "mask": case.mask.name,
        "split": case.split,
        "seed": case.seed,
        "steps": case.steps,
        "attribution": attribution_of(case.data),
        "rows": rows,
        "trained_on": list(dict.fromkeys(device for row in rows for device in row["trained_on"])),
        "provenance": provenance(case.seed),
    }


def markdown(report: dict[str, Any]) -> str:
    """Return the table as GitHub Markdown; where devices differ, with the number of each row's."""
    found = report["trained_on"]
    several = len(found) > 1
    base = any(row["name"] == "base" for row in report["rows"])
    lines = ["| variant | validation PSNR dB |", "|---|---:|"]
    if base:
        lines = [lines[0] + " of the gap |", lines[1] + "---:|"]
    if several:
        lines = [lines[0] + " device |", lines[1] + "---:|"]
    for row in report["rows"]:
        value, closed = row["validation_psnr_db"], row["gap_closed_percent"]
        shown = "not trained yet" if value is None else f"{value:.2f}"
        share = "" if closed is None else f"{closed:.0f} %"
        line = f"| {row['title']} | {shown} |"
        if base:
            line += f" {share} |"
        if several:
            line += f" {', '.join(str(found.index(device) + 1) for device in row['trained_on'])} |"
        lines.append(line)
    numbered = [f"{number}: {device}" for number, device in enumerate(found, 1)]
    gap = " The gap is that from the plain student to teacher (b)." if base else ""
    lines += [
        "",
        f"Mean over the validation volumes; {report['steps']} optimiser steps each, all stages"
        f" counted, mask {report['mask']}, seed {report['seed']}.{gap} Trained on"
        f" {'; '.join(numbered if several else found)}.",
    ]
    return "\n".join(lines)


@click.command(cls=Script)
@click.option("--task", default="brain", show_default=True, type=click.Choice(list(TASKS)))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of volumes.")
@click.option("--masks", type=click.Path(path_type=Path), help="The paper's masks.")
@click.option("--acceleration", default=4, show_default=True)
@click.option("--steps", default=2500, show_default=True, help="Optimiser steps of each network.")
@click.option(
    "--set", "tried", default="ideas", show_default=True, type=click.Choice(list(SETS)),
    help="What to try.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path),
    help="Folder of the runs and the report; by default ablation, of others than ideas their name.",
)  # fmt: skip
@click.option("--threads", type=int)
@click.option(
    "--jobs", default=1, show_default=True,
    help="Trainings side by side, each in its own process: pays on a GPU, not on a CPU.",
)  # fmt: skip
@click.option("--report-only", is_flag=True, help="Train nothing; report what is finished.")
def main(
    task: str,
    data: Path,
    masks: Path | None,
    acceleration: int,
    steps: int,
    tried: str,
    out: Path | None,
    threads: int | None,
    jobs: int,
    report_only: bool,
) -> None:
    """Measure what each idea is worth, on the validation volumes."""
    if steps < 8:
        raise BenchError(f"{steps} steps train nothing.", "Give --steps 8 or more.")
    engine = Engine(threads=threads)
    check_jobs(jobs, engine)
    (case,) = plan(task, data, masks=masks, accelerations=(acceleration,), folds=False, steps=steps)
    folder = out or Path("ablation" if tried == "ideas" else tried)
    report = ablate(
        case, folder, variants=SETS[tried], engine=engine, jobs=jobs, train=not report_only
    )
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
