"""What the package's brain networks keep of real lesions: `python -m experiments.lesions`.

Volumes with masks of lesions beside them are undersampled with each network's mask, in float and
int8, and the contrast that is left of every section of a lesion is measured (`assessment.lesions`).
Slices without a lesion are not reconstructed. What a network kept is stored in a working folder, by
its hash, so that the command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from experiments.script import Script, record
from kdmri_bench.assessment.annotations import annotation_of
from kdmri_bench.assessment.data import AssessedVolume, load
from kdmri_bench.assessment.lesions import (
    DEFINITION,
    GROUPS,
    LOSS,
    LesionSection,
    caution,
    chosen,
    figures,
    find_sections,
    retained,
)
from kdmri_bench.assessment.networks import (
    FLOAT,
    INT8,
    ZERO_FILLED,
    AssessedNetwork,
    describe,
    opened,
    teacher_of,
)
from kdmri_bench.assessment.study import reconstructed, shown
from kdmri_bench.planning.sources import Source
from kdmri_bench.planning.testdata import RETROSPECTIVE
from kdmri_bench.results.statistics import EXPANDED, how
from kdmri_edge.data.case import Case
from kdmri_edge.data.datasets import attribution_of
from kdmri_edge.errors import BenchError
from kdmri_edge.models.shipped import shipped_networks
from kdmri_edge.utils.console import progress, say
from kdmri_edge.utils.files import read_json, write_json
from kdmri_edge.utils.provenance import provenance

__all__ = ["PLACES", "by_place", "main", "markdown", "measure", "summary"]

SCHEMA: Final = 1
PLACES: Final = ("brain-4x", "brain-5x", "brain-8x", "brain-any-mask")
"""Folders of the package's networks that are given magnitudes of brains."""

EVERY_SECOND: Final = "every second slice"
"""A group of sections as in the first measurement, which took slices of odd numbers."""


def by_place(networks: Sequence[str] = ()) -> list[list[str]]:
    """Return references of the package's brain networks, those of one mask together.

    Args:
        networks: References to keep; empty keeps all.

    Raises:
        BenchError: A reference is none of them.
    """
    known = [name for name in shipped_networks() if name.partition("@")[2] in PLACES]
    unknown = next((name for name in networks if name not in known), None)
    if unknown is not None:
        raise BenchError(f"{unknown} is no brain network of the package.", f"Those are {known}.")
    wanted = sorted(
        (name for name in known if not networks or name in networks),
        key=lambda name: PLACES.index(name.partition("@")[2]),
    )
    return [list(own) for _, own in groupby(wanted, lambda name: name.partition("@")[2])]


def _volumes(
    data: Path, source: Source, contrast: str
) -> tuple[list[AssessedVolume], list[tuple[LesionSection, ...]], list[list[int]], dict[str, int]]:
    """Read volumes, and keep the slices that have lesions: them, sections, numbers of slices."""
    volumes, sections, numbers = [], [], []
    left_out: dict[str, int] = {}
    for volume in load(data, source, contrast=contrast):
        annotation = annotation_of(volume, source.matrix)
        if annotation is None or not annotation.mask.any():
            say(f"{volume.case.name} has no lesions beside it and is left out.")
            continue
        with_lesions = np.flatnonzero(annotation.mask.any((1, 2)))
        kept = replace(volume, case=_of(volume.case, with_lesions))
        found = find_sections(kept.target, annotation.mask[with_lesions])
        volumes.append(kept)
        sections.append(found.kept)
        numbers.append([int(with_lesions[one.slice]) for one in found.kept])
        for why, count in found.left_out.items():
            left_out[why] = left_out.get(why, 0) + count
    if not volumes:
        raise BenchError(f"{data} has no annotated lesions.", "Put masks beside the volumes.")
    return volumes, sections, numbers, left_out


