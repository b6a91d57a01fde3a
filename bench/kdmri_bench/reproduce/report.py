"""The report of `kdmri-edge reproduce`, as JSON, Markdown and CSV, without PyTorch.

Nothing in it depends on when or how often the command ran, but for the provenance: the same weights
give the same tables.

report.json, schema 1: `task`; `contrast` (null: all); `steps` of every network; `recipes` by
training; `seeds`; `margins` of the verdicts; `paper` (percent of the gap by acceleration, on the
paper's own data) and `best_published` (percent of the gap by acceleration, to the teacher as it is
usually trained and to its own; reports of earlier versions have other figures there, which were
wrong and are not shown); `statement` and `attribution` of the data; `missing`, names
of networks that are not finished; `trained_on`, devices and precisions; `provenance`; and
`groups`, one per acceleration and kind of split, each with

- `table` and `by_contrast`: network -> measure -> {mean, std}, over volumes, std with n - 1;
- `gap_closed`: student -> teacher -> measure -> {value, low, high} in percent; low and high are
  null where the gap is not distinguishable from zero, all three where there is none;
- `differences`: the edge student minus another -> measure -> {value, low, high, verdict};
- `carried_differences`: the same of students that hand feature maps on, by student, where any is
  trained; `table` and `gap_closed` have them and teacher (c) then, too;
- `rows`: network -> the figures of each volume, averaged over seeds.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from kdmri_bench.measuring.quality import closed_percent, summary
from kdmri_bench.reproduce.protocol import CARRIED_NETWORKS, NETWORKS, TASKS, CaseSpec, Task
from kdmri_bench.results.figures import NOTHING
from kdmri_bench.results.statistics import (
    FEW_SUBJECTS,
    MARGIN,
    Values,
    bootstrap,
    how,
    verdict,
)
from kdmri_edge.distillation.recipe import recipe_value
from kdmri_edge.distillation.run_folder import devices
from kdmri_edge.errors import BenchError
from kdmri_edge.metrics import METRICS
from kdmri_edge.utils.files import read_json
from kdmri_edge.utils.spreadsheets import cell

__all__ = [
    "PAPER",
    "SCHEMA",
    "best_published",
    "csv_text",
    "evaluation",
    "groups",
    "markdown",
    "missing",
    "read_rows",
    "trained_on",
]

SCHEMA: Final = 1

# Part of the gap that the paper's student recovers, on the paper's own data (KD-MRI, tables 1-3).
PAPER: Final[dict[str, dict[int, int]]] = {
    "brain": {4: 66, 5: 44, 8: 68},
    "cardiac": {4: 25, 5: 31, 8: 43},
    "sr": {16: 78},  # the central 64 x 64 of 256 x 256 samples
}

BEST_PUBLISHED: Final = "SFT-KD-Recon"
"""The best result that is published on the paper's cascades (MIDL 2023), on its own data."""

# Part of the gap that its student recovers: to the teacher as it is usually trained, and to the
# teacher of its own method, which is better.
_BEST_PERCENT: Final[dict[str, dict[int, tuple[int, int]]]] = {
    "brain": {4: (105, 80), 5: (74, 69)},
    "cardiac": {4: (74, 60), 5: (53, 47)},
}
# PSNR in dB of its student and of these two teachers.
_BEST_PSNR: Final[dict[str, dict[int, tuple[float, float, float]]]] = {
    "brain": {4: (40.08, 40.05, 40.23)},
}

_ZERO_FILLED: Final = "zero-filled"
ALL: Final = (_ZERO_FILLED, *NETWORKS)
_TEACHERS: Final = ("teacher-a", "teacher-b")
_STUDENTS: Final = ("kd-mri", "edge")
_TEACHER_C: Final = "teacher-c"
_CARRIED_STUDENTS: Final = tuple(name for name in CARRIED_NETWORKS if name != _TEACHER_C)


def best_published(task: str) -> dict[str, Any] | None:
    """Return what is published of the best method, by acceleration; None where nothing is."""
    if task not in _BEST_PERCENT:
        return None
    psnr = _BEST_PSNR.get(task, {})
    return {
        "name": BEST_PUBLISHED,
        "by_acceleration": {
            str(acceleration): {
                "percent": {"usual_teacher": usual, "own_teacher": own},
                "psnr_db": None
                if acceleration not in psnr
                else dict(
                    zip(
                        ("student", "usual_teacher", "own_teacher"), psnr[acceleration], strict=True
                    )
                ),
            }
            for acceleration, (usual, own) in _BEST_PERCENT[task].items()
        },
    }


