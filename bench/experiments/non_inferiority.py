"""Do students lose anything to their teachers? `python -m experiments.non_inferiority`.

Every case is a data folder with teachers and students that were trained on the same split of it. A
case given several times under one title, with networks of other splits, is pooled: so the folds of
a cross-validation are. Students of one case that differ in their seed alone are averaged volume by
volume, and each seed's own mean is kept beside. A teacher may also be a row of a recorded report of
`kdmri-edge reproduce`, as REPORT.json:ROW; its volumes are found there by their SHA-256.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from experiments.script import Script, by_optimizer, record
from kdmri_bench.measuring.quality import summary, volume_rows
from kdmri_bench.planning.testdata import load_cases
from kdmri_bench.reproduce.work import STATEMENT, reconstruct
from kdmri_bench.results.statistics import (
    EXPANDED,
    FEW_SUBJECTS,
    MARGIN,
    Interval,
    bootstrap,
    how,
    verdict,
)
from kdmri_edge.data.datasets import attribution_of, find_parts
from kdmri_edge.data.sources import source_sha256
from kdmri_edge.distillation.recipe import recipe_value
from kdmri_edge.errors import BenchError
from kdmri_edge.metrics import METRICS
from kdmri_edge.models.checkpoint import read_checkpoint_meta
from kdmri_edge.models.shipped import resolve_weights
from kdmri_edge.models.specs import preset_of, spec_from_dict
from kdmri_edge.physics.masks import Mask
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.files import read_json, sha256_file
from kdmri_edge.utils.provenance import provenance

__all__ = ["CaseRequest", "compare", "markdown"]

SCHEMA: Final = 1
_ROW: Final = ".json:"

Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseRequest:
    """What is compared on the test subjects of one split.

    Attributes:
        title: What the table calls it; cases of one title are pooled.
        data: Folder of the volumes.
        teachers: Names of the package, checkpoints, or rows of recorded reports.
        students: Names or checkpoints of one network, one for each seed, trained on one split.
    """

    title: str
    data: Path
    teachers: tuple[str, ...]
    students: tuple[str, ...]


def compare(requests: Sequence[CaseRequest]) -> dict[str, Any]:
    """Measure every case and judge its students against its teachers.

    Returns:
        The report: by title the mean and spread of every measure over volumes, and the paired
        differences with 95 % bootstrap intervals over subjects and verdicts at `MARGIN`.

    Raises:
        BenchError: A network was trained on a test volume or subject, or does not say on what;
            networks of one case are for different masks, matrices or splits; cases of one title
            have different numbers of networks, or a volume in common; or a recorded report lacks
            a volume.
        KdmriError: Missing or damaged weights, reports or data.
    """
    for request in requests:
        _check(request)
    found: dict[str, list[dict[str, Any]]] = {}
    known: _Known = {}
    total = sum(len(r.students) + sum(_ROW not in t for t in r.teachers) for r in requests)
    with progress("Measuring networks", total) as advance:
        for request in requests:
            found.setdefault(request.title, []).append(_measure(request, known, advance))
    return {
        "schema": SCHEMA,
        "margins": MARGIN,
        "intervals": EXPANDED,
        "statement": STATEMENT,
        "attributions": list(
            dict.fromkeys(text for r in requests if (text := attribution_of(r.data)))
        ),
        "cases": [_pooled(title, measured) for title, measured in found.items()],
        "provenance": provenance(0),
    }


def _metas(request: CaseRequest) -> dict[str, dict[str, Any]]:
    names = (*request.students, *(name for name in request.teachers if _ROW not in name))
    return {name: read_checkpoint_meta(resolve_weights(Path(name))) for name in names}


def _check(request: CaseRequest) -> None:
    """Refuse now what would make the comparison unfair, not after minutes of measuring."""
    metas = _metas(request)
    first = metas[request.students[0]]
    for name, meta in metas.items():
        for key in ("mask", "matrix"):
            if meta[key] != first[key]:
                raise BenchError(
                    f"{name} was trained for another {key} than {request.students[0]}.",
                    "Compare networks of one mask and matrix in a case.",
                )
        if _split(meta) != _split(first):
            raise BenchError(
                f"{name} was trained on split {_split(meta)!r},"
                f" {request.students[0]} on {_split(first)!r}.",
                "Compare networks of one split in a case, and give splits cases of their own.",
            )
    files = _test_files(request, first)
    tested = {source_sha256(file.path) for file in files}
    # by the subject as well: a volume that was written anew has another SHA-256
    subjects = {file.subject for file in files}
    for name, meta in metas.items():
        trained = meta["training"].get("data", ())
        if not trained:
            raise BenchError(
                f"{name} does not say on which volumes it was trained.",
                "Give checkpoints that `kdmri-edge distill` wrote.",
            )
        if any(one.get("sha256") in tested or one.get("subject") in subjects for one in trained):
            raise BenchError(
                f"{name} was trained on a volume or subject that it would be tested on.",
                "Give networks that were trained on the split's training subjects alone.",
            )


def _split(meta: Mapping[str, Any]) -> str:
    return str(meta["training"].get("split"))


def _test_files(request: CaseRequest, meta: Mapping[str, Any]) -> Any:
    return find_parts(request.data, split=_split(meta), needed=("test",)).test


_Known = dict[tuple[str, tuple[str, ...]], Rows]
"""Rows of networks by the SHA-256 of their weights, which hold their mask, and of the volumes."""


def _measure(request: CaseRequest, known: _Known, advance: Any) -> dict[str, Any]:
    metas = _metas(request)
    first = metas[request.students[0]]
    cases = load_cases(
        _test_files(request, first),
        mask=Mask.from_dict(first["mask"]),
        matrix=int(first["matrix"]),
        spec=spec_from_dict(first["spec"]),
    ).cases

    hashes = [case.sha256 for case in cases]

    def rows_of(name: str) -> Rows:
        weights = resolve_weights(Path(name))
        key = sha256_file(weights), tuple(hashes)
        if key not in known:  # a teacher may stand in several cases
            known[key] = [dict(row) for row in volume_rows(cases, reconstruct(weights, cases))]
        advance(1)
        return known[key]

    return {
        "mask": first["mask"],
        "split": _split(first),
        "subjects": [str(case.subject) for case in cases],
        "volumes": hashes,
        "zero-filled": [dict(r) for r in volume_rows(cases, [c.zero_filled for c in cases])],
        "teachers": [
            {
                "rows": _recorded(name, hashes, first) if _ROW in name else rows_of(name),
                **_origin(name, metas.get(name)),
            }
            for name in request.teachers
        ],
        "students": [
            {"rows": rows_of(name), **_origin(name, metas[name])} for name in request.students
        ],
    }


def _origin(name: str, meta: Mapping[str, Any] | None) -> dict[str, Any]:
    """Say which network it was: what it is called, how long it was trained, and its seed."""
    if meta is None:
        file, _, row = name.rpartition(":")
        return {"network": f"{row} of a recorded report", "report_sha256": sha256_file(Path(file))}
    path = resolve_weights(Path(name))
    training = meta["training"]
    before, start = 0, training.get("start")
    while start:  # each may have started from another
        before += sum((start.get("steps") or {}).values())
        start = start.get("start")
    return {
        "network": name if "@" in name else preset_of(spec_from_dict(meta["spec"])) or path.name,
        "weights_sha256": sha256_file(path),
        "steps": sum(training.get("steps", {}).values()),
        "optimizer": recipe_value(training.get("recipe", {}), "optim.optimizer", "adam"),
        "steps_before": before,
        "seed": training.get("recipe", {}).get("seed"),
        "started_from": (training.get("start") or {}).get("name"),
    }


def _recorded(name: str, hashes: Sequence[str], meta: Mapping[str, Any]) -> Rows:
    """Take a row of a report of `reproduce`, volume by volume, of the student's mask and split.

    The same volumes are tested with every mask, and in the folds again.
    """
    file, _, wanted = name.rpartition(":")
    mask = Mask.from_dict(meta["mask"]).name
    for group in dict(read_json(Path(file), BenchError, finite=False)).get("groups", ()):
        rows = {row.get("sha256"): row for row in group["rows"].get(wanted, ())}
        same = group["mask"] == mask and _split(meta) in group["splits"]
        if same and rows.keys() >= set(hashes):
            return [dict(rows[sha256]) for sha256 in hashes]
    raise BenchError(
        f"{file} has no figures of {wanted!r} for all of these volumes with mask {mask!r} and"
        f" split {_split(meta)!r}.",
        "Give a report of `kdmri-edge reproduce` on the same volumes, mask and split.",
    )


def _pooled(title: str, measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the cases of one title, average the seeds, and judge."""
    counts = {(len(case["teachers"]), len(case["students"])) for case in measured}
    masks = {Mask.from_dict(case["mask"]).name for case in measured}
    if len(counts) > 1 or len(masks) > 1:
        raise BenchError(
            f"The cases titled {title!r} have different numbers of networks, or masks.",
            "Give the cases of one title the same, in the same order.",
        )
    (number_of_teachers, number_of_seeds) = counts.pop()
    subjects = [subject for case in measured for subject in case["subjects"]]
    volumes = [volume for case in measured for volume in case["volumes"]]
    if len(set(volumes)) < len(volumes):
        raise BenchError(
            f"The cases titled {title!r} test a volume twice.",
            "Give each fold once; seeds of one split are students of one case.",
        )

    def joined(part: str, number: int) -> Rows:
        return [row for case in measured for row in case[part][number]["rows"]]

    seeds = [joined("students", number) for number in range(number_of_seeds)]
    student = [
        {**same[0], **{key: float(np.mean([row[key] for row in same])) for key in METRICS}}
        for same in zip(*seeds, strict=True)
    ]
    mask = Mask.from_dict(measured[0]["mask"])
    return {
        "title": title,
        "mask": mask.name,
        "nominal_acceleration": mask.nominal_acceleration,
        "effective_acceleration": mask.effective_acceleration,
        "splits": [case["split"] for case in measured],
        "subjects": sorted(set(subjects)),
        "volumes": len(subjects),
        "zero_filled": summary([row for case in measured for row in case["zero-filled"]]),
        "student": {
            "networks": [_without_rows(one) for case in measured for one in case["students"]],
            "figures": summary(student),
            "seeds": [summary(rows) for rows in seeds],
            "rows": student,
        },
        "teachers": [
            {
                "networks": [_without_rows(case["teachers"][number]) for case in measured],
                "figures": summary(teacher := joined("teachers", number)),
                "student_minus_teacher": _difference(subjects, student, teacher),
                "rows": teacher,
            }
            for number in range(number_of_teachers)
        ],
    }


