"""How small a lesion is still found after compression: `python -m experiments.inserted_lesions`.

Discs of known size and contrast are put into slices of test volumes before undersampling, and model
observers say how well they are detected in the images of the package's brain networks, in float and
int8, in the zero-filled images and in the fully sampled ones (`assessment.inserted`). What is found
of a network is kept in a working folder, so that the command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from experiments.lesions import by_place
from experiments.script import Script, record
from kdmri_bench.assessment.annotations import annotation_of
from kdmri_bench.assessment.data import load
from kdmri_bench.assessment.inserted import (
    DROP,
    METHOD,
    RESAMPLES,
    Areas,
    Grid,
    Scene,
    area_weights,
    first_drop,
    fully_sampled,
    measure_scenes,
    reconstruction_of,
    scenes_of,
    subjects_of,
)
from kdmri_bench.assessment.lesions import caution
from kdmri_bench.assessment.networks import (
    FLOAT,
    ZERO_FILLED,
    describe,
    opened,
    teacher_of,
)
from kdmri_bench.planning.sources import Source
from kdmri_bench.planning.testdata import RETROSPECTIVE
from kdmri_bench.results.statistics import EXPANDED, Interval, how
from kdmri_edge.data.datasets import attribution_of
from kdmri_edge.errors import BenchError
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.files import atomic_path, sha256_bytes
from kdmri_edge.utils.provenance import provenance

__all__ = ["drops", "main", "markdown", "measure", "roc_svg"]

SCHEMA: Final = 1
PLACES: Final = ("brain-4x", "brain-5x", "brain-8x")
FULLY_SAMPLED: Final = "fully sampled"
OBSERVERS: Final = {
    "CHO": "channelised Hotelling observer",
    "NPWE": "non-prewhitening observer with an eye filter",
}

_SLICES: Final = 5


def _scenes(
    data: Sequence[Path], source: Source, grid: Grid, contrast: str, slices: int
) -> list[Scene]:
    volumes = [volume for folder in data for volume in load(folder, source, contrast=contrast)]
    annotations = [annotation_of(volume, source.matrix) for volume in volumes]
    lesions = [None if one is None else one.mask for one in annotations]
    scenes = scenes_of(volumes, grid, slices=slices, lesions=lesions)
    if not scenes:
        raise BenchError("No slice has a place for a lesion.", "Give volumes of heads.")
    return scenes


def _store(file: Path, own: Areas) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    for observer, by_condition in own.drawn.items():
        for (size, contrast), values in by_condition.items():
            arrays[f"{observer}|{size}|{contrast}"] = values
    for (size, contrast), values in own.retained.items():
        arrays[f"retained|{size}|{contrast}"] = values
    for least, count in own.false.items():
        arrays[f"false|{least}|0"] = np.array(count)
    with atomic_path(file) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)


def _load(file: Path, subjects: int) -> Areas:
    drawn: dict[str, dict[tuple[float, float], NDArray[np.float64]]] = {}
    retained, false = {}, {}
    with np.load(file) as arrays:
        for key in arrays.files:
            kind, first, second = key.split("|")
            if kind == "false":
                false[float(first)] = int(arrays[key])
            elif kind == "retained":
                retained[float(first), float(second)] = arrays[key]
            else:
                drawn.setdefault(kind, {})[float(first), float(second)] = arrays[key]
    return Areas(subjects=subjects, drawn=drawn, retained=retained, false=false)


def measure(
    places: Sequence[Sequence[str]],
    data: Sequence[Path],
    *,
    grid: Grid,
    contrast: str = "FLAIR",
    slices: int = _SLICES,
    work: Path,
    threads: int | None = None,
) -> dict[str, Any]:
    """Measure networks in float and int8.

    Args:
        places: References of networks, those of one mask together.
        data: Folders of volumes; test subjects alone are taken.
        grid: What is inserted.
        contrast: Which volumes.
        slices: Of each volume.
        work: Folder where what is found of each network is kept until all is there.
        threads: CPU threads.

    Raises:
        KdmriError: Networks or data are missing or damaged.
    """
    found: list[dict[str, Any]] = []
    for names in places:
        sources = describe(list(names))
        scenes = _scenes(data, sources[0], grid, contrast, slices)
        subjects = subjects_of(scenes)
        weights = area_weights(subjects, RESAMPLES, grid.seed)
        steps = len(scenes) * (1 + len(grid.conditions))
        place = names[0].partition("@")[2]
        what = sha256_bytes(
            repr((asdict(grid), [scene.image.tobytes() for scene in scenes], METHOD)).encode()
        )

        def kept(
            key: str,
            weights_hash: str,
            reconstruct: Callable[[NDArray[np.complex64]], NDArray[Any]],
            *,
            scenes: Sequence[Scene] = scenes,
            weights: NDArray[np.float64] = weights,
            steps: int = steps,
            what: str = what,
        ) -> Areas:
            named = sha256_bytes(f"{key} {weights_hash} {what}".encode())[:16]
            file = work / f"{named}.npz"
            if file.is_file():
                return _load(file, len(set(subjects_of(scenes))))
            with progress(key, steps) as advance:
                own = measure_scenes(scenes, grid, reconstruct, weights, advance=advance)
            _store(file, own)
            return own

        results = {
            FULLY_SAMPLED: kept(FULLY_SAMPLED, "", fully_sampled),
            ZERO_FILLED: kept(ZERO_FILLED, place, reconstruction_of(sources[0], None)),
        }
        with opened(sources, threads=threads) as (networks, missing):
            facts = [network.to_dict() for network in networks]
            for network in networks:
                road = reconstruction_of(network.source, network.pipeline)
                identity = f"{network.checkpoint_sha256} {network.ran}"
                results[network.key] = kept(network.key, identity, road)
        teacher = teacher_of(sources)
        mask = sources[0].mask
        found.append(
            {
                "place": place,
                "mask": {
                    "name": mask.name,
                    "nominal_acceleration": mask.nominal_acceleration,
                    "effective_acceleration": mask.effective_acceleration,
                },
                "teacher": teacher.name if teacher else None,
                "networks": facts,
                "missing": [{"key": one.key, "reason": one.reason} for one in missing],
                "scenes": len(scenes),
                "places": len(subjects),
                "subjects": sorted(set(subjects)),
                "rows": _rows(results, grid, f"{teacher.name} {FLOAT}" if teacher else None),
                "false": {
                    key: {f"{least:g}": count for least, count in own.false.items()}
                    for key, own in results.items()
                },
                "drops": _drops(results, grid, teacher.name if teacher else None),
            }
        )
    return {
        "schema": SCHEMA,
        "grid": asdict(grid),
        "contrast": contrast,
        "method": METHOD,
        "caution": caution(len(found[0]["subjects"])),
        "statement": RETROSPECTIVE,
        "intervals": EXPANDED,
        "attribution": [attribution_of(folder) for folder in data],
        "places": found,
        "provenance": provenance(grid.seed),
    }


def _rows(results: Mapping[str, Areas], grid: Grid, teacher: str | None) -> list[dict[str, Any]]:
    rows = []
    for key, own in results.items():
        for condition in grid.conditions:
            row: dict[str, Any] = {
                "network": key,
                "size_mm": condition[0],
                "contrast": condition[1],
                "retained": own.contrast(condition).to_dict(),
                "area": {name: own.area(name, condition).to_dict() for name in own.drawn},
            }
            if teacher is not None and key not in (teacher, ZERO_FILLED, FULLY_SAMPLED):
                row["behind"] = {
                    name: own.behind(results[teacher], name, condition).to_dict()
                    for name in own.drawn
                }
            rows.append(row)
    return rows


def _drops(results: Mapping[str, Areas], grid: Grid, teacher: str | None) -> list[dict[str, Any]]:
    """Return, for each student, observer and contrast, the size at which it falls behind."""
    found = []
    for key, own in results.items():
        if teacher is None or key in (ZERO_FILLED, FULLY_SAMPLED) or key == f"{teacher} {FLOAT}":
            continue
        for observer in own.drawn:
            for contrast in grid.contrasts:
                differences: dict[float, Interval] = {
                    size: own.behind(results[f"{teacher} {FLOAT}"], observer, (size, contrast))
                    for size in grid.sizes_mm
                }
                least = min(differences, key=lambda size: differences[size].value or 0.0)
                found.append(
                    {
                        "network": key,
                        "observer": observer,
                        "contrast": contrast,
                        "size_mm": first_drop(differences),
                        "worst_size_mm": least,
                        "worst": differences[least].to_dict(),
                    }
                )
    return found


def drops(report: Mapping[str, Any]) -> str:
    """Say at which size each student falls behind its teacher, as GitHub Markdown."""
    low, high = min(report["grid"]["sizes_mm"]), max(report["grid"]["sizes_mm"])
    lines = [
        f"| mask | student | contrast | largest size at which it is {DROP} or more behind |"
        " furthest behind |",
        "|---|---|---:|---|---|",
    ]
    for place in report["places"]:
        for drop in place["drops"]:
            name, _, precision = drop["network"].rpartition(" ")
            if drop["observer"] != "CHO" or name == place["teacher"]:
                continue
            worst = drop["worst"]
            said = f"{worst['value']:+.3f} at {drop['worst_size_mm']:g} mm"
            if worst["low"] is not None:
                said += f" ({worst['low']:+.3f} to {worst['high']:+.3f})"
            size = "none" if drop["size_mm"] is None else f"{drop['size_mm']:g} mm"
            lines.append(
                f"| {place['mask']['name']} | `{name}`, {precision} | {drop['contrast']:.0%} |"
                f" {size} | {said} |"
            )
    lines += [
        "",
        f"Area under the ROC curve of the {OBSERVERS['CHO']}, student minus teacher in float, over"
        f" sizes from {low:g} to {high:g} mm; in brackets 95 % intervals by drawing subjects, then"
        f" places; {how(report)}.",
    ]
    return "\n".join(lines)


def _row(place: Mapping[str, Any], key: str, size: float, contrast: float) -> dict[str, Any]:
    for row in place["rows"]:
        if (row["network"], row["size_mm"], row["contrast"]) == (key, size, contrast):
            return dict(row)
    raise BenchError(f"The report has no row of {key}.", "Measure it.")


def _keys(place: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["network"] for row in place["rows"]))


def markdown(report: Mapping[str, Any]) -> str:
    """Return the tables as GitHub Markdown."""
    grid = report["grid"]
    lines: list[str] = []
    for place in report["places"]:
        for contrast in grid["contrasts"]:
            lines += [
                f"**{place['mask']['name']}, contrast {contrast:.0%}**: area of the CHO (NPWE),"
                " contrast retained",
                "",
                "| image | " + " | ".join(f"{size:g} mm" for size in grid["sizes_mm"]) + " |",
                "|---|" + "---:|" * len(grid["sizes_mm"]),
            ]
            for key in _keys(place):
                cells = []
                for size in grid["sizes_mm"]:
                    row = _row(place, key, size, contrast)
                    areas = [
                        row["area"][name]["value"] for name in OBSERVERS if name in row["area"]
                    ]
                    text = f"{areas[0]:.3f}" + (f" ({areas[1]:.3f})" if len(areas) > 1 else "")
                    cells.append(f"{text}, {row['retained']['value']:.2f}")
                lines.append(f"| {key} | " + " | ".join(cells) + " |")
            lines.append("")
        least = list(next(iter(place["false"].values())))
        lines += [
            f"**{place['mask']['name']}**: false structures in a slice, by the contrast from which"
            " they count",
            "",
            "| image | " + " | ".join(f"{100 * float(one):g} %" for one in least) + " |",
            "|---|" + "---:|" * len(least),
        ]
        for key, counts in place["false"].items():
            cells = [f"{counts[one] / place['scenes']:.1f}" for one in least]
            lines.append(f"| {key} | " + " | ".join(cells) + " |")
        lines.append("")
    first = report["places"][0]
    lines.append(
        f"{report['method']} {report['contrast']}, {first['places']} places in {first['scenes']}"
        f" slices of {len(first['subjects'])} subjects; noise {grid['noise']:.0%} of the volume's"
        f" maximum, seed {grid['seed']}; intervals by drawing subjects, then places."
        f" {report['caution']} {report['statement']}"
    )
    return "\n".join(lines)


_REFERENCES: Final = {FULLY_SAMPLED: "#6b7280", ZERO_FILLED: "#a3a3a3"}
_TEACHER: Final = "#0072b2"
_STUDENTS: Final = ("#d55e00", "#00805f", "#9d4edd", "#8a6d00", "#c2185b", "#16202b")


def _title(place: Mapping[str, Any], key: str) -> str:
    """Return what the legend calls an image, in float and int8 and at every mask."""
    if key in _REFERENCES:
        return key
    name = key.rpartition(" ")[0]
    return name.partition("@")[0] + (" (teacher)" if name == place["teacher"] else "")


def _colours(places: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the colours of the images, by their titles; a network has one at every mask."""
    titles = dict.fromkeys(_title(place, key) for place in places for key in _keys(place))
    students = sorted(
        title for title in titles if title not in _REFERENCES and not title.endswith(" (teacher)")
    )
    if len(students) > len(_STUDENTS):
        raise BenchError(
            f"The drawing tells {len(_STUDENTS)} students apart, not {len(students)}.",
            "Name fewer networks.",
        )
    own = dict(zip(students, _STUDENTS, strict=False))
    return {title: own.get(title) or _REFERENCES.get(title, _TEACHER) for title in titles}


