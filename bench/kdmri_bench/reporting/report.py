"""Writing a report as JSON, CSV, Markdown, HTML and a picture: all of them or none."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from kdmri_bench.reporting.page.build import build
from kdmri_bench.reporting.page.images import Figure
from kdmri_bench.reporting.table import markdown_report
from kdmri_bench.results.figures import LABELS, figures, network_of
from kdmri_bench.results.schema import Report, finite
from kdmri_edge.errors import BenchError
from kdmri_edge.utils.files import atomic_path, damaged, read_json
from kdmri_edge.utils.spreadsheets import cell

__all__ = ["csv_columns", "csv_rows", "read_report", "report_file", "write_report"]

REPORT: Final = "report.json"


def csv_columns() -> tuple[str, ...]:
    """Return the head of report.csv: labels, figures by the schema they came with, and the last.

    New columns come after older ones, for readers who go by their place.
    """
    labels = [label.name for label in LABELS]
    measured = [figure.name for figure in sorted(figures(), key=lambda figure: figure.since)]
    return (*labels, *measured, "recommended")


def csv_rows(report: Report) -> list[dict[str, Any]]:
    """Flatten a report: for every row one line per volume, after a line of means ("mean")."""
    volumes = {volume.name: volume for volume in report.volumes}
    known, columns = figures(), csv_columns()
    lines: list[dict[str, Any]] = []
    for row in report.rows:
        network = network_of(row, report)
        means = {
            **{label.name: label.value(row) for label in LABELS if label.value is not None},
            **{figure.name: figure.value(row, network) for figure in known},
            "recommended": row.key == report.recommended,
        }
        lines.append({**means, "volume": "mean"})
        for values in row.volumes:
            volume = volumes[values["name"]]
            own = {f.name: values.get(f.metric) for f in known if f.metric is not None}
            about = {
                "volume": volume.name,
                "subject": volume.subject,
                "seen_in_training": row.network in volume.seen_in_training,
            }
            lines.append({**means, **own, **about})
    return [{name: cell(finite(line.get(name))) for name in columns} for line in lines]


def write_report(
    report: Report,
    out: Path,
    picture: bytes | None = None,
    slices: Sequence[Figure] = (),
) -> dict[str, Path]:
    """Write the report's files; earlier ones are replaced only when all new ones are complete.

    Args:
        report: what to write.
        out: the folder.
        picture: the comparison of networks as a PNG file; None for no picture.
        slices: pictures of slices to be looked at, for the page.

    Returns:
        The files by kind: "html", "md", "csv", "json", and "panel" where there is a picture.

    Raises:
        OutputError: the folder cannot be written to, or the disk is full.
    """
    names = {kind: f"report.{kind}" for kind in ("html", "md", "csv", "json")}
    if picture is not None:
        names = {"panel": "panel.png", **names}
    with contextlib.ExitStack() as stack:
        paths = {kind: stack.enter_context(atomic_path(out / name)) for kind, name in names.items()}
        if picture is not None:
            paths["panel"].write_bytes(picture)
        with paths["csv"].open("w", encoding="utf-8", newline="") as stream:
            table = csv.DictWriter(stream, csv_columns(), lineterminator="\n")
            table.writeheader()
            table.writerows(csv_rows(report))
        paths["html"].write_text(build(report, slices, picture), encoding="utf-8")
        paths["md"].write_text(markdown_report(report), encoding="utf-8")
        text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        paths["json"].write_text(text + "\n", encoding="utf-8")
    return {kind: out / name for kind, name in names.items()}


def report_file(path: Path) -> Path:
    """Return the report.json that is meant by a file, its folder, or a run's."""
    if path.is_dir():
        places = (path / REPORT, path / "bench" / REPORT)
        return next((place for place in places if place.is_file()), places[0])
    return path


def read_report(path: Path) -> Report:
    """Read a report.json.

    Args:
        path: the file, its folder, or a run that was benchmarked (RUN/bench/report.json).

    Raises:
        BenchError: missing or damaged file, or a newer schema.
    """
    path = report_file(path)
    value = read_json(path, BenchError)
    if not isinstance(value, dict):
        raise BenchError(f"{path} is not a report.", "Give a report.json of `kdmri-edge bench`.")
    with damaged(path, BenchError):
        return Report.from_dict(value)