def _without_rows(network: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in network.items() if key != "rows"}


def _difference(subjects: Sequence[str], student: Rows, teacher: Rows) -> dict[str, Any]:
    found = {}
    for measure, margin in MARGIN.items():
        pairs = np.asarray(
            [[a[measure], b[measure]] for a, b in zip(student, teacher, strict=True)]
        )
        interval = bootstrap(subjects, pairs, lambda means: means[:, 0] - means[:, 1])
        found[measure] = {
            **interval.to_dict(),
            "verdict": verdict(interval, margin, len(set(subjects))),
        }
    return found


def markdown(report: Mapping[str, Any]) -> str:
    """Return the table as GitHub Markdown."""
    lines = [
        "| test | subjects, volumes | zero-filled dB | teacher, dB | SSIM | student, dB | SSIM |"
        " student minus teacher, dB | SSIM |",
        "|---|---|---:|---|---:|---|---:|---|---|",
    ]
    for case in report["cases"]:
        own = case["student"]
        for teacher in case["teachers"]:
            psnr, ssim = (
                _changed(teacher["student_minus_teacher"][measure], digits, case)
                for measure, digits in (("psnr", 3), ("ssim", 4))
            )
            lines.append(
                f"| {case['title']} | {len(case['subjects'])}, {case['volumes']}"
                f" | {case['zero_filled']['psnr']['mean']:.2f}"
                f" | {_named(teacher['networks'])}: {teacher['figures']['psnr']['mean']:.2f}"
                f" | {teacher['figures']['ssim']['mean']:.4f}"
                f" | {_named(own['networks'])}: {own['figures']['psnr']['mean']:.2f}{_seeds(own)}"
                f" | {own['figures']['ssim']['mean']:.4f} | {psnr} | {ssim} |"
            )
    lines += [
        "",
        "Means over volumes; differences with 95 % intervals, paired bootstrap over subjects, then"
        f" volumes; {how(report)}. Verdicts at margins stated in advance: {MARGIN['psnr']} dB and"
        f" {MARGIN['ssim']} SSIM; below {FEW_SUBJECTS} test subjects there is none. Several seeds"
        " of a student are averaged volume by volume, with the mean of each in brackets."
        f" {report['statement']}",
    ]
    return "\n".join(lines)


