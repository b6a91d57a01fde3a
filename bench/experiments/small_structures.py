"""What inserted structures in training do to lesions: `python -m experiments.small_structures`.

A finished student is trained further, for the same number of steps on the same batches: as before
(the control), and with structures that are inserted, whose error in contrast is weighted more and
more. The strength is chosen on validation volumes: the largest that costs at most `MARGIN_DB`.
Test subjects and annotated lesions are measured afterwards, and choose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from experiments.script import Script, record
from kdmri_bench.assessment.data import AssessedVolume, load
from kdmri_bench.assessment.lesions import SMALL, AnnotatedVolume, annotated, figures, retained
from kdmri_bench.measuring.quality import volume_rows
from kdmri_bench.planning.sources import Source, from_checkpoint
from kdmri_bench.planning.testdata import load_cases
from kdmri_bench.reproduce.work import STATEMENT, reconstruct
from kdmri_bench.results.statistics import bootstrap
from kdmri_edge.data.case import Case
from kdmri_edge.data.datasets import attribution_of, find_parts
from kdmri_edge.distillation.engine import Engine
from kdmri_edge.distillation.request import Request, Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.distillation.run_folder import devices
from kdmri_edge.errors import BenchError
from kdmri_edge.models.checkpoint import read_checkpoint_meta
from kdmri_edge.models.shipped import is_reference, resolve_weights
from kdmri_edge.models.specs import PRESETS, preset, spec_from_dict
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.files import sha256_file
from kdmri_edge.utils.provenance import provenance

__all__ = ["MARGIN_DB", "compare", "markdown", "settings_of"]

SCHEMA: Final = 1

MARGIN_DB: Final = 0.05
"""PSNR that a student may lose for small structures, against the student that it starts from."""

WANTED_POINTS: Final = 5.0
"""Percentage points of the contrast of small lesions that it should gain for that."""

WEIGHTS: Final = (0.05, 0.1)
"""Weights of the error in contrast that are tried."""

CONTROL: Final = "control"
_COMMON: Final = (
    "optim.learning_rate=5e-4",
    "optim.warmup=50",
    # The teacher flattens small structures itself, so it is not imitated any longer.
    "distillation.imitation_until=0",
)
# Most structures are as small as what is lost: lesions of at most 12 pixels are 4 across.
_INSERTED: Final = ("insertion.share=0.5", "insertion.largest=6")


def _called(network: str) -> str:
    """Return what a table calls a network: a file by its name alone."""
    return network if is_reference(network) else Path(network).stem


def _name(weight: float | None) -> str:
    return CONTROL if weight is None else f"weight-{weight:g}"


def _preset_of(start: str) -> str:
    """Return the preset of a trained network's architecture.

    Raises:
        BenchError: It is of none.
    """
    spec = spec_from_dict(read_checkpoint_meta(resolve_weights(Path(start)))["spec"])
    for name in PRESETS:
        if preset(name) == spec:
            return name
    raise BenchError(f"{start} is of no preset's architecture.", "Start from one that is.")


def settings_of(
    weight: float | None, data: Path, *, start: str, teacher: str, steps: int, seed: int = 0
) -> Settings:
    """Return the request of one training.

    Args:
        weight: Of the error in contrast; None for the control.
        data: Folder of volumes, of which the split's training subjects are used.
        start: What is trained further: a trained network of the package, or a checkpoint.
        teacher: Its teacher.
        steps: Further steps.
        seed: Of batches and structures.
    """
    inserted = () if weight is None else (*_INSERTED, f"insertion.contrast_weight={weight:g}")
    assignments = (f"imitation_steps={steps}", f"seed={seed}", *_COMMON, *inserted)
    request = Request(
        data=data,
        mask=start,
        teacher=teacher,
        student=_preset_of(start),
        start_from=start,
        recipe="carried",
        assignments=assignments,
    )
    return request.settings()


def _closest(rows: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str | None:
    """Return which strength is chosen: the last of those that cost little enough in validation."""
    start = rows["start"]["validation_psnr_db"]
    kept = [name for name in names if rows[name]["validation_psnr_db"] >= start - MARGIN_DB]
    return kept[-1] if kept else None


def _psnr(checkpoint: Path) -> float:
    return float(read_checkpoint_meta(checkpoint)["training"]["validation_psnr_db"])


def _quality(
    cases: Sequence[Case], made: Mapping[str, Sequence[Any]], subjects: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return PSNR and SSIM of networks, and how they differ from the start's."""
    rows = {name: volume_rows(cases, images) for name, images in made.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, own in rows.items():
        found[name] = {}
        for measure in ("psnr", "ssim"):
            both = np.array(
                [[a[measure], b[measure]] for a, b in zip(own, rows["start"], strict=True)]
            )
            change = bootstrap(subjects, both, lambda means: means[:, 0] - means[:, 1])
            found[name][measure] = float(both[:, 0].mean())
            found[name][f"{measure}_change"] = change.to_dict()
    return found


def _lesions(
    volumes: Sequence[AnnotatedVolume], made: Mapping[str, Sequence[Any]]
) -> dict[str, dict[str, Any]]:
    """Return what networks retain of the contrast of lesions; `behind` is against the start."""
    subjects = [one.volume.case.subject for one in volumes for _ in one.sections.kept]
    small = np.array([each.is_small for one in volumes for each in one.sections.kept])
    values = {
        name: np.concatenate(
            [
                retained(one.volume.target, np.maximum(images[one.index], 0), one.sections.kept)
                for one in volumes
            ]
        )
        for name, images in made.items()
    }
    found: dict[str, dict[str, Any]] = {}
    for name, own in values.items():
        found[name] = {}
        for group, kept in (("small", small), ("all", np.ones_like(small))):
            whose = [subject for subject, is_in in zip(subjects, kept, strict=True) if is_in]
            before = None if name == "start" else values["start"][kept]
            figure = figures(own[kept], whose, before)
            if figure is None:
                raise BenchError(
                    "No section of a lesion can be measured.",
                    "Name a folder with masks of lesions.",
                )
            found[name][group] = figure.to_dict()
    return found


def compare(
    data: Path,
    lesions: Path,
    out: Path,
    *,
    start: str,
    teacher: str,
    steps: int,
    weights: Sequence[float] = WEIGHTS,
    seed: int = 0,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Train what is missing under `out`, measure all, and return the report.

    Args:
        data: Folder of volumes that follow the student's split.
        lesions: Folder of volumes beside which lesions are annotated; of other subjects.
        out: Folder of the runs; the same request goes on where it stopped.
        start: Trained student.
        teacher: Its teacher.
        steps: Further steps.
        weights: Of the error in contrast, rising.
        seed: Of batches and structures.
        engine: Where to train; None is one process on the best device.

    Raises:
        BenchError: No lesion can be measured.
        KdmriError: See `distill`.
    """
    checkpoints = {
        "teacher": resolve_weights(Path(teacher)),
        "start": resolve_weights(Path(start)),
    }
    names = []
    for weight in (None, *weights):
        wanted = settings_of(weight, data, start=start, teacher=teacher, steps=steps, seed=seed)
        run = distill(wanted, out / _name(weight), engine=engine)
        checkpoints[_name(weight)] = run.weights("student")
        names += [] if weight is None else [_name(weight)]
    source = from_checkpoint(checkpoints["start"])
    cases, volumes = _test(data, source), load(lesions, source)
    found, without = annotated(volumes, source.matrix)
    if not found:
        raise BenchError(
            f"There is no lesion to measure on in {lesions} ({'; '.join(without.values())}).",
            "Name a folder with masks of lesions beside the volumes.",
        )
    made, made_lesions = {}, {}
    with progress("Reconstructing", len(checkpoints)) as advance:
        for name, checkpoint in checkpoints.items():
            made[name] = reconstruct(checkpoint, cases)
            made_lesions[name] = _made(checkpoint, volumes)
            advance(1)
    quality = _quality(cases, made, [case.subject for case in cases])
    contrast = _lesions(found, made_lesions)
    rows = {
        name: {
            "weights_sha256": sha256_file(checkpoint),
            "contrast_weight": float(name.partition("-")[2]) if name in names else None,
            "validation_psnr_db": _psnr(checkpoint),
            "test": quality[name],
            "lesions": contrast[name],
        }
        for name, checkpoint in checkpoints.items()
    }
    chosen = _closest(rows, names)
    return {
        "schema": SCHEMA,
        "start": _called(start),
        "teacher": _called(teacher),
        "steps": steps,
        "seed": seed,
        "assignments": {"all": list(_COMMON), "inserted": list(_INSERTED)},
        "margin_db": MARGIN_DB,
        "wanted_points": WANTED_POINTS,
        "chosen": chosen,
        "small_pixels": SMALL,
        "mask": source.mask.name,
        "test_subjects": sorted({case.subject for case in cases}),
        "lesion_subjects": sorted({one.volume.case.subject for one in found}),
        "statement": STATEMENT,
        "attribution": [attribution_of(data), attribution_of(lesions)],
        "rows": rows,
        "trained_on": devices(out / name / "run.json" for name in (CONTROL, *names)),
        "provenance": provenance(seed),
    }


def _test(data: Path, source: Source) -> tuple[Case, ...]:
    files = find_parts(data).test
    return load_cases(files, mask=source.mask, matrix=source.matrix, spec=source.spec).cases


def _made(checkpoint: Path, volumes: Sequence[AssessedVolume]) -> list[Any]:
    return reconstruct(checkpoint, [volume.case for volume in volumes])


def _verdict(report: Mapping[str, Any]) -> str:
    """Say what was chosen, what it gained, and whether that is what was wanted."""
    wanted, margin = report["wanted_points"], report["margin_db"]
    if report["chosen"] is None:
        return f"No strength costs at most {margin} dB on the validation volumes: none is chosen."
    row, before = report["rows"][report["chosen"]], report["rows"]["start"]
    lost = before["test"]["psnr"] - row["test"]["psnr"]
    medians = [each["lesions"]["small"]["median"]["value"] for each in (row, before)]
    gained = 100 * (medians[0] - medians[1])
    accepted = lost <= margin and gained >= wanted
    return (
        f"Chosen on the validation volumes: weight {row['contrast_weight']:g}. On the test subjects"
        f" it changes PSNR by {-lost:+.3f} dB (at most -{margin} is accepted), and of the contrast"
        f" of small lesions it keeps {gained:+.1f} percentage points ({wanted:g} were wanted):"
        f" {'accepted' if accepted else 'not accepted'}."
    )


def _title(name: str, report: Mapping[str, Any]) -> str:
    if name in ("teacher", "start"):
        return f"{report[name]}"
    if name == CONTROL:
        return "trained further, nothing inserted"
    return f"structures inserted, weight {report['rows'][name]['contrast_weight']:g}"


def markdown(report: Mapping[str, Any]) -> str:
    """Return the table as GitHub Markdown, and what follows from it."""
    small = report["small_pixels"]
    lines = [
        "| network | validation PSNR dB | test PSNR dB | test SSIM |"
        f" lesions of at most {small} pixels | all lesions |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in report["rows"].items():
        cells = []
        for group in ("small", "all"):
            own = row["lesions"][group]
            cells.append(f"{own['median']['value']:.3f} [{own['low5']['value']:.2f}]")
        lines.append(
            f"| {_title(name, report)} | {row['validation_psnr_db']:.2f} |"
            f" {row['test']['psnr']:.3f} | {row['test']['ssim']:.4f} | {cells[0]} | {cells[1]} |"
        )
    counts = report["rows"]["start"]["lesions"]
    lines += [
        "",
        "Contrast retained of real lesions, median [5th percentile] over"
        f" {counts['small']['sections']} sections of at most {small} pixels and"
        f" {counts['all']['sections']} in all, of {len(report['lesion_subjects'])} subjects, who"
        " were in no training and no choice; PSNR and SSIM of test subjects"
        f" {', '.join(report['test_subjects'])}. {report['steps']} further steps each, mask"
        f" {report['mask']}, seed {report['seed']}; trained on {'; '.join(report['trained_on'])}."
        f" {report['statement']}",
        "",
        _verdict(report),
    ]
    return "\n".join(lines)


@click.command(cls=Script)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of volumes.")
@click.option(
    "--lesions", required=True, type=click.Path(path_type=Path),
    help="Folder of volumes of other subjects, with masks of lesions beside them.",
)  # fmt: skip
@click.option(
    "--start", default="dccnn-edge@brain-4x", show_default=True, help="Student, or its file."
)
@click.option("--teacher", default="dccnn-d5c5@brain-4x", show_default=True, help="Its teacher.")
@click.option("--steps", default=600, show_default=True, help="Further optimiser steps of each.")
@click.option(
    "--weights", default=",".join(f"{weight:g}" for weight in WEIGHTS), show_default=True,
    help="Weights of the error in contrast, rising, comma-separated.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True)
@click.option("--runs", default=Path("small-structures"), type=click.Path(path_type=Path),
              help="Folder of the trainings, which go on where they stopped.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Folder for report.json.")
@click.option("--threads", type=int)
def main(
    data: Path,
    lesions: Path,
    start: str,
    teacher: str,
    steps: int,
    weights: str,
    seed: int,
    runs: Path,
    out: Path | None,
    threads: int | None,
) -> None:
    """Train a student further with small structures inserted, and measure lesions."""
    try:
        strengths = [float(weight) for weight in weights.split(",")]
    except ValueError:
        raise BenchError(
            f"--weights {weights!r} is no list of numbers.", "Write e.g. 0.05,0.1."
        ) from None
    report = compare(
        data,
        lesions,
        runs,
        start=start,
        teacher=teacher,
        steps=steps,
        weights=sorted(strengths),
        seed=seed,
        engine=Engine(threads=threads),
    )
    record(report, out)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