def _of(case: Case, slices: NDArray[np.intp]) -> Case:
    """Return some slices of images of one coil."""
    return replace(
        case,
        target=case.target[slices],
        zero_filled=case.zero_filled[slices],
        scale=case.scale[slices],
    )


def _values(
    network: AssessedNetwork | None,
    volumes: Sequence[AssessedVolume],
    sections: Sequence[Sequence[LesionSection]],
) -> list[float]:
    """Return what is retained of each section; without a network in the zero-filled images."""
    found: list[float] = []
    title = network.key if network else ZERO_FILLED
    with progress(title, sum(volume.case.count for volume in volumes)) as advance:
        for volume, own in zip(volumes, sections, strict=True):
            if network is None:
                images = shown(volume.case.zero_filled)
            else:
                images = reconstructed(network, volume.case, advance)
            found += [float(value) for value in retained(volume.target, images, own)]
    return found


def _stored(
    network: AssessedNetwork, work: Path, volumes: Sequence[AssessedVolume], count: int
) -> tuple[Path, list[float] | None]:
    """Return where a network's figures are kept, and them where they are of the same volumes."""
    file = work / f"{network.key.replace('/', '_').replace(' ', '-')}.json"
    if not file.is_file():
        return file, None
    value = read_json(file, BenchError, finite=False)
    same = value["is"] == _identity(network, volumes) and len(value["values"]) == count
    return file, list(value["values"]) if same else None


def _identity(network: AssessedNetwork, volumes: Sequence[AssessedVolume]) -> dict[str, Any]:
    return {
        "checkpoint": network.checkpoint_sha256,
        "ran": network.ran,
        "definition": DEFINITION,
        "volumes": [volume.case.sha256 for volume in volumes],
    }