def roc_svg(report: Mapping[str, Any], observer: str = "CHO") -> str:
    """Draw the area under the ROC curve against size: a row a contrast, a column a mask.

    Int8 is dashed; bars are the teacher's intervals over subjects.
    """
    grid, places = report["grid"], report["places"]
    sizes, contrasts = grid["sizes_mm"], grid["contrasts"]
    colours = _colours(places)
    width, height, left, top = 300, 210, 52, 40
    whole = (left + width * len(places) + 12, top + height * len(contrasts) + 96)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole[0]} {whole[1]}" role="img"'
        ' font-family="system-ui, sans-serif" font-size="12"'
        f' aria-label="Area under the ROC curve of the {OBSERVERS[observer]} against size.">'
        f'<rect width="{whole[0]}" height="{whole[1]}" fill="#fff"/>'
    ]
    for column, place in enumerate(places):
        for line, contrast in enumerate(contrasts):
            x0, y0 = left + column * width, top + line * height
            w, h = width - 28, height - 44

            def at(size: float, area: float, x0: int = x0, y0: int = y0) -> tuple[float, float]:
                share = (size - sizes[0]) / (sizes[-1] - sizes[0])
                return x0 + share * (width - 28), y0 + (1.0 - area) / 0.6 * (height - 44)

            parts.append(
                f'<text x="{x0}" y="{y0 - 8}" fill="#16202b">{place["mask"]["name"]}, contrast'
                f" {contrast:.0%}</text>"
            )
            for tick in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
                _, y = at(sizes[0], tick)
                parts.append(
                    f'<path d="M{x0} {y:.1f}h{w}" stroke="#d9dee5"/>'
                    f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#55606e">'
                    f"{tick:.1f}</text>"
                )
            for size in sizes:
                x, _ = at(size, 1.0)
                parts.append(
                    f'<text x="{x:.1f}" y="{y0 + h + 16}" text-anchor="middle" fill="#55606e">'
                    f"{size:g}</text>"
                )
            for key in _keys(place):
                areas = [_row(place, key, size, contrast)["area"][observer] for size in sizes]
                points = [at(size, own["value"]) for size, own in zip(sizes, areas, strict=True)]
                colour = colours[_title(place, key)]
                dash = ' stroke-dasharray="5 4"' if key.endswith(" int8") else ""
                line_text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
                parts.append(
                    f'<polyline points="{line_text}" fill="none" stroke="{colour}"'
                    f' stroke-width="1.8"{dash}><title>{key}</title></polyline>'
                )
                if key == f"{place['teacher']} {FLOAT}":
                    for size, own in zip(sizes, areas, strict=True):
                        if own["low"] is not None:
                            (x, low), (_, high) = at(size, own["low"]), at(size, own["high"])
                            parts.append(
                                f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}"'
                                ' stroke-opacity=".5"/>'
                            )
    foot = top + height * len(contrasts)
    parts.append(
        f'<text x="{left}" y="{foot}" fill="#16202b">diameter in mm; area under the ROC curve,'
        f" {OBSERVERS[observer]}; dashed: int8; bars: 95 % interval of the teacher over"
        " subjects</text>"
    )
    for n, (name, colour) in enumerate(colours.items()):
        x, y = left + (n % 3) * 270, foot + 26 + (n // 3) * 20
        parts.append(
            f'<path d="M{x} {y - 4}h22" stroke="{colour}" stroke-width="2.5"/>'
            f'<text x="{x + 28}" y="{y}" fill="#16202b">{name}</text>'
        )
    return "".join([*parts, "</svg>"])


@click.command(cls=Script)
@click.argument("networks", nargs=-1)
@click.option(
    "--data", required=True, multiple=True, type=click.Path(path_type=Path),
    help="Volumes; may be repeated.",
)  # fmt: skip
@click.option("--contrast", default="FLAIR", show_default=True)
@click.option("--slices", default=_SLICES, show_default=True, help="Of each volume.")
@click.option("--noise", default=Grid().noise, show_default=True, help="Share of the maximum.")
@click.option("--sizes", default="2,3,4,6,8,10", show_default=True, help="Diameters in mm.")
@click.option(
    "--contrasts", default="0.05,0.1,0.2", show_default=True, help="Shares of the tissue."
)
@click.option(
    "--work", default=Path("lesions-work"), show_default=True, type=click.Path(path_type=Path),
    help="Folder of what is measured so far.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write report.json and roc.svg into this folder."
)
def main(
    networks: tuple[str, ...],
    data: tuple[Path, ...],
    contrast: str,
    slices: int,
    noise: float,
    sizes: str,
    contrasts: str,
    work: Path,
    threads: int | None,
    out: Path | None,
) -> None:
    """Ask model observers for lesions in images of brain networks (all of a mask, or NETWORKS)."""
    try:
        grid = Grid(
            sizes_mm=tuple(float(one) for one in sizes.split(",")),
            contrasts=tuple(float(one) for one in contrasts.split(",")),
            noise=noise,
        )
    except ValueError as error:
        raise BenchError(
            f"--sizes or --contrasts: {error}.", "Give numbers, comma-separated."
        ) from error
    places = [own for own in by_place(networks) if own[0].partition("@")[2] in PLACES]
    report = measure(
        places, data, grid=grid, contrast=contrast, slices=slices, work=work, threads=threads
    )
    record(report, out)
    if out is not None:
        with atomic_path(out / "roc.svg") as temporary:
            temporary.write_text(roc_svg(report) + "\n", encoding="utf-8")
    click.echo(f"{drops(report)}\n\n{markdown(report)}")


if __name__ == "__main__":
    main()
