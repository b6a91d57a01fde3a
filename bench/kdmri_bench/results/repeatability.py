"""How far a later timing may lie from a benchmark's: intervals of medians, from its own rounds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from kdmri_bench.results.schema import BASELINES, Row

__all__ = [
    "LARGER",
    "ROUNDING",
    "SLOWER",
    "TIMINGS",
    "Scatter",
    "beyond",
    "expected",
    "kind_of",
    "predicted",
    "repeatability",
]

TIMINGS: Final = ("latency", "end_to_end")
"""Fields of a row that `latency.summarise` has made."""

SLOWER: Final = 0.02
"""Least relative change of latency that counts, however tight the intervals are."""

LARGER: Final = 0.05
"""The same for peak memory, which allocators and the kernel's counting move by a few per cent."""

ROUNDING: Final = {"psnr": 5e-3, "ssim": 5e-5, "nmse": 5e-6, "hfn": 5e-5}
"""Least change of quality that counts; below lies the order of sums in another version."""

_LEVEL: Final = 0.975


@dataclass(frozen=True, slots=True)
class Scatter:
    """How much medians of rounds scatter about their row's.

    Attributes:
        deviation: standard deviation of their logarithms.
        freedom: its degrees of freedom; 0 where no row has two rounds, and nothing is known.
    """

    deviation: float = 0.0
    freedom: int = 0

    def factor(self, *rounds: int) -> float:
        """Return by what two medians differ at most in 95 % of all cases, one above 1.

        Args:
            *rounds: of which each of them is the median.
        """
        from scipy.stats import t

        reach = float(t.ppf(_LEVEL, self.freedom)) * self.deviation
        return math.exp(reach * math.sqrt(sum(1 / count for count in rounds)))


def kind_of(row: Row) -> tuple[str, bool]:
    """Return among which rows a row's scatter is pooled: of its runtime, baselines apart."""
    return row.runtime, row.variant in BASELINES


def repeatability(rows: Sequence[Row], timing: str = "latency") -> dict[tuple[str, bool], Scatter]:
    """Return how much medians of rounds scatter, for each `kind_of` row.

    A row has few rounds, a run many rows: what rows of one runtime tell of their common scatter is
    pooled (the repeatability standard deviation of ISO 5725-2). Runtimes differ in it by far, so
    they are kept apart.

    Args:
        rows: of one run.
        timing: "latency" or "end_to_end".
    """
    squares: dict[tuple[str, bool], float] = defaultdict(float)
    freedom: dict[tuple[str, bool], int] = defaultdict(int)
    for row in rows:
        found = getattr(row, timing)
        if found:
            values = np.log(found["round_p50_ms"])
            squares[kind_of(row)] += float(((values - values.mean()) ** 2).sum())
            freedom[kind_of(row)] += len(values) - 1
    return {
        kind: Scatter(math.sqrt(squares[kind] / count), count)
        for kind, count in freedom.items()
        if count
    }


def predicted(rows: Sequence[Row]) -> list[Row]:
    """Add to all timings where the median of one more timing should fall.

    `p50_prediction_ms` is its 95 % prediction interval by the scatter of `repeatability`, joined to
    what the row's own rounds span (`latency.interval`): three rounds alone would miss a fourth one
    half of the time. It is absent where no row of a kind has two rounds.

    Args:
        rows: of one run.
    """
    result = list(rows)
    for name in TIMINGS:
        scatter = repeatability(rows, name)
        for index, row in enumerate(result):
            timing = getattr(row, name)
            if timing and kind_of(row) in scatter:
                factor = scatter[kind_of(row)].factor(len(timing["round_p50_ms"]), 1)
                changed: dict[str, Any] = {name: _predicting(timing, factor)}
                result[index] = replace(row, **changed)
    return result


def beyond(first: Sequence[Row], second: Sequence[Row], timing: str) -> Callable[[Row, Row], float]:
    """Return what tells by which factor a row's median may move between two runs without meaning.

    Args:
        first: rows of one run.
        second: rows of another.
        timing: "latency" or "end_to_end".

    Returns:
        Function of a row of each; it gives the factor, infinity where neither run has two rounds.
    """
    before, after = repeatability(first, timing), repeatability(second, timing)

    def factor(row: Row, other: Row) -> float:
        a, b = before.get(kind_of(row), Scatter()), after.get(kind_of(other), Scatter())
        freedom = a.freedom + b.freedom
        if not freedom:
            return math.inf
        squares = a.freedom * a.deviation**2 + b.freedom * b.deviation**2
        rounds = (len(getattr(r, timing)["round_p50_ms"]) for r in (row, other))
        return Scatter(math.sqrt(squares / freedom), freedom).factor(*rounds)

    return factor


def _predicting(timing: Mapping[str, Any], factor: float) -> dict[str, Any]:
    low, high = timing["p50_interval_ms"]
    middle = float(timing["p50_ms"])
    ends = [min(low, middle / factor), max(high, middle * factor)]
    return {**timing, "p50_prediction_ms": ends}


def expected(timing: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return p50 in ms, and the interval in which an independent timing of it should fall.

    A single round has its median's interval for that, the oldest reports p50 alone.
    """
    middle = float(timing["p50_ms"])
    ends = timing.get("p50_prediction_ms") or timing.get("p50_interval_ms") or (middle, middle)
    return middle, float(ends[0]), float(ends[1])
