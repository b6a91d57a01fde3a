"""Two reports: where the second is worse than the first, beyond what the noise explains."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kdmri_bench.reporting.report import read_report
from kdmri_bench.results.repeatability import LARGER, ROUNDING, SLOWER, TIMINGS, beyond
from kdmri_bench.results.schema import Report, Row, Status
from kdmri_bench.results.statistics import bootstrap
from kdmri_edge.metrics import METRICS
from kdmri_edge.utils.console import print_result, tell

__all__ = ["Change", "compare", "compare_files"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One difference beyond the noise.

    Attributes:
        key: of the row.
        measure: what changed.
        worse: whether B is worse.
        before: in A.
        after: in B.
        said: both in words.
    """

    key: str
    measure: str
    worse: bool
    before: float | None
    after: float | None
    said: str


def compare(first: Report, second: Report) -> tuple[list[Change], list[str]]:
    """Compare the rows that both reports have.

    Latency counts as changed where the medians differ by more than the scatter between rounds of
    both explains (`repeatability.beyond`); quality where the
    paired 95 % bootstrap interval over the same volumes leaves out zero. Times and memory of
    different machines, modes or thread counts are not compared.

    Returns:
        The changes, and remarks on what could not be compared.
    """
    changes, remarks = [], _remarks(first, second)
    timed = not remarks
    remarks += _unmatched(first, second)
    noise = {name: beyond(first.rows, second.rows, name) for name in TIMINGS}
    for row in first.rows:
        other = second.row(row.key)
        if row.status is not Status.MEASURED:
            continue
        if other is None or other.status is not Status.MEASURED:
            reason = "it is no longer a row" if other is None else f"{other.reason}"
            changes.append(_gone(row.key, reason))
            continue
        changes += _quality(first, second, row, other)
        changes += _size(row, other)
        if timed:
            changes += _latency(row, other, noise) + _memory(row, other)
    return changes, remarks


def _gone(key: str, reason: str) -> Change:
    said = f"was measured, now is not: {reason}"
    return Change(key=key, measure="status", worse=True, before=None, after=None, said=said)


def _remarks(first: Report, second: Report) -> list[str]:
    """Say why times and memory cannot be compared; empty where they can."""
    found = []
    for name in ("cpu", "cores"):
        a, b = (report.provenance["machine"].get(name) for report in (first, second))
        if a != b:
            found.append(f"machine: {a} and {b} ({name})")
    for name in ("threads", "mode"):
        a, b = (report.settings.get(name, "custom") for report in (first, second))
        if a != b:
            found.append(f"{name}: {a} and {b}")
    return [
        f"Times and memory are not compared, for the reports differ in {text}." for text in found
    ]


def _unmatched(first: Report, second: Report) -> list[str]:
    """Say which volumes only one of the reports has: quality is compared on the others."""
    known = {(volume.sha256, volume.slices) for volume in second.volumes}
    common = sum((volume.sha256, volume.slices) in known for volume in first.volumes)
    if common == len(first.volumes) == len(second.volumes):
        return []
    if not common:
        return [
            "Quality is not compared, for the reports have no volume in common (the same file, and"
            " as many slices of it)."
        ]
    return [
        f"Quality is compared on {common} volume(s) alone, of {len(first.volumes)} and"
        f" {len(second.volumes)}."
    ]


def _latency(
    row: Row, other: Row, noise: Mapping[str, Callable[[Row, Row], float]]
) -> list[Change]:
    changes = []
    for name in TIMINGS:
        a, b = getattr(row, name), getattr(other, name)
        if not a or not b:
            continue
        before, after = float(a["p50_ms"]), float(b["p50_ms"])
        factor = max(noise[name](row, other), 1 + SLOWER)
        if max(after / before, before / after) > factor:
            said = (
                f"p50 {before:.2f} ms -> {after:.2f} ms, {100 * (after / before - 1):+.1f} %, where"
                f" {100 * (factor - 1):.1f} % would be noise"
            )
            measure = name.replace("_", " ")
            changes.append(_change(row.key, measure, after > before, before, after, said))
    return changes


def _change(key: str, measure: str, worse: bool, before: float, after: float, said: str) -> Change:
    return Change(key=key, measure=measure, worse=worse, before=before, after=after, said=said)


def _memory(row: Row, other: Row) -> list[Change]:
    if not row.memory or not other.memory:
        return []
    before, after = float(row.memory["peak"]), float(other.memory["peak"])
    if abs(after / before - 1) <= LARGER:
        return []
    said = f"{before / 2**20:.0f} MiB -> {after / 2**20:.0f} MiB"
    return [_change(row.key, "memory", after > before, before, after, said)]


def _size(row: Row, other: Row) -> list[Change]:
    if not row.size_bytes or not other.size_bytes:
        return []
    before, after = row.size_bytes, other.size_bytes
    if abs(after / before - 1) <= LARGER:
        return []
    said = f"{before / 1024:.0f} KiB -> {after / 1024:.0f} KiB"
    return [_change(row.key, "size", after > before, before, after, said)]


def _quality(first: Report, second: Report, row: Row, other: Row) -> list[Change]:
    """Compare the volumes that both have, by their source files and number of slices."""
    known = {(v.sha256, v.slices): v.name for v in second.volumes}
    later = {values["name"]: values for values in other.volumes}
    subjects, pairs = [], []
    for volume, values in zip(first.volumes, row.volumes, strict=True):
        match = later.get(known.get((volume.sha256, volume.slices), ""))
        if match is not None:
            subjects.append(volume.subject)
            pairs.append((values, match))
    if not pairs:
        return []
    changes = []
    for name, metric in METRICS.items():
        if any(name not in values for pair in pairs for values in pair):
            continue  # one of the reports was made without the package that measures it
        paired = np.asarray([[a[name], b[name]] for a, b in pairs], dtype=np.float64)
        found = bootstrap(subjects, paired, lambda means: means[:, 1] - means[:, 0])
        if found.value is None or found.low is None or found.high is None:
            continue
        if found.low <= 0.0 <= found.high or abs(found.value) < ROUNDING.get(name, 0.0):
            continue
        before, after = (float(value) for value in paired.mean(0))
        said = (
            f"{before:.4f} -> {after:.4f}, paired difference {found.value:+.4f}"
            f" ({found.low:+.4f} to {found.high:+.4f})"
        )
        worse = (found.value < 0) is metric.higher_is_better
        changes.append(_change(row.key, name, worse, before, after, said))
    return changes


def compare_files(first: Path, second: Path, *, as_json: bool = False) -> int:
    """Print what changed from one report.json to another.

    Returns:
        The exit code: 1 where something is worse, else 0.

    Raises:
        BenchError: a report is missing, damaged or too new.
    """
    changes, remarks = compare(read_report(first), read_report(second))
    worse = [change for change in changes if change.worse]
    if as_json:
        value = {
            "regressions": [asdict(change) for change in worse],
            "improvements": [asdict(change) for change in changes if not change.worse],
            "remarks": remarks,
        }
        print_result(json.dumps(value, indent=1))
        return int(bool(worse))
    for remark in remarks:
        tell(remark)
    for change in sorted(changes, key=lambda item: not item.worse):
        mark = "worse " if change.worse else "better"
        tell(f"{mark}  {change.key}  {change.measure}: {change.said}")
    count = len(worse)
    none = "No regression in what could be compared." if remarks else "No regression."
    tell(f"{count} regression(s) beyond the noise." if count else none)
    return int(bool(worse))
