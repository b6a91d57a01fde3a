"""Where a later timing may lie: what the rounds of all rows tell of the machine's unrest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdmri_bench.measuring.latency import summarise
from kdmri_bench.results.repeatability import expected, predicted, repeatability
from kdmri_bench.results.schema import PLAIN_EXPORT, Row
from tests.bench.reports import row

UNREST = 0.03


def _timing(random: np.random.Generator, ms: float, rounds: int) -> dict[str, Any]:
    drift = np.exp(UNREST * random.standard_normal(rounds))
    return summarise([1e-3 * ms * level * random.normal(1, 0.002, 40) for level in drift])


def _run(random: np.random.Generator, rows: int, rounds: int) -> list[Row]:
    return [
        replace(
            row("student", "x", 39.0, 10.0, key=str(number)),
            latency=_timing(random, 10.0 + number, rounds),
            end_to_end=None,
        )
        for number in range(rows)
    ]


def test_the_pooled_scatter_is_that_of_the_machine() -> None:
    rows = _run(np.random.default_rng(0), 300, 3)
    (scatter,) = repeatability(rows).values()
    assert scatter.freedom == 600
    assert scatter.deviation == pytest.approx(UNREST, rel=0.1)


def test_a_restless_runtime_and_baselines_do_not_widen_the_others() -> None:
    random = np.random.default_rng(5)
    quiet = [replace(r, runtime="quiet") for r in _run(random, 4, 3)]
    calm = [[0.01 * (1 + 1e-4 * i) for i in range(5)]] * 3
    quiet = [replace(r, latency=summarise(calm)) for r in quiet]
    restless = [replace(r, runtime="restless") for r in _run(random, 4, 3)]
    baseline = [replace(r, runtime="quiet", variant=PLAIN_EXPORT) for r in _run(random, 4, 3)]
    rows = predicted([*quiet, *restless, *baseline])
    reach = []
    for row_ in rows:
        assert row_.latency is not None
        middle, low, high = expected(row_.latency)
        reach.append((high - low) / middle)
    assert max(reach[:4]) < 0.005 < 0.05 < min(reach[4:])


def test_one_more_round_lies_within_as_often_as_it_is_said() -> None:
    random = np.random.default_rng(1)
    hits, before, count = 0, 0, 0
    for _ in range(40):
        rows = _run(random, 10, 3)
        for number, own in enumerate(predicted(rows)):
            again = _timing(random, 10.0 + number, 1)["p50_ms"]
            assert own.latency is not None
            low, high = own.latency["p50_interval_ms"]
            before += low <= again <= high
            _, low, high = expected(own.latency)
            hits += low <= again <= high
            count += 1
    assert before / count < 0.7  # what three rounds span misses many
    assert 0.92 <= hits / count <= 0.99


@given(st.integers(0, 100), st.integers(1, 4), st.integers(2, 4))
def test_a_prediction_holds_what_was_measured_and_changes_nothing_else(
    seed: int, count: int, rounds: int
) -> None:
    rows = _run(np.random.default_rng(seed), count, rounds)
    for own, said in zip(rows, predicted(rows), strict=True):
        assert own.latency is not None
        assert said.latency is not None
        middle, low, high = expected(said.latency)
        assert middle == own.latency["p50_ms"]
        assert low <= min(own.latency["p50_interval_ms"])
        assert high >= max(own.latency["p50_interval_ms"])
        assert [low, high] == said.latency["p50_prediction_ms"]
        assert replace(said, latency=own.latency) == own


def test_a_single_round_predicts_nothing_and_its_own_span_stands_for_it() -> None:
    rows = _run(np.random.default_rng(2), 3, 1)
    assert predicted(rows) == rows
    assert rows[0].latency is not None
    assert list(expected(rows[0].latency)[1:]) == rows[0].latency["p50_interval_ms"]
    assert expected({"p50_ms": 3.0}) == (3.0, 3.0, 3.0)


def test_rows_without_times_stay_and_both_timings_are_predicted() -> None:
    random = np.random.default_rng(3)
    absent = Row(key="a", network="a", role="student", runtime="x", precision="f32")
    both = replace(_run(random, 1, 3)[0], end_to_end=_timing(random, 12.0, 3))
    kept, said = predicted([absent, both])
    assert kept is absent
    assert said.latency is not None
    assert said.end_to_end is not None
    assert said.latency["p50_prediction_ms"] != said.end_to_end["p50_prediction_ms"]
