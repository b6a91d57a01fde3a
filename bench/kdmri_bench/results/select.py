"""Which variant to ship: the smallest one that keeps the limits, or else the nearest to them.

One variant dominates another where it is worse in nothing and better in something, beyond what the
measurement's own scatter explains: quality, latency, memory, size of the network. What is
recommended is dominated by no other variant that keeps the limits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from kdmri_bench.results.repeatability import LARGER, ROUNDING, SLOWER, expected
from kdmri_bench.results.schema import BASELINES, ZERO_FILLED, Report, Row, Status
from kdmri_bench.results.statistics import MARGIN
from kdmri_edge.errors import BenchError
from kdmri_edge.utils.reading import BYTES

__all__ = [
    "DEFAULT_LIMITS",
    "UNKNOWN_LOSS",
    "Choice",
    "Limits",
    "choose",
    "dominates",
    "knows_loss",
    "limits_of",
    "parse",
    "recommended_row",
    "shipped_rows",
]

_MS: Final = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_UNITS: Final[dict[str, Mapping[str, float]]] = {
    "max-latency": _MS,
    "max-memory": BYTES,
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

UNKNOWN_LOSS: Final = (
    "The loss to a teacher is not known, since none was measured in PyTorch, and has no limit here."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Which variant was chosen, and what the others miss.

    Attributes:
        row: the chosen one, None where no variant keeps all limits.
        misses: key -> what the variant misses, one clause each; empty for one that passes.
        nearest: the variant that exceeds its worst limit by the smallest factor, where none keeps
            them all; None where nothing was measured, or what is limited is unknown.
    """

    row: Row | None
    misses: Mapping[str, Sequence[str]]
    nearest: Row | None = None


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
    loss = DEFAULT_LIMITS.loss_db if knows_loss(report) else None
    return Limits(
        latency_ms=DEFAULT_LIMITS.latency_ms,
        memory_bytes=DEFAULT_LIMITS.memory_bytes,
        loss_db=loss,
    )


def knows_loss(report: Report) -> bool:
    """Tell whether a teacher was measured that a report's rows are compared with."""
    return any(row.to_teacher for row in report.rows)


def shipped_rows(report: Report) -> list[Row]:
    """Return the rows that can be chosen: no baselines, and none of other machines."""
    return [
        row
        for row in report.rows
        if row.role != ZERO_FILLED and row.variant not in BASELINES and row.measured_on is None
    ]


def choose(report: Report, limits: Limits) -> Choice:
    """Pick the smallest network that keeps the limits, in the best of its fastest ways of running.

    Among ways that the scatter of the timings cannot tell apart in speed, the one with the best
    images is taken; among those with equal images the one that needs least memory, then the
    fastest. A variant that another one dominates is passed over.
    """
    rows = shipped_rows(report)
    misses = {row.key: _misses(row, limits) for row in rows}
    passing = [row for row in rows if not misses[row.key] and row.latency]
    sizes = {network.name: network.parameters for network in report.networks}
    if not passing:
        return Choice(row=None, misses=misses, nearest=_nearest(rows, limits, sizes))
    best = _undominated(passing, sizes)
    smallest = min(sizes.get(row.network, 0) for row in best)
    candidates = [row for row in best if sizes.get(row.network, 0) == smallest]
    fastest = min(candidates, key=_median)
    alike = [row for row in candidates if not _slower(row, fastest, sizes)]
    finest = max(alike, key=_psnr)
    equals = [row for row in alike if not _poorer(row, finest)]
    leanest = min(equals, key=_peak)
    lean = [row for row in equals if not _larger(_peak(row), _peak(leanest))]
    return Choice(row=min(lean, key=_median), misses=misses)


def dominates(row: Row, other: Row, sizes: Mapping[str, int]) -> bool:
    """Tell whether a variant is worse than another in nothing and better in something.

    Both were measured. Latency counts where the median of one lies outside of the interval in which
    an independent timing of the other is expected, and not at all between networks of one size that
    run in the same way; quality, memory and size beyond `ROUNDING`,
    `LARGER` and nothing at all.

    Args:
        row: the one that may be the better.
        other: the one that may be dominated.
        sizes: network -> parameters.
    """

    def worse(a: Row, b: Row) -> bool:
        larger = sizes.get(a.network, 0) > sizes.get(b.network, 0)
        heavier = _larger(_peak(a), _peak(b))
        return larger or heavier or _slower(a, b, sizes) or _poorer(a, b)

    return not worse(row, other) and worse(other, row)


