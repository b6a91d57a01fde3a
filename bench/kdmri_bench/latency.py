"""Timing single queries and summarising the samples."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kdmri_edge.errors import BenchError

__all__ = ["sample_latency", "summarise"]


def sample_latency(query: Callable[[], object], *, warmup: int, samples: int) -> list[float]:
    """Time `query` again and again, one query at a time (MLPerf's single stream).

    Args:
        query: one inference; it must return only when its result is there.
        warmup: untimed queries before the first sample.
        samples: timed queries.

    Returns:
        `samples` durations in seconds, in the order in which they were taken.

    Raises:
        BenchError: fewer than one sample, or a negative warm-up.
    """
    if samples < 1 or warmup < 0:
        raise BenchError(
            f"{samples} samples after {warmup} warm-up queries cannot be timed.",
            "Use at least 1 sample and 0 warm-up queries.",
        )
    for _ in range(warmup):
        query()
    durations = []
    # A collection in the middle of a query would be charged to the network.
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(samples):
            start = time.perf_counter_ns()
            query()
            durations.append((time.perf_counter_ns() - start) * 1e-9)
    finally:
        if enabled:
            gc.enable()
    return durations


def summarise(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Pool the rounds' samples and describe them.

    Args:
        rounds: one list of durations in seconds per round, none of them empty.

    Returns:
        JSON values: samples (count), p50_ms, p90_ms, min_ms, mean_ms over the pooled samples, and
        round_p50_ms, whose spread tells how much the machine drifted.
    """
    pooled = np.concatenate([np.asarray(r, dtype=np.float64) for r in rounds]) * 1e3
    return {
        "samples": int(pooled.size),
        "p50_ms": float(np.percentile(pooled, 50)),
        "p90_ms": float(np.percentile(pooled, 90)),
        "min_ms": float(pooled.min()),
        "mean_ms": float(pooled.mean()),
        "round_p50_ms": [float(np.percentile(r, 50)) * 1e3 for r in rounds],
    }
