"""What inserted structures in training do to lesions: `python -m experiments.small_structures`.

A finished student is trained further, for the same number of steps on the same batches: as before
(the control), and with structures that are inserted, whose error in contrast is weighted more and
more. The strength is chosen on validation volumes: the largest that costs at most `MARGIN_DB`.
Test subjects and annotated lesions are measured afterwards, and choose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from experiments.script import Script, record
from kdmri_bench.assessment.annotations import annotation_of
from kdmri_bench.assessment.data import load
from kdmri_bench.assessment.lesions import SMALL, LesionSection, annotated, figures, retained
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
from kdmri_edge.utils.files import read_json, sha256_file, write_json
from kdmri_edge.utils.provenance import provenance

__all__ = ["MARGIN_DB", "compare", "markdown", "settings_of"]

SCHEMA: Final = 1

MARGIN_DB: Final = 0.05
"""PSNR that a student may lose for small structures, against the student that it starts from."""

WANTED_POINTS: Final = 5.0
"""Percentage points of the contrast of small lesions that it should gain for that."""

WEIGHTS: Final = (0.05, 0.1)
"""Weights of the error in contrast that are tried."""

CONTRAST: Final = "FLAIR"
"""Of the volumes with lesions: lesions of multiple sclerosis are bright there."""

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


def _annotated(
    lesions: Path, source: Source, contrast: str
) -> tuple[list[Case], list[tuple[LesionSection, ...]]]:
    """Read the slices in which lesions are annotated.

    Returns:
        Of each volume these slices alone, and their sections.

    Raises:
        BenchError: There is none.
    """
    volumes = load(lesions, source, contrast=contrast)
    found, without = annotated(
        volumes, [annotation_of(volume, source.matrix) for volume in volumes]
    )
    if not found:
        raise BenchError(
            f"There is no lesion to measure on in {lesions} ({'; '.join(without.values())}).",
            "Name a folder with masks of lesions beside the volumes.",
        )
    cases, sections = [], []
    for one in found:
        numbers = sorted({section.slice for section in one.sections.kept})
        places = {number: place for place, number in enumerate(numbers)}
        cases.append(one.volume.case.part(numbers))  # type: ignore[arg-type]  # of one coil
        sections.append(
            tuple(replace(section, slice=places[section.slice]) for section in one.sections.kept)
        )
    return cases, sections


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What networks are measured on, and what was found of each, which is kept in a folder.

    Attributes:
        folder: Of the files, one for each network.
        cases: Test volumes.
        lesions: Slices with lesions.
        sections: Of these lesions, volume by volume.
    """

    folder: Path
    cases: Sequence[Case]
    lesions: Sequence[Case]
    sections: Sequence[Sequence[LesionSection]]

    def of(self, name: str, checkpoint: Path) -> dict[str, Any]:
        """Return figures of test volumes, and the contrast retained of each section."""
        file = self.folder / f"evaluation-{name}.json"
        key = {
            "weights_sha256": sha256_file(checkpoint),
            "volumes_sha256": [case.sha256 for case in (*self.cases, *self.lesions)],
        }
        if file.is_file():
            stored = dict(read_json(file, BenchError, finite=False))
            if {part: stored.get(part) for part in key} == key:
                return stored
        kept = [
            retained(np.abs(case.target), np.maximum(image, 0), sections)
            for case, image, sections in zip(
                self.lesions, reconstruct(checkpoint, self.lesions), self.sections, strict=True
            )
        ]
        made = {
            **key,
            "rows": volume_rows(self.cases, reconstruct(checkpoint, self.cases)),
            "retained": np.concatenate(kept).tolist(),
        }
        write_json(file, made)
        return made

    def figures(self, found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Sum up what was found of networks, with changes against the start.

        Raises:
            BenchError: A group of lesions has no section.
        """
        subjects = [case.subject for case in self.cases]
        of_sections = [
            case.subject
            for case, sections in zip(self.lesions, self.sections, strict=True)
            for _ in sections
        ]
        small = np.array([one.is_small for sections in self.sections for one in sections])
        first = found["start"]
        result: dict[str, dict[str, Any]] = {}
        for name, own in found.items():
            test: dict[str, Any] = {}
            for measure in ("psnr", "ssim"):
                both = np.array(
                    [
                        [a[measure], b[measure]]
                        for a, b in zip(own["rows"], first["rows"], strict=True)
                    ]
                )
                change = bootstrap(subjects, both, lambda means: means[:, 0] - means[:, 1])
                test |= {measure: float(both[:, 0].mean()), f"{measure}_change": change.to_dict()}
            lesions: dict[str, Any] = {}
            for group, kept in (("small", small), ("all", np.ones_like(small))):
                whose = [subject for subject, is_in in zip(of_sections, kept, strict=True) if is_in]
                values, before = (np.array(each["retained"])[kept] for each in (own, first))
                summed = figures(values, whose, None if name == "start" else before)
                if summed is None:
                    raise BenchError(
                        "No section of a lesion can be measured.",
                        "Name a folder with masks of lesions.",
                    )
                lesions[group] = summed.to_dict()
            result[name] = {"test": test, "lesions": lesions}
        return result


def compare(
    data: Path,
    lesions: Path,
    out: Path,
    *,
    start: str,
    teacher: str,
    steps: int,
    weights: Sequence[float] = WEIGHTS,
    contrast: str = CONTRAST,
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
        contrast: Of the volumes with lesions.
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
    source = from_checkpoint(checkpoints["start"])
    lesion_cases, sections = _annotated(lesions, source, contrast)
    measured = _Measured(
        folder=out, cases=_test(data, source), lesions=lesion_cases, sections=sections
    )
    found = {name: measured.of(name, checkpoint) for name, checkpoint in checkpoints.items()}
    for weight in (None, *weights):
        wanted = settings_of(weight, data, start=start, teacher=teacher, steps=steps, seed=seed)
        run = distill(wanted, out / _name(weight), engine=engine)
        checkpoints[_name(weight)] = run.weights("student")
        found[_name(weight)] = measured.of(_name(weight), run.weights("student"))
    names = [_name(weight) for weight in weights]
    summed = measured.figures(found)
    rows = {
        name: {
            "weights_sha256": sha256_file(checkpoint),
            "contrast_weight": float(name.partition("-")[2]) if name in names else None,
            "validation_psnr_db": _psnr(checkpoint),
            **summed[name],
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
        "test_subjects": sorted({case.subject for case in measured.cases}),
        "lesion_subjects": sorted({case.subject for case in lesion_cases}),
        "lesion_contrast": contrast,
        "statement": STATEMENT,
        "attribution": [attribution_of(data), attribution_of(lesions)],
        "rows": rows,
        "trained_on": devices(out / name / "run.json" for name in (CONTROL, *names)),
        "provenance": provenance(seed),
    }


def _test(data: Path, source: Source) -> tuple[Case, ...]:
    files = find_parts(data).test
    return load_cases(files, mask=source.mask, matrix=source.matrix, spec=source.spec).cases


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
        f" {counts['small']['sections']} sections ({report['lesion_contrast']}) of at most {small}"
        f" pixels and {counts['all']['sections']} in all, of {len(report['lesion_subjects'])}"
        " subjects, who were in no training and no choice; PSNR and SSIM of test subjects"
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
    "--contrast", default=CONTRAST, show_default=True, help="Of the volumes with lesions."
)
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
    contrast: str,
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
        contrast=contrast,
        seed=seed,
        engine=Engine(threads=threads),
    )
    record(report, out)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