def measure(
    places: Sequence[Sequence[str]],
    data: Path,
    *,
    contrast: str = "FLAIR",
    work: Path,
    threads: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure networks in float and int8.

    Args:
        places: References of networks, those of one mask together.
        data: Folder of volumes with lesions beside them.
        contrast: Which of them.
        work: Folder where each network's figures are kept until all are there.
        threads: CPU threads.
        seed: Of the resampling.

    Raises:
        KdmriError: Networks or data are missing or damaged.
    """
    found: list[dict[str, Any]] = []
    for names in places:
        sources = describe(list(names))
        volumes, sections, numbers, left_out = _volumes(data, sources[0], contrast)
        flat = [one for own in sections for one in own]
        subjects = [
            volume.case.subject for volume, own in zip(volumes, sections, strict=True) for _ in own
        ]
        odd = np.array([number % 2 == 1 for own in numbers for number in own])
        values = {ZERO_FILLED: _values(None, volumes, sections)}
        facts: list[dict[str, Any]] = []
        teacher = teacher_of(sources)
        with opened(sources, threads=threads) as (networks, missing):
            for network in networks:
                file, kept = _stored(network, work, volumes, len(flat))
                if kept is None:
                    kept = _values(network, volumes, sections)
                    write_json(file, {"is": _identity(network, volumes), "values": kept})
                values[network.key] = kept
                facts.append(network.to_dict())
        mask = sources[0].mask
        found.append(
            {
                "place": names[0].partition("@")[2],
                "mask": {
                    "name": mask.name,
                    "nominal_acceleration": mask.nominal_acceleration,
                    "effective_acceleration": mask.effective_acceleration,
                },
                "teacher": teacher.name if teacher else None,
                "networks": facts,
                "missing": [{"key": one.key, "reason": one.reason} for one in missing],
                "volumes": [
                    {"name": volume.case.name, "subject": volume.case.subject,
                     "slices": volume.case.count, "sections": len(own)}
                    for volume, own in zip(volumes, sections, strict=True)
                ],
                "left_out": left_out,
                "rows": _rows(
                    values, subjects, np.array([one.is_small for one in flat]), odd,
                    f"{teacher.name} {FLOAT}" if teacher else None, seed,
                ),
            }
        )  # fmt: skip
    return {
        "schema": SCHEMA,
        "contrast": contrast,
        "definition": DEFINITION,
        "caution": caution(len({one["subject"] for one in found[0]["volumes"]})),
        "statement": RETROSPECTIVE,
        "intervals": EXPANDED,
        "attribution": attribution_of(data),
        "places": found,
        "provenance": provenance(seed),
    }


def _rows(
    values: Mapping[str, Sequence[float]],
    subjects: Sequence[str],
    small: np.ndarray[Any, np.dtype[np.bool_]],
    odd: np.ndarray[Any, np.dtype[np.bool_]],
    teacher: str | None,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the figures of each network and group of sections."""
    rows = []
    for subset, within in (("", np.ones_like(odd)), (EVERY_SECOND, odd)):
        for group in GROUPS:
            kept = chosen(group, small) & within
            whose = [subject for subject, taken in zip(subjects, kept, strict=True) if taken]
            for key, all_values in values.items():
                own = np.array(all_values)[kept]
                compared = teacher is not None and key not in (teacher, ZERO_FILLED)
                theirs = np.array(values[teacher])[kept] if teacher and compared else None
                found = figures(own, whose, theirs, seed=seed)
                rows.append(
                    {
                        "network": key,
                        "group": group,
                        "slices": subset or "all",
                        "figures": None if found is None else found.to_dict(),
                    }
                )
    return rows


def _interval(value: Mapping[str, float | None], digits: int = 3, factor: float = 1.0) -> str:
    if value["value"] is None:
        return "-"
    text = f"{factor * value['value']:.{digits}f}"
    if value["low"] is None or value["high"] is None:
        return text
    return f"{text} ({factor * value['low']:.{digits}f} to {factor * value['high']:.{digits}f})"


def _found(place: Mapping[str, Any], key: str, group: str, slices: str = "all") -> dict[str, Any]:
    for row in place["rows"]:
        if (row["network"], row["group"], row["slices"]) == (key, group, slices):
            return dict(row["figures"])
    raise BenchError(f"The report has no row of {key}, {group}.", "Measure it.")


def _keys(place: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the keys of a place's rows with what the tables call them, the teacher's first."""
    yield ZERO_FILLED, ZERO_FILLED
    for network in sorted(
        place["networks"], key=lambda one: (one["name"] != place["teacher"], one["name"])
    ):
        role = "teacher" if network["name"] == place["teacher"] else "student"
        yield network["key"], f"`{network['name']}`, {network['precision']} ({role})"


def markdown(report: Mapping[str, Any]) -> str:
    """Return the tables as GitHub Markdown."""
    lines = []
    for group, title in GROUPS.items():
        first = report["places"][0]
        count = _found(first, ZERO_FILLED, group)["sections"]
        lines += [
            f"**{title[0].upper()}{title[1:]}** ({count}):",
            "",
            "| mask | network | median | 5th percentile | median minus teacher's |"
            f" % that keep {LOSS} less | by subject |",
            "|---|---|---:|---:|---:|---:|---|",
        ]
        for place in report["places"]:
            for key, name in _keys(place):
                own = _found(place, key, group)
                behind = _interval(own["behind"]) if own["behind"] else ""
                lost = _interval(own["lost"], 1, 100) if own["lost"] else ""
                by_subject = ", ".join(
                    f"{subject} {value:.2f}" for subject, value in own["by_subject"].items()
                )
                lines.append(
                    f"| {place['mask']['name']} | {name} | {_interval(own['median'])} |"
                    f" {_interval(own['low5'], 2)} | {behind} | {lost} | {by_subject} |"
                )
        lines.append("")
    place = report["places"][0]
    lines += _every_second(report)
    left_out = ", ".join(f"{n} {why}" for why, n in place["left_out"].items())
    lines += [
        f"{report['definition']} {report['contrast']} of"
        f" {len({one['subject'] for one in place['volumes']})} subjects, padded with air; median"
        " and 5th percentile over sections, in brackets 95 % intervals by drawing subjects, then"
        f" their sections; {how(report)}. {report['caution']} Left out: {left_out or 'none'}."
        f" {report['statement']}",
    ]
    return "\n".join(lines)


def _every_second(report: Mapping[str, Any]) -> list[str]:
    """Return the table of slices of odd numbers in float, median [5th percentile]."""
    lines = [
        "**Slices of odd numbers alone**, median [5th percentile]:",
        "",
        "| mask | sections | network | median [5th percentile] |"
        f" % that keep {LOSS} less than with the teacher |",
        "|---|---|---|---:|---:|",
    ]
    for place in report["places"]:
        for group, title in GROUPS.items():
            for key, name in _keys(place):
                own = _found(place, key, group, EVERY_SECOND)
                if key.endswith(f" {INT8}"):
                    continue
                lost = f"{100 * own['lost']['value']:.1f}" if own["lost"] else ""
                lines.append(
                    f"| {place['mask']['name']} | {title} ({own['sections']}) | {name} |"
                    f" {own['median']['value']:.3f} [{own['low5']['value']:.2f}] | {lost} |"
                )
    return [*lines, ""]


def summary(report: Mapping[str, Any]) -> str:
    """Return the summary beside PSNR: what is left of lesions, a column for each mask."""
    places = report["places"]
    columns: list[dict[str, str]] = []
    for place in places:
        cells = {ZERO_FILLED: _both(place, ZERO_FILLED)}
        names = dict.fromkeys([place["teacher"], *(one["name"] for one in place["networks"])])
        for name in names:
            role = " (teacher)" if name == place["teacher"] else ""
            title = f"`{name.partition('@')[0]}`{role}"
            own = [one["precision"] for one in place["networks"] if one["name"] == name]
            if own:
                cells[title] = _cell(place, name, own)
        columns.append(cells)
    rows = dict.fromkeys(title for column in columns for title in column)
    lines = [
        f"| network | {' | '.join(place['place'] for place in places)} |",
        f"|---|{'---:|' * len(places)}",
        *(f"| {row} | {' | '.join(column.get(row, '') for column in columns)} |" for row in rows),
    ]
    lines += [
        "",
        "Contrast of multiple-sclerosis lesions that is left, 1 where nothing is lost: median of"
        f" all sections, and of those of {GROUPS['small']}; in float32, and in int8 where that"
        " differs.",
    ]
    return "\n".join(lines)


def _cell(place: Mapping[str, Any], name: str, precisions: Sequence[str]) -> str:
    """Return what a network leaves, and what its rounded copy does where that is not the same."""
    in_float, rounded = (
        _both(place, f"{name} {one}") if one in precisions else None for one in (FLOAT, INT8)
    )
    if rounded is None:
        return f"{in_float} (float32 alone)"
    if in_float is None:
        return f"int8 {rounded}"
    return in_float if in_float == rounded else f"{in_float}; int8 {rounded}"


def _both(place: Mapping[str, Any], key: str) -> str:
    values = (_found(place, key, group)["median"]["value"] for group in ("all", "small"))
    return ", ".join(f"{value:.2f}" for value in values)


@click.command(cls=Script)
@click.argument("networks", nargs=-1)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Annotated volumes.")
@click.option("--contrast", default="FLAIR", show_default=True)
@click.option(
    "--work", default=Path("lesions-work"), show_default=True, type=click.Path(path_type=Path),
    help="Folder of what is measured so far.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--out", type=click.Path(path_type=Path), help="Write report.json into this folder.")
def main(
    networks: tuple[str, ...],
    data: Path,
    contrast: str,
    work: Path,
    threads: int | None,
    out: Path | None,
) -> None:
    """Measure what brain networks of the package (all, or NETWORKS) keep of real lesions."""
    report = measure(by_place(networks), data, contrast=contrast, work=work, threads=threads)
    record(report, out)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