Rows = dict[str, list[dict[str, Any]]]


def evaluation(folder: Path, network: str) -> Path:
    """Return where the figures of a network of a case are kept."""
    return folder / f"evaluation-{network}.json"


def read_rows(folder: Path, needed: Sequence[str] = ALL) -> Rows | None:
    """Read the figures of a case, by network and volume; None while a needed network is missing.

    Args:
        folder: The case's folder.
        needed: Rows that have to be there; others may be.
    """
    files = {name: evaluation(folder, name) for name in (*ALL, *CARRIED_NETWORKS)}
    files = {name: file for name, file in files.items() if file.is_file()}
    if not files.keys() >= set(needed):
        return None
    return {
        name: list(read_json(file, BenchError, finite=False)["rows"])
        for name, file in files.items()
    }


def _needed(case: CaseSpec) -> tuple[str, ...]:
    """Return the rows without which a case is not finished: --carried may be added to one."""
    return (_ZERO_FILLED, *(case.networks if case.wanted else NETWORKS))


def missing(cases: Iterable[CaseSpec], out: Path) -> list[str]:
    """Name what is not there yet: "4x-brain-seed0: edge", ..."""
    return [
        f"{case.name}: {name}"
        for case in cases
        for name in (_ZERO_FILLED, *case.networks)
        if not evaluation(out / case.name, name).is_file()
    ]


def _common(found: Sequence[Rows]) -> list[str]:
    """Return the networks that all have, in the order of the table."""
    return [name for name in (*ALL, *CARRIED_NETWORKS) if all(name in rows for rows in found)]


def _mean_over_seeds(found: Sequence[Rows]) -> Rows:
    """Average each volume's figures over the seeds."""
    result: Rows = {}
    for name in _common(found):
        result[name] = [
            {
                **same[0],
                **{key: float(np.mean([row[key] for row in same])) for key in METRICS},
            }
            for same in zip(*(rows[name] for rows in found), strict=True)
        ]
    return result


def groups(cases: Sequence[CaseSpec], out: Path) -> list[dict[str, Any]]:
    """Return the tables: each acceleration on the fixed split, and its folds pooled.

    A group appears when all of its cases are finished.
    """
    result = []
    task = cases[0].task
    for acceleration in dict.fromkeys(case.acceleration for case in cases):
        for title, splits in (("fixed split", (task.split,)), ("three folds pooled", task.folds)):
            own = [c for c in cases if c.acceleration == acceleration and c.split in splits]
            group = _group(title, own, out) if own else None
            if group is not None:
                result.append(group)
    return result


def _group(title: str, cases: Sequence[CaseSpec], out: Path) -> dict[str, Any] | None:
    averages = []
    for split in dict.fromkeys(case.split for case in cases):
        found = [read_rows(out / case.name, _needed(case)) for case in cases if case.split == split]
        if any(rows is None for rows in found):
            return None
        averages.append(_mean_over_seeds([rows for rows in found if rows is not None]))
    pooled: Rows = {
        name: [row for averaged in averages for row in averaged[name]] for name in _common(averages)
    }
    task, mask = cases[0].task, cases[0].mask
    subjects = [str(row["subject"]) for row in pooled[_ZERO_FILLED]]
    return {
        "title": f"{cases[0].acceleration}x, {title}",
        "acceleration": cases[0].acceleration,
        "nominal_acceleration": mask.nominal_acceleration,
        "effective_acceleration": mask.effective_acceleration,
        "mask": mask.name,
        "splits": sorted({case.split for case in cases}),
        "seeds": sorted({case.seed for case in cases}),
        "subjects": sorted(set(subjects)),
        "volumes": len(subjects),
        "indication": len(set(subjects)) < FEW_SUBJECTS,
        "table": {name: summary(rows) for name, rows in pooled.items()},
        "by_contrast": _by_contrast(task, pooled),
        "gap_closed": _gaps(subjects, pooled),
        "differences": _differences(subjects, pooled, "edge", (*_TEACHERS, "plain", "kd-mri"))
        if "edge" in pooled
        else {},
        **_carried_differences(subjects, pooled),
        "rows": pooled,
    }


