"""Sampling and its summary, and the memory of a process."""

from __future__ import annotations

import gc
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdmri_bench.measuring.device import resident
from kdmri_bench.measuring.latency import FEWEST, interval, sample_latency, summarise
from kdmri_bench.planning.settings import BenchSettings
from kdmri_edge.errors import BenchError


def test_every_query_is_counted_once() -> None:
    calls = []
    durations = sample_latency(lambda: calls.append(gc.isenabled()), warmup=3, samples=7)
    assert len(durations) == 7
    assert len(calls) == 10
    assert calls == [True] * 3 + [False] * 7  # no garbage collection inside a sample
    assert gc.isenabled()


def test_durations_are_seconds() -> None:
    durations = sample_latency(lambda: time.sleep(0.01), warmup=0, samples=5)
    assert min(durations) >= 0.01
    assert np.median(durations) < 0.1


def test_garbage_collection_comes_back_after_a_failure() -> None:
    def fail() -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        sample_latency(fail, warmup=0, samples=2)
    assert gc.isenabled()


@pytest.mark.parametrize(("warmup", "samples"), [(0, 0), (-1, 5)])
def test_impossible_counts_are_refused(warmup: int, samples: int) -> None:
    with pytest.raises(BenchError):
        sample_latency(lambda: None, warmup=warmup, samples=samples)


def test_summary_pools_the_rounds_and_shows_their_spread() -> None:
    first, second = [0.010, 0.020, 0.030], [0.040, 0.050]
    found = summarise([first, second])
    pooled = np.array(first + second) * 1e3
    assert found["samples"] == 5
    assert found["p50_ms"] == pytest.approx(np.median(pooled))
    assert found["p90_ms"] == pytest.approx(np.percentile(pooled, 90))
    assert found["min_ms"] == pytest.approx(10.0)
    assert found["round_p50_ms"] == pytest.approx([20.0, 45.0])


def test_p99_is_withheld_below_the_samples_that_it_needs() -> None:
    assert summarise([[0.01] * 999])["p99_ms"] is None
    assert summarise([[0.01] * 500, [0.02] * 500])["p99_ms"] == pytest.approx(20.0)


def test_timing_ends_in_time_but_not_without_samples() -> None:
    slow = sample_latency(lambda: time.sleep(0.01), warmup=0, samples=500, seconds=0.02)
    assert FEWEST <= len(slow) < 100


@given(st.lists(st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=30), min_size=1, max_size=4))
def test_the_interval_holds_the_medians_and_the_histogram_every_sample(
    rounds: list[list[float]],
) -> None:
    found = summarise(rounds)
    low, high = found["p50_interval_ms"]
    assert all(low - 1e-9 <= median <= high + 1e-9 for median in found["round_p50_ms"])
    assert sum(found["histogram"]["counts"]) == found["samples"] == sum(map(len, rounds))
    assert len(found["histogram"]["edges_ms"]) == len(found["histogram"]["counts"])


def test_the_interval_of_the_median_covers_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        low, high = interval([random.exponential(1.0, 60)])
        hits += low <= 1e3 * np.log(2) <= high
    assert 0.92 <= hits / 400 <= 0.995


@pytest.mark.parametrize(
    ("samples", "rounds", "expected"),
    [(100, 2, [50, 50]), (7, 2, [4, 3]), (1, 2, [1]), (3, 5, [1, 1, 1]), (5, 1, [5])],
)
def test_samples_are_spread_over_the_rounds(samples: int, rounds: int, expected: list[int]) -> None:
    assert BenchSettings(samples=samples, rounds=rounds).samples_per_round == expected


@pytest.mark.parametrize(
    ("option", "value"),
    [("samples", 0), ("warmup", -1), ("threads", 0), ("rounds", 0), ("limit_slices", 0)],
)
def test_a_bad_setting_names_its_flag(option: str, value: int) -> None:
    with pytest.raises(BenchError, match=f"--{option.replace('_', '-')} {value}"):
        BenchSettings(**{option: value})  # type: ignore[arg-type]


SCRIPT = """
import numpy as np
from kdmri_bench.measuring.device import resident
before = resident()
block = np.ones(64 << 20, dtype=np.uint8)
held = resident()
del block
after = resident()
print(before.now, before.peak, held.now, after.now, after.peak)
"""


def test_the_peak_is_kept_after_memory_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{SCRIPT}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    before, first_peak, held, after, peak = map(int, done.stdout.split())
    block = 64 << 20
    assert held - before == pytest.approx(block, rel=0.05)
    assert after < held - 0.9 * block
    slack = 2 << 20  # the kernel batches its counters
    assert peak > held - slack > first_peak
    assert 5 << 20 < before < 1 << 30  # bytes, not KiB


def test_resident_is_plausible() -> None:
    found = resident()
    assert 0 < found.now <= found.peak
    assert found.source
