"""The whole reproduction: train, evaluate, report; it goes on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kdmri_bench.reporting.panel import compose
from kdmri_bench.reporting.panel import draw as draw_panel
from kdmri_bench.reproduce import curves
from kdmri_bench.reproduce.processes import Piece, check_jobs, train_side_by_side
from kdmri_bench.reproduce.protocol import CaseSpec
from kdmri_bench.reproduce.report import (
    PAPER,
    SCHEMA,
    best_published,
    csv_text,
    groups,
    markdown,
    missing,
    trained_on,
)
from kdmri_bench.reproduce.work import STATEMENT, evaluate, pieces, reconstruct, test_cases
from kdmri_bench.results.statistics import EXPANDED, MARGIN
from kdmri_edge.data.datasets import attribution_of
from kdmri_edge.distillation.engine import Engine, is_first_process
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.files import atomic_path, write_json, writing
from kdmri_edge.utils.provenance import provenance

__all__ = ["reproduce"]


def reproduce(
    cases: Sequence[CaseSpec],
    out: Path,
    *,
    engine: Engine | None = None,
    train: bool = True,
    jobs: int = 1,
) -> dict[str, Any]:
    """Train what is missing, evaluate it, and write the report.

    After every case the report is written anew, so that finished tables can be read while the rest
    trains; with several jobs, all cases are trained first, since one would not keep them busy.

    Args:
        cases: From `plan`.
        out: Folder of the reproduction.
        engine: Where to train; None is one process on the best device.
        train: Without, only what is already trained is evaluated and reported.
        jobs: Trainings side by side; the report does not depend on it.

    Returns:
        The report, as in report.json; empty in all processes but the first.

    Raises:
        BenchError: See `check_jobs`.
        RunError: `out` holds trainings of other settings.
        KdmriError: See `distill`.
    """
    engine = engine or Engine()
    check_jobs(jobs, engine)
    result: dict[str, Any] = {}
    if train and jobs > 1:
        todo = [p for number in range(len(cases)) for p in _pieces(cases, number, out, engine)]
        train_side_by_side(todo, jobs, engine)
        if engine.threads is not None:  # what evaluates next; training here would have set it
            torch.set_num_threads(engine.threads)
    for number, case in enumerate(cases):
        with writing(out / case.name):
            (out / case.name).mkdir(parents=True, exist_ok=True)
        if train and jobs == 1:
            train_side_by_side(_pieces(cases, number, out, engine), 1, engine)
        if not is_first_process():
            continue
        evaluate(case, out / case.name)
        if train:
            result = _report(cases, out)
    return _report(cases, out) if is_first_process() and not train else result


def _pieces(cases: Sequence[CaseSpec], number: int, out: Path, engine: Engine) -> list[Piece]:
    """Return what is left to train of one of the cases."""
    case = cases[number]
    each = len(case.trainings)
    alone = engine.processes == 1  # several processes have to agree on what they train
    return pieces(case, out / case.name, number * each, len(cases) * each, skip_complete=alone)


def _report(cases: Sequence[CaseSpec], out: Path) -> dict[str, Any]:
    first = cases[0]
    found = groups(cases, out)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "task": first.task.name,
        "contrast": first.contrast,
        "steps": first.recipe(first.trainings[0]).teacher_steps,  # equal for all, see `plan`
        "recipes": {
            training.folder: first.recipe(training).to_dict() | {"seed": "each case's"}
            for training in first.trainings
        },
        "seeds": sorted({case.seed for case in cases}),
        "margins": MARGIN,
        "intervals": EXPANDED,
        "paper": {str(key): value for key, value in PAPER.get(first.task.name, {}).items()},
        "best_published": best_published(first.task.name),
        "statement": STATEMENT,
        "attribution": attribution_of(first.data),
        "groups": found,
        "missing": missing(cases, out),
        "trained_on": trained_on(cases, out),
        "provenance": provenance(first.seed),
    }
    write_json(out / "report.json", report)
    with atomic_path(out / "table.md") as temporary:
        temporary.write_text(markdown(report) + "\n", encoding="utf-8")
    with atomic_path(out / "report.csv") as temporary:
        temporary.write_text(csv_text(report), encoding="utf-8")
    _pictures(cases, out)
    return report


def _pictures(cases: Sequence[CaseSpec], out: Path) -> None:
    """Draw what is finished and not drawn yet: panels and curves of the fixed split, first seed."""
    drawn = [c for c in cases if c.split == c.task.split and c.seed == cases[0].seed]
    todo = [c for c in drawn if not (out / f"panel-{c.acceleration}x.png").is_file()]
    # Both show teacher (b), the plain and the edge student, which may not have been asked for.
    runs = (("kd-mri", "teacher"), ("kd-mri", "plain"), ("edge", "student"))
    todo = [c for c in todo if all(Run(out / c.name / run).has(role) for run, role in runs)]
    if not todo:
        return
    with progress("Drawing", len(todo)) as advance:
        for case in todo:
            folder = out / case.name
            lines = curves.curves(folder)
            title = f"{case.task.name}, {case.acceleration}x"
            if lines:
                with atomic_path(out / f"curves-{case.acceleration}x.png") as temporary:
                    curves.draw(lines, temporary, title)
            volume = test_cases(case)[:1]
            weights = {
                "teacher": folder / "kd-mri" / "teacher.safetensors",
                "plain": folder / "kd-mri" / "plain.safetensors",
                "student": folder / "edge" / "student.safetensors",
            }
            outputs = {role: reconstruct(file, volume)[0] for role, file in weights.items()}
            panel = compose(volume[0], outputs, case.mask)
            with atomic_path(out / f"panel-{case.acceleration}x.png") as temporary:
                draw_panel(panel, temporary, f"{title}. {STATEMENT}")
            advance(1)