def _by_contrast(task: Task, pooled: Rows) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for contrast in task.contrasts:
        own = {
            name: [r for r in rows if r["contrast"] == contrast] for name, rows in pooled.items()
        }
        if own[_ZERO_FILLED]:
            found[contrast] = {name: summary(rows) for name, rows in own.items()}
    return found


def _columns(pooled: Rows, measure: str, *names: str) -> Values:
    return np.asarray([[row[measure] for row in pooled[name]] for name in names]).T


def _closed(means: Values) -> Values:
    """Percent of the gap closed from means of (student, plain student, teacher)."""
    return closed_percent(*means.T)


def _gaps(subjects: Sequence[str], pooled: Rows) -> dict[str, Any]:
    """(student - plain) / (teacher - plain) in percent, against each teacher that is there."""
    if "plain" not in pooled:  # where the gap begins
        return {}
    teachers = [name for name in (*_TEACHERS, _TEACHER_C) if name in pooled]
    students = [name for name in (*_STUDENTS, *_CARRIED_STUDENTS) if name in pooled]
    return {
        student: {
            teacher: {
                measure: bootstrap(
                    subjects, _columns(pooled, measure, student, "plain", teacher), _closed
                ).to_dict()
                for measure in MARGIN
            }
            for teacher in teachers
        }
        for student in students
    }


def _carried_differences(subjects: Sequence[str], pooled: Rows) -> dict[str, Any]:
    """Paired differences of students that hand feature maps on, empty where there are none."""
    found = {
        student: _differences(subjects, pooled, student, (*_TEACHERS, _TEACHER_C, "plain", "edge"))
        for student in _CARRIED_STUDENTS
        if student in pooled
    }
    return {"carried_differences": found} if found else {}


def _differences(
    subjects: Sequence[str], pooled: Rows, student: str, others: Iterable[str]
) -> dict[str, Any]:
    """Paired differences of a student to its rivals, and whether it is not inferior to them."""
    result: dict[str, Any] = {}
    for other in (name for name in others if name in pooled):
        result[other] = {}
        for measure, margin in MARGIN.items():
            interval = bootstrap(
                subjects,
                _columns(pooled, measure, student, other),
                lambda means: means[:, 0] - means[:, 1],
            )
            result[other][measure] = {
                **interval.to_dict(),
                "verdict": verdict(interval, margin, len(set(subjects))),
            }
    return result


def trained_on(cases: Iterable[CaseSpec], out: Path) -> list[str]:
    """Return devices and precisions that the trainings of the cases ran on."""
    return devices(file for case in cases for file in (out / case.name).glob("*/run.json"))


_TITLES = {
    "zero-filled": "zero-filled",
    **{name: n.title for name, n in (NETWORKS | CARRIED_NETWORKS).items()},
}


def _cell(value: Mapping[str, Any], digits: int) -> str:
    spread = value["std"]
    return f"{value['mean']:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def _share(group: Mapping[str, Any], student: str, teacher: str) -> str:
    """Say what part of the gap to a teacher a student closes."""
    gap = group["table"][teacher]["psnr"]["mean"] - group["table"]["plain"]["psnr"]["mean"]
    interval = group["gap_closed"][student][teacher]["psnr"]
    if interval["value"] is None:
        return "no gap"
    if gap < MARGIN["psnr"]:  # a ratio to next to nothing
        return f"gap of {gap:.2f} dB, below the margin"
    if interval["low"] is None:
        return f"{interval['value']:.0f} % (gap not distinguishable from zero)"
    bounds = f" ({interval['low']:.0f} to {interval['high']:.0f})" if _resampled(group) else ""
    above = ": above the teacher" if interval["value"] > 100 else ""
    return f"{interval['value']:.0f} %{bounds}{above}"


def _changes(group: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, str]:
    """Say how a student differs from another network, in PSNR and in SSIM."""

    def text(measure: str, digits: int) -> str:
        interval = found[measure]
        bounds = f" ({interval['low']:+.{digits}f} to {interval['high']:+.{digits}f})"
        return f"{interval['value']:+.{digits}f}{bounds if _resampled(group) else ''}"

    return f"{text('psnr', 3)} dB", f"SSIM {text('ssim', 4)}"


