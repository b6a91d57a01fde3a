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
from kdmri_bench.results.schema import Report, Row, finite
from kdmri_edge.errors import BenchError
from kdmri_edge.utils.files import atomic_path, read_json

__all__ = ["CSV_COLUMNS", "csv_rows", "read_report", "write_report"]

CSV_COLUMNS = (
    "key", "network", "role", "runtime", "runtime_version", "device", "provider", "threads",
    "precision_asked", "precision_executed", "variant", "status", "reason", "volume", "subject",
    "seen_in_training", "psnr_db", "ssim", "nmse", "hfn", "samples", "p50_ms", "p90_ms", "min_ms",
    "speedup", "load_s", "peak_bytes", "above_baseline_bytes", "size_bytes", "parameters", "macs",
    "p99_ms", "p50_low_ms", "p50_high_ms", "end_to_end_p50_ms", "end_to_end_p90_ms",
    "end_to_end_p99_ms", "cold_start_s", "slices_per_s_batch_1", "slices_per_s_batch_8",
    "slices_per_s_batch_32", "gpu_peak_bytes", "joules_per_slice", "fraction_of_peak",
    "psnr_to_teacher_db", "psnr_to_teacher_low_db", "psnr_to_teacher_high_db", "recommended",
)  # fmt: skip


REPORT: Final = "report.json"


def csv_rows(report: Report) -> list[dict[str, Any]]:
    """Flatten a report: for every row one line per volume, after a line of means ("mean")."""
    networks = {network.name: network for network in report.networks}
    volumes = {volume.name: volume for volume in report.volumes}
    lines: list[dict[str, Any]] = []
    for row in report.rows:
        session, latency, memory = row.session or {}, row.latency or {}, row.memory or {}
        network = networks.get(row.network)
        base = {
            "key": row.key,
            "network": row.network,
            "role": row.role,
            "runtime": row.runtime,
            "runtime_version": session.get("version"),
            "device": session.get("device"),
            "provider": session.get("provider"),
            "threads": session.get("threads"),
            "precision_asked": row.precision,
            "precision_executed": session.get("precision_executed"),
            "variant": row.variant,
            "status": str(row.status),
            "reason": row.reason,
            "samples": latency.get("samples"),
            "p50_ms": latency.get("p50_ms"),
            "p90_ms": latency.get("p90_ms"),
            "min_ms": latency.get("min_ms"),
            "speedup": row.speedup,
            "load_s": max(row.load_s, default=None),
            "peak_bytes": memory.get("peak"),
            "above_baseline_bytes": memory.get("above_baseline"),
            "size_bytes": row.size_bytes,
            "parameters": network.parameters if network else None,
            "macs": sum(network.macs.values()) if network else None,
            "recommended": row.key == report.recommended,
            **_added(row),
        }
        means = {name: value.get("mean") for name, value in row.quality.items()}
        lines.append({**base, "volume": "mean", **_measures(means)})
        for values in row.volumes:
            volume = volumes[values["name"]]
            seen = row.network in volume.seen_in_training
            lines.append(
                {
                    **base,
                    "volume": volume.name,
                    "subject": volume.subject,
                    "seen_in_training": seen,
                    **_measures(values),
                }
            )
    return [{name: finite(line.get(name)) for name in CSV_COLUMNS} for line in lines]


def _added(row: Row) -> dict[str, Any]:
    """Return the columns that version 2 of the schema added."""
    latency, whole = row.latency or {}, row.end_to_end or {}
    low, high = latency.get("p50_interval_ms") or (None, None)
    loss = row.to_teacher.get("psnr", {})
    rates = {f"slices_per_s_batch_{size}": row.throughput.get(str(size)) for size in (1, 8, 32)}
    return {
        "p99_ms": latency.get("p99_ms"),
        "p50_low_ms": low,
        "p50_high_ms": high,
        **{f"end_to_end_{name}": whole.get(name) for name in ("p50_ms", "p90_ms", "p99_ms")},
        "cold_start_s": max((row.cold or {}).get("process_s", ()), default=None),
        **{name: rate if isinstance(rate, float) else None for name, rate in rates.items()},
        "gpu_peak_bytes": (row.memory or {}).get("gpu_peak"),
        "joules_per_slice": (row.energy or {}).get("joules_per_slice"),
        "fraction_of_peak": (row.limit or {}).get("fraction"),
        "psnr_to_teacher_db": loss.get("value"),
        "psnr_to_teacher_low_db": loss.get("low"),
        "psnr_to_teacher_high_db": loss.get("high"),
    }


def _measures(values: Any) -> dict[str, Any]:
    names = {"psnr_db": "psnr", "ssim": "ssim", "nmse": "nmse", "hfn": "hfn"}
    return {column: values.get(name) for column, name in names.items()}


def write_report(
    report: Report,
    out: Path,
    picture: bytes | None = None,
    figures: Sequence[Figure] = (),
) -> dict[str, Path]:
    """Write the report's files; earlier ones are replaced only when all new ones are complete.

    Args:
        report: what to write.
        out: the folder.
        picture: the comparison of networks as a PNG file; None for no picture.
        figures: slices to be looked at in the page.

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
            table = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(csv_rows(report))
        paths["html"].write_text(build(report, figures, picture), encoding="utf-8")
        paths["md"].write_text(markdown_report(report), encoding="utf-8")
        text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        paths["json"].write_text(text + "\n", encoding="utf-8")
    return {kind: out / name for kind, name in names.items()}


def read_report(path: Path) -> Report:
    """Read a report.json.

    Args:
        path: the file, its folder, or a run that was benchmarked (RUN/bench/report.json).

    Raises:
        BenchError: missing or damaged file, or a newer schema.
    """
    if path.is_dir():
        places = (path / REPORT, path / "bench" / REPORT)
        path = next((place for place in places if place.is_file()), places[0])
    value = read_json(path, BenchError)
    if not isinstance(value, dict):
        raise BenchError(f"{path} is not a report.", "Give a report.json of `kdmri-edge bench`.")
    return Report.from_dict(value)
