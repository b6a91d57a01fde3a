"""How far a later timing may lie from a benchmark's: intervals of medians, from its own rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from kdmri_bench.schema import Row

__all__ = ["expected", "predicted", "repeatability"]

_LEVEL: Final = 0.975
_TIMINGS: Final = ("latency", "end_to_end")


def repeatability(timings: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
    """Return how much medians of rounds scatter about their row's, relative, and from how many.

    Rows of one run share the machine and its unrest, so what they tell of it is pooled (ISO 5725-2,
    section 7.4.5: the repeatability standard deviation). A row has few rounds, a run many rows.

    Args:
        timings: what `latency.summarise` gave for each row.

    Returns:
        Standard deviation of the logarithm of a round's median, and its degrees of freedom; 0.0 and
        0 where no row has two rounds.
    """
    rounds = [np.log(timing["round_p50_ms"]) for timing in timings]
    freedom = sum(len(values) - 1 for values in rounds)
    if not freedom:
        return 0.0, 0
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in rounds)
    return math.sqrt(squares / freedom), freedom


def predicted(rows: Sequence[Row]) -> list[Row]:
    """Add to all timings where the median of one more timing would lie.

    `p50_prediction_ms` is its 95 % prediction interval, p50 * exp(-+ t s sqrt(1 + 1 / rounds)) with
    the pooled s of `repeatability`, joined to what the row's own rounds span (`latency.interval`):
    three rounds alone would miss a fourth one half of the time.

    Args:
        rows: of one run.
    """
    result = list(rows)
    for name in _TIMINGS:
        timed = [timing for row in rows if (timing := getattr(row, name))]
        spread, freedom = repeatability(timed)
        if not freedom:
            continue
        from scipy.stats import t

        reach = float(t.ppf(_LEVEL, freedom)) * spread
        for index, row in enumerate(result):
            timing = getattr(row, name)
            if timing:
                changed: dict[str, Any] = {name: _predicting(timing, reach)}
                result[index] = replace(row, **changed)
    return result


def _predicting(timing: Mapping[str, Any], reach: float) -> dict[str, Any]:
    factor = math.exp(reach * math.sqrt(1 + 1 / len(timing["round_p50_ms"])))
    low, high = timing["p50_interval_ms"]
    middle = float(timing["p50_ms"])
    ends = [min(low, middle / factor), max(high, middle * factor)]
    return {**timing, "p50_prediction_ms": ends}


def expected(timing: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return p50 in ms, and from where to where an independent timing of it is expected.

    Old reports have the span of the rounds for that, the oldest p50 alone.
    """
    middle = float(timing["p50_ms"])
    ends = timing.get("p50_prediction_ms") or timing.get("p50_interval_ms") or (middle, middle)
    return middle, float(ends[0]), float(ends[1])