def _resampled(group: Mapping[str, Any]) -> bool:
    """Return whether there is anything to resample; of one volume the bootstrap knows no spread."""
    return int(group["volumes"]) > 1


def _best_text(task: str, acceleration: int) -> str | None:
    """Say what the best published student recovers; None where nothing is published."""
    found = (best_published(task) or {}).get("by_acceleration", {}).get(str(acceleration))
    if found is None:
        return None
    percent, psnr = found["percent"], found["psnr_db"]
    of_student = of_usual = of_own = ""
    if psnr is not None:
        of_student = f"student {psnr['student']:.2f} dB: "
        of_usual, of_own = (f" ({psnr[f'{name}_teacher']:.2f} dB)" for name in ("usual", "own"))
    return (
        f"{of_student}{percent['usual_teacher']} % to its teacher as usually trained{of_usual},"
        f" {percent['own_teacher']} % to the teacher of its own method{of_own}"
    )


def _absent(group: Mapping[str, Any], task: str) -> list[str]:
    """Return the networks that are not there."""
    known = (*NETWORKS, *(CARRIED_NETWORKS if task in TASKS and TASKS[task].has_carried else ()))
    return [name for name in known if name not in group["table"]]


def _group_text(group: Mapping[str, Any], paper: Mapping[str, Any], task: str) -> list[str]:
    contrasts = list(group["by_contrast"])
    few = " **An indication only: fewer than five test subjects.**" if group["indication"] else ""
    lines = [
        f"**{group['title']}** (mask {group['mask']}: nominal {group['nominal_acceleration']:.2f}x,"
        f" with mirrored lines {group['effective_acceleration']:.2f}x; test subjects"
        f" {', '.join(group['subjects'])}; {group['volumes']} volumes).{few}",
        "",
        "| network | PSNR dB | SSIM |" + "".join(f" {c} dB |" for c in contrasts),
        "|---|---|---|" + "---|" * len(contrasts),
    ]
    present = [name for name in (*ALL, *CARRIED_NETWORKS) if name in group["table"]]
    absent = _absent(group, task)
    for name in present:
        row = group["table"][name]
        alone = [
            f" {_cell(group['by_contrast'][contrast][name]['psnr'], 2)} |" for contrast in contrasts
        ]
        lines.append(
            f"| {_TITLES[name]} | {_cell(row['psnr'], 2)} | {_cell(row['ssim'], 4)} |"
            + "".join(alone)
        )
    nothing = f" {NOTHING} |" * (2 + len(contrasts))
    lines += [f"| {_TITLES[name]} |{nothing}" for name in absent]
    lines += ["", *_gap_text(group, paper, task, absent)]
    if absent:
        titles = "; ".join(_TITLES[name] for name in absent)
        only_carried = set(absent) <= set(CARRIED_NETWORKS)
        option = "--carried" if only_carried else f"--networks {','.join(absent)}"
        lines += [
            f"Without figures, since they are not trained here: {titles}."
            f" `kdmri-edge reproduce {task} {option}` trains them.",
            "",
        ]
    if group["differences"]:
        lines += _differences_text(group, "edge", group["differences"])
    for student, found in group.get("carried_differences", {}).items():
        lines += _differences_text(group, student, found)
    return [*lines, ""]


def _gap_text(
    group: Mapping[str, Any], paper: Mapping[str, Any], task: str, absent: Sequence[str]
) -> list[str]:
    """Say what part of the gap between plain student and teachers the students close."""
    students = list(group["gap_closed"])
    if not students:
        return []
    lines = [
        "| | " + " | ".join(_TITLES[name] for name in students) + " |",
        "|---" * (1 + len(students)) + "|",
    ]
    for teacher in (*_TEACHERS, _TEACHER_C):
        if teacher in absent:
            cells = [NOTHING] * len(students)
        elif teacher in group["table"]:
            cells = [_share(group, student, teacher) for student in students]
        else:
            continue
        lines.append(f"| gap closed (PSNR) to {_TITLES[teacher]} | {' | '.join(cells)} |")
    rest = " |" * (len(students) - 1)
    published = paper.get(str(group["acceleration"]))
    if published is not None:
        lines.append(f"| the paper's, on its own data | {published} % |{rest}")
    best = _best_text(task, group["acceleration"])
    if best is not None:
        lines.append(f"| best published ({BEST_PUBLISHED}), on its own data | {best} |{rest}")
    return [*lines, ""]


