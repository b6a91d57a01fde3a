"""Which variant to ship: the smallest one that keeps the limits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from kdmri_bench.results.ratios import BASELINES
from kdmri_bench.results.schema import ZERO_FILLED, Report, Row, Status
from kdmri_bench.results.statistics import MARGIN
from kdmri_edge.errors import BenchError

__all__ = [
    "DEFAULT_LIMITS",
    "Choice",
    "Limits",
    "choose",
    "limits_of",
    "parse",
    "recommended_row",
    "shipped_rows",
]

_MS: Final = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_BYTES: Final = {
    "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
}  # fmt: skip
_UNITS: Final[dict[str, Mapping[str, float]]] = {
    "max-latency": _MS,
    "max-memory": _BYTES,
    "max-loss": {"dB": 1.0},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a variant has to keep; None leaves that open.

    Attributes:
        latency_ms: of one slice from k-space to image, p90; where a report has no end-to-end
            times, network only; where it has too few samples for p90, p50.
        memory_bytes: peak resident set of its process.
        loss_db: loss in PSNR to the teacher in PyTorch: the upper end of its 95 % interval.
    """

    latency_ms: float | None = None
    memory_bytes: float | None = None
    loss_db: float | None = None

    def __post_init__(self) -> None:
        """Refuse limits that nothing can keep."""
        for name, value in asdict(self).items():
            if value is not None and not value > 0:
                raise BenchError(f"A limit of {value:g} on {name} makes no sense.", "Give more.")

    def describe(self) -> list[str]:
        """Return the limits in words."""
        said = []
        if self.latency_ms is not None:
            said.append(f"at most {self.latency_ms:g} ms from k-space to image in 9 of 10 slices")
        if self.memory_bytes is not None:
            said.append(f"at most {self.memory_bytes / 2**20:.0f} MiB of memory")
        if self.loss_db is not None:
            said.append(f"at most {self.loss_db:g} dB lost to the teacher")
        return said


DEFAULT_LIMITS: Final = Limits(latency_ms=50.0, memory_bytes=512 * 2.0**20, loss_db=MARGIN["psnr"])
"""What a report recommends by: twenty slices a second, half a GiB, and the margin that counts as no
loss in `kdmri-edge reproduce`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Which variant was chosen, and what the others miss.

    Attributes:
        row: the chosen one, None where no variant keeps all limits.
        misses: key -> what the variant misses, one clause each; empty for one that passes.
    """

    row: Row | None
    misses: Mapping[str, Sequence[str]]


def parse(text: str, option: str) -> float:
    """Read a number with its unit, in ms, bytes or dB.

    Raises:
        BenchError: no number, or a unit that the option does not take.
    """
    units = _UNITS[option]
    match = re.fullmatch(r"\s*((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e-?[0-9]+)?)\s*([A-Za-z]+)\s*", text)
    known = {name.lower(): factor for name, factor in units.items()}
    if match is None or match[2].lower() not in known:
        raise BenchError(
            f"--{option} {text!r} is no number with a unit.", f"Units are {', '.join(units)}."
        )
    return float(match[1]) * known[match[2].lower()]


def limits_of(report: Report) -> Limits:
    """Return the limits that a report's own recommendation is made with.

    Without a teacher nothing is known of the loss, and it is left open.
    """
    if report.limits:
        return Limits(**{name: report.limits.get(name) for name in Limits.__dataclass_fields__})
    compared = any(row.to_teacher for row in report.rows)
    loss = DEFAULT_LIMITS.loss_db if compared else None
    return Limits(
        latency_ms=DEFAULT_LIMITS.latency_ms,
        memory_bytes=DEFAULT_LIMITS.memory_bytes,
        loss_db=loss,
    )


def shipped_rows(report: Report) -> list[Row]:
    """Return the rows that can be chosen: no baselines."""
    return [row for row in report.rows if row.role != ZERO_FILLED and row.variant not in BASELINES]


def choose(report: Report, limits: Limits) -> Choice:
    """Pick the smallest network that keeps the limits, and its fastest way of running.

    Among ways that the measured intervals cannot tell apart in speed, the one with the best images
    is taken.
    """
    rows = shipped_rows(report)
    misses = {row.key: _misses(row, limits) for row in rows}
    passing = [row for row in rows if not misses[row.key] and row.latency]
    if not passing:
        return Choice(row=None, misses=misses)
    sizes = {network.name: network.parameters for network in report.networks}
    smallest = min(sizes.get(row.network, 0) for row in passing)
    candidates = [row for row in passing if sizes.get(row.network, 0) == smallest]
    fastest = min(candidates, key=lambda row: _timing(row)["p50_ms"])
    high = _interval(fastest)[1]
    alike = [row for row in candidates if _interval(row)[0] <= high]
    return Choice(row=max(alike, key=lambda r: r.quality["psnr"]["mean"] or 0.0), misses=misses)


def recommended_row(report: Report) -> Row | None:
    """Return the row that a report recommends; one without a recommendation is asked now."""
    if report.limits:
        return report.row(report.recommended) if report.recommended else None
    return choose(report, limits_of(report)).row


def _timing(row: Row) -> Mapping[str, Any]:
    return row.end_to_end or row.latency or {}


def _interval(row: Row) -> tuple[float, float]:
    timing = _timing(row)
    low, high = timing.get("p50_interval_ms") or (timing["p50_ms"], timing["p50_ms"])
    return float(low), float(high)


def _misses(row: Row, limits: Limits) -> list[str]:
    """Say what a row misses."""
    if row.status is not Status.MEASURED:
        return [f"not measured: {row.reason}"]
    found = []
    if limits.latency_ms is not None:
        timing = _timing(row)
        name = "p90_ms" if timing.get("p90_ms") is not None else "p50_ms"
        value = float(timing[name])
        if value > limits.latency_ms:
            percentile = name.removesuffix("_ms")
            found.append(f"latency {value:.1f} ms ({percentile}) > {limits.latency_ms:g} ms")
    if limits.memory_bytes is not None:
        peak = float((row.memory or {}).get("peak", float("inf")))
        if peak > limits.memory_bytes:
            mib = 2**20
            found.append(f"memory {peak / mib:.0f} MiB > {limits.memory_bytes / mib:.0f} MiB")
    if limits.loss_db is not None:
        found += _loss(row, limits.loss_db)
    return found


def _loss(row: Row, limit: float) -> list[str]:
    difference = row.to_teacher.get("psnr", {})
    value, low = difference.get("value"), difference.get("low")
    if value is None:
        return ["loss unknown: no teacher was measured beside it"]
    if -(value if low is None else low) <= limit:
        return []
    reaching = "" if low is None else f", up to {-low:.3f}"
    return [f"loss {-value:.3f} dB{reaching} > {limit:g} dB"]
