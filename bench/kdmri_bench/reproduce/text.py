"""The report as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from kdmri_bench.reproduce.protocol import NETWORKS
from kdmri_bench.reproduce.report import ALL
from kdmri_bench.reproduce.stats import MARGIN

__all__ = ["csv_text", "markdown"]

_TITLES = {"zero-filled": "zero-filled", **{name: n.title for name, n in NETWORKS.items()}}


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
    return f"{interval['value']:.0f} %{bounds}"


def _changes(group: Mapping[str, Any], other: str) -> tuple[str, str]:
    """Say how the edge student differs from another network, in PSNR and in SSIM."""

    def text(measure: str, digits: int) -> str:
        interval = group["differences"][other][measure]
        bounds = f" ({interval['low']:+.{digits}f} to {interval['high']:+.{digits}f})"
        return f"{interval['value']:+.{digits}f}{bounds if _resampled(group) else ''}"

    return f"{text('psnr', 3)} dB", f"SSIM {text('ssim', 4)}"


def _resampled(group: Mapping[str, Any]) -> bool:
    """Return whether there is anything to resample; of one volume the bootstrap knows no spread."""
    return int(group["volumes"]) > 1


def _group(
    group: Mapping[str, Any], paper: Mapping[str, Any], best: Mapping[str, Any] | None
) -> list[str]:
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
    for name in ALL:
        row = group["table"][name]
        alone = [
            f" {_cell(group['by_contrast'][contrast][name]['psnr'], 2)} |" for contrast in contrasts
        ]
        lines.append(
            f"| {_TITLES[name]} | {_cell(row['psnr'], 2)} | {_cell(row['ssim'], 4)} |"
            + "".join(alone)
        )
    lines += ["", "| | KD-MRI student | edge student |", "|---|---|---|"]
    for teacher in ("teacher-a", "teacher-b"):
        cells = [_share(group, student, teacher) for student in ("kd-mri", "edge")]
        lines.append(f"| gap closed (PSNR) to {_TITLES[teacher]} | {cells[0]} | {cells[1]} |")
    published = paper.get(str(group["acceleration"]))
    if published is not None:
        lines.append(f"| the paper's, on its own data | {published} % | |")
    if best:
        before, after = best["gap_db"]
        lines.append(
            f"| best published ({best['name']}), on its own data | {best['percent']} %"
            f" ({before} to {after} dB) | |"
        )
    lines.append("")
    for teacher in ("teacher-a", "teacher-b"):
        psnr, ssim = _changes(group, teacher)
        found = group["differences"][teacher]
        lines.append(
            f"- Edge student minus {_TITLES[teacher]}: {psnr}: {found['psnr']['verdict']};"
            f" {ssim}: {found['ssim']['verdict']}."
        )
    psnr, ssim = _changes(group, "plain")
    lines.append(f"- Edge student minus {_TITLES['plain']}: {psnr}; {ssim}.")
    return [*lines, ""]


def _batches(report: Mapping[str, Any]) -> str:
    """Say what a step sees: all recipes' batches, which differ only where a user made them."""
    seen = dict.fromkeys((r["batch"], r["strip"]) for r in report["recipes"].values())
    return " or ".join(f"{batch} strips of {strip} columns" for batch, strip in seen)


def markdown(report: Mapping[str, Any]) -> str:
    """Return the tables as GitHub Markdown, most telling group first."""
    lines: list[str] = []
    for group in report["groups"]:
        lines += _group(group, report["paper"], report["best_published"])
    seeds = len(report["seeds"])
    drawn = "one seed" if seeds == 1 else f"figures of a volume averaged over {seeds} seeds"
    contrast = f" Only {report['contrast']} volumes." if report["contrast"] else ""
    lines += [
        "Mean ± standard deviation over volumes (n - 1). Intervals: 95 %, paired bootstrap over"
        " subjects, then volumes. Verdicts at margins stated in advance:"
        f" {MARGIN['psnr']} dB and {MARGIN['ssim']} SSIM; below five test subjects there is none.",
        f"Every network had {report['steps']} optimiser steps of {_batches(report)}, all stages"
        f" counted; {drawn}."
        f"{contrast} {report['statement']}",
        "Teacher (a) follows the published schedule, brought to these steps: its rate is divided by"
        " ten after 27, 53 and 80 % of them, which holds it back where they are few. Teacher (b),"
        f" plain and KD-MRI student share recipe {report['recipes']['kd-mri']['name']} (cosine,"
        " re-parameterised convolutions).",
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
                writer.writerow(
                    [
                        group["title"],
                        network,
                        row["name"],
                        row["subject"],
                        row["contrast"],
                        *figures,
                    ]
                )
    return stream.getvalue()