def _differences_text(
    group: Mapping[str, Any], student: str, differences: Mapping[str, Any]
) -> list[str]:
    """Say how a student differs from the teachers, with verdicts, and from the plain student."""
    title = _TITLES[student][0].upper() + _TITLES[student][1:]
    lines = []
    for teacher in (*_TEACHERS, _TEACHER_C):
        if (found := differences.get(teacher)) is None:
            continue
        psnr, ssim = _changes(group, found)
        lines.append(
            f"- {title} minus {_TITLES[teacher]}: {psnr}: {found['psnr']['verdict']};"
            f" {ssim}: {found['ssim']['verdict']}."
        )
    if "plain" in differences:
        psnr, ssim = _changes(group, differences["plain"])
        lines.append(f"- {title} minus {_TITLES['plain']}: {psnr}; {ssim}.")
    return lines


def _recipes_text(recipes: Mapping[str, Any]) -> str:
    """Say how the networks that are there were trained."""
    told = []
    if "paper-teacher" in recipes:
        told.append(
            "Teacher (a) follows the published schedule, brought to these steps: its rate is"
            " divided by ten after 27, 53 and 80 % of them, which holds it back where they are few."
        )
    if "kd-mri" in recipes:
        told.append(
            "Teacher (b), plain and KD-MRI student share recipe"
            f" {recipes['kd-mri']['name']} (cosine, re-parameterised convolutions)."
        )
    elif "kd-mri-teacher" in recipes:
        told.append(
            f"Teacher (b) has recipe {recipes['kd-mri-teacher']['name']} (cosine, re-parameterised"
            " convolutions)."
        )
    return " ".join(told)


def _batches(report: Mapping[str, Any]) -> str:
    """Say what a step sees: all recipes' batches, which differ only where a user made them."""
    seen = dict.fromkeys(
        (recipe_value(r, "batches.size"), recipe_value(r, "batches.strip"))
        for r in report["recipes"].values()
    )
    return " or ".join(f"{batch} strips of {strip} columns" for batch, strip in seen)


def markdown(report: Mapping[str, Any]) -> str:
    """Return the tables as GitHub Markdown, most telling group first."""
    lines: list[str] = []
    for group in report["groups"]:
        lines += _group_text(group, report["paper"], report["task"])
    seeds = len(report["seeds"])
    drawn = "one seed" if seeds == 1 else f"figures of a volume averaged over {seeds} seeds"
    contrast = f" Only {report['contrast']} volumes." if report["contrast"] else ""
    lines += [
        "Mean ± standard deviation over volumes (n - 1). Intervals: 95 %, paired bootstrap over"
        f" subjects, then volumes; {how(report)}. Verdicts at margins stated in advance:"
        f" {MARGIN['psnr']} dB and {MARGIN['ssim']} SSIM; below five test subjects there is none.",
        f"Every network had {report['steps']} optimiser steps of {_batches(report)}, all stages"
        f" counted; {drawn}."
        f"{contrast} {report['statement']}",
        _recipes_text(report["recipes"]),
    ]
    if machines := report.get("trained_on"):
        lines.append(f"Trained on {'; '.join(machines)}.")
    if report["missing"]:
        unfinished = dict.fromkeys(name.partition(":")[0] for name in report["missing"])
        lines.append(
            f"Not finished yet: {len(report['missing'])} networks of {', '.join(unfinished)}."
        )
    return "\n".join(lines)


def csv_text(report: Mapping[str, Any]) -> str:
    """Return one line per group, network and volume."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["group", "network", "volume", "subject", "contrast", "psnr", "ssim", "nmse", "hfn"]
    )
    for group in report["groups"]:
        for network, rows in group["rows"].items():
            for row in rows:
                figures = [f"{row[key]:.6g}" for key in ("psnr", "ssim", "nmse", "hfn")]
                about = (group["title"], network, row["name"], row["subject"], row["contrast"])
                writer.writerow([*map(cell, about), *figures])
    return stream.getvalue()
