"""Sampling and its summary, and the memory of a process."""

from __future__ import annotations

import gc
import subprocess
import sys
import time

import numpy as np
import pytest

from kdmri_bench.latency import sample_latency, summarise
from kdmri_bench.memory import resident
from kdmri_bench.settings import BenchSettings
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
from kdmri_bench.memory import resident
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