def _median(row: Row) -> float:
    return float(row.timing["p50_ms"])


def _peak(row: Row) -> float:
    return float((row.memory or {}).get("peak", 0.0))


def _psnr(row: Row) -> float:
    return row.quality.get("psnr", {}).get("mean") or 0.0


def _slower(row: Row, other: Row, sizes: Mapping[str, int]) -> bool:
    """Tell whether a row is slower than another beyond the scatter of either.

    Networks of one size that run in the same way make the same computation with other weights, as
    the plain and the distilled student do: what their times differ by is the machine's unrest.
    """
    if sizes.get(row.network) == sizes.get(other.network) and _way(row) == _way(other):
        return False
    (a, low, _), (b, _, high) = expected(row.timing), expected(other.timing)
    return a > high and b < low and a / b > 1 + SLOWER


def _way(row: Row) -> tuple[str, ...]:
    """Return what a row has in common with others that make the same computation."""
    return row.runtime, row.precision, row.variant, row.device


def _poorer(row: Row, other: Row) -> bool:
    return _psnr(other) - _psnr(row) > ROUNDING["psnr"]


def _larger(a: float, b: float) -> bool:
    return a > b * (1 + LARGER)


def _nearest(rows: Sequence[Row], limits: Limits, sizes: Mapping[str, int]) -> Row | None:
    """Return the measured row that exceeds its worst limit least; of equals the fastest.

    As everywhere, a row that another one dominates is passed over.
    """
    known = [row for row in rows if row.status is Status.MEASURED and row.latency]
    excess = {row.key: _excess(row, limits) for row in known}
    known = [row for row in known if math.isfinite(excess[row.key])]
    known = _undominated(known, sizes)
    least = min((excess[row.key] for row in known), default=0.0)
    alike = [row for row in known if not _larger(excess[row.key], least)]
    return min(alike, key=_median, default=None)


def _undominated(rows: Sequence[Row], sizes: Mapping[str, int]) -> list[Row]:
    """Return the rows that no other one dominates.

    The scatter differs from row to row, so that a circle is not ruled out: then it is all of them.
    """
    free = [row for row in rows if not any(dominates(other, row, sizes) for other in rows)]
    return free or list(rows)


def _excess(row: Row, limits: Limits) -> float:
    """Return the factor by which a row exceeds its worst limit, infinity where one is unknown."""
    factors = []
    if limits.latency_ms is not None:
        factors.append(_latency(row)[1] / limits.latency_ms)
    if limits.memory_bytes is not None:
        factors.append((_peak(row) or math.inf) / limits.memory_bytes)
    if limits.loss_db is not None:
        loss = _worst_loss(row)
        factors.append(math.inf if loss is None else max(loss, 0.0) / limits.loss_db)
    return max(factors, default=1.0)


def recommended_row(report: Report) -> Row | None:
    """Return the row that a report recommends; one without a recommendation is asked now."""
    if report.limits:
        return report.row(report.recommended) if report.recommended else None
    return choose(report, limits_of(report)).row


def _latency(row: Row) -> tuple[str, float]:
    """Return the percentile that a limit is on, p90 where there is one, and its ms."""
    timing = row.timing
    name = "p90" if timing.get("p90_ms") is not None else "p50"
    return name, float(timing[f"{name}_ms"])


def _worst_loss(row: Row) -> float | None:
    """Return the loss to the teacher in dB at the upper end of its interval."""
    difference = row.to_teacher.get("psnr", {})
    value, low = difference.get("value"), difference.get("low")
    return None if value is None else -(value if low is None else low)


def _misses(row: Row, limits: Limits) -> list[str]:
    """Say what a row misses."""
    if row.status is not Status.MEASURED:
        return [f"not measured: {row.reason}"]
    found = []
    if limits.latency_ms is not None:
        percentile, value = _latency(row)
        if value > limits.latency_ms:
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
    value, low, worst = difference.get("value"), difference.get("low"), _worst_loss(row)
    if value is None or worst is None:
        return ["loss unknown: no teacher was measured beside it"]
    if worst <= limit:
        return []
    reaching = "" if low is None else f", up to {worst:.3f}"
    return [f"loss {-value:.3f} dB{reaching} > {limit:g} dB"]