def _named(networks: Sequence[Mapping[str, Any]]) -> str:
    """Name a network by its first run, with its steps and what it started from."""
    first = networks[0]
    # what reports say nothing of was trained with Adam, as all were before
    by = by_optimizer(first.get("optimizer", "adam"))
    steps = f", {first['steps']:,} steps{by}" if first.get("steps") else ""
    before = f" of {first['steps_before']:,}" if first.get("steps_before") else ""
    start = f" from `{first['started_from']}`{before}" if first.get("started_from") else ""
    recorded = "report_sha256" in first
    name = first["network"] if recorded else f"`{first['network']}`"
    return f"{name}{steps}{start}"


def _seeds(student: Mapping[str, Any]) -> str:
    if len(student["seeds"]) < 2:
        return ""
    return f" ({', '.join(format(one['psnr']['mean'], '.2f') for one in student['seeds'])})"


def _changed(found: Mapping[str, Any], digits: int, case: Mapping[str, Any]) -> str:
    interval = Interval(value=found["value"], low=found["low"], high=found["high"])
    several = case["volumes"] > 1 and interval.low is not None
    bounds = f" ({interval.low:+.{digits}f} to {interval.high:+.{digits}f})" if several else ""
    judged = "" if found["verdict"] == "inconclusive" else f": {found['verdict']}"
    return f"{interval.value:+.{digits}f}{bounds}{judged}"


@click.command(cls=Script)
@click.option(
    "--case", "cases", multiple=True, required=True, nargs=4,
    metavar="TITLE DATA TEACHERS STUDENTS",
    help="Teachers and students (one for each seed), comma-separated. Give folds one title.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Folder for report.json.")
def main(cases: tuple[tuple[str, str, str, str], ...], out: Path | None) -> None:
    """Judge students against their teachers on test subjects."""
    report = compare(
        [
            CaseRequest(
                title=title,
                data=Path(data),
                teachers=tuple(teachers.split(",")),
                students=tuple(students.split(",")),
            )
            for title, data, teachers, students in cases
        ]
    )
    record(report, out)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
