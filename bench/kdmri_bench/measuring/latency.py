"""Timing: single queries, and slices per second when all of them lie ready."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import BenchError, KdmriError

if TYPE_CHECKING:
    from kdmri_edge.runtime.session import Array, Session

__all__ = ["FEWEST", "P99_SAMPLES", "interval", "sample_latency", "summarise", "throughput"]

FEWEST: Final = 5
"""Samples that are taken however long they last."""

P99_SAMPLES: Final = 1000
"""Below this p99 is withheld: fewer than ten samples would lie beyond it."""

_BINS: Final = (8, 40)
_LEVEL_Z: Final = 1.96


def sample_latency(
    query: Callable[[], object], *, warmup: int, samples: int, seconds: float | None = None
) -> list[float]:
    """Time `query` again and again, one query at a time (MLPerf's single stream).

    Args:
        query: one inference; it must return only when its result is there.
        warmup: untimed queries before the first sample.
        samples: timed queries.
        seconds: stop after so many, though not before `FEWEST` samples; None sets no limit.

    Returns:
        Up to `samples` durations in seconds, in the order in which they were taken.

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
        ending = None if seconds is None else time.perf_counter() + seconds
        for number in range(samples):
            if ending is not None and number >= FEWEST and time.perf_counter() > ending:
                break
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
        JSON values over the pooled samples: samples (count), p50_ms, p90_ms, p99_ms (None below
        `P99_SAMPLES`), min_ms, mean_ms; p50_interval_ms (see `interval`), round_p50_ms, whose
        spread tells how much the machine drifted; and histogram (`edges_ms`, `counts`; the last
        bin holds whatever is slower).
    """
    pooled = np.concatenate([np.asarray(r, dtype=np.float64) for r in rounds]) * 1e3
    return {
        "samples": int(pooled.size),
        "p50_ms": float(np.percentile(pooled, 50)),
        "p90_ms": float(np.percentile(pooled, 90)),
        "p99_ms": float(np.percentile(pooled, 99)) if pooled.size >= P99_SAMPLES else None,
        "min_ms": float(pooled.min()),
        "mean_ms": float(pooled.mean()),
        "p50_interval_ms": interval(rounds),
        "round_p50_ms": [float(np.percentile(r, 50)) * 1e3 for r in rounds],
        "histogram": _histogram(pooled),
    }


def interval(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Return [low, high] in ms: what the medians of these rounds span.

    Each round has a distribution-free 95 % interval of its median, from the order statistics at
    n / 2 -+ 1.96 sqrt(n) / 2 (Conover, *Practical Nonparametric Statistics*, section 3.2); the
    result reaches from the lowest to the highest of them, so that a drift between the rounds is
    part of it.
    """
    ends: list[float] = []
    for values in rounds:
        ordered = np.sort(np.asarray(values, dtype=np.float64)) * 1e3
        half = _LEVEL_Z * math.sqrt(ordered.size) / 2
        low = max(math.floor(ordered.size / 2 - half), 0)
        high = min(math.ceil(ordered.size / 2 + half), ordered.size - 1)
        ends += [float(ordered[low]), float(ordered[high])]
    return [min(ends), max(ends)]


def _histogram(pooled: NDArray[np.float64]) -> dict[str, list[float]]:
    """Count samples in equal bins up to the 99th percentile, and those beyond in one more."""
    low, high = float(pooled.min()), float(np.percentile(pooled, 99))
    bins = int(np.clip(math.sqrt(pooled.size) * 2, *_BINS))
    edges = np.linspace(low, max(high, low * (1 + 1e-3) + 1e-9), bins + 1)
    counts, _ = np.histogram(pooled, edges)
    beyond = int((pooled > edges[-1]).sum())
    return {
        "edges_ms": [round(float(edge), 5) for edge in edges],
        "counts": [*(int(count) for count in counts), beyond],
    }


_CALLS: Final = 4
"""Slices handed over at a time one by one: enough for a runtime that works on several."""

_WIDE_CALLS: Final = 2
"""Larger batches handed over at a time; each of them is work enough already."""


def throughput(
    session: Session,
    reopen: Callable[[], Session],
    query: Array,
    *,
    maps: Array | None = None,
    batches: Sequence[int],
    seconds: float,
) -> dict[str, float | str]:
    """Measure slices per second.

    Args:
        session: an open network; it serves batch 1.
        reopen: opens the network that takes any batch; called at most once, for larger batches.
        query: [1, C, H, W] float32, or that of k-space, repeated to fill the batches.
        maps: sensitivities that go with it, for networks that combine coils.
        batches: batch sizes.
        seconds: for each batch size; at least one turn is taken.

    Returns:
        str(batch) -> slices per second, or the reason why that batch cannot be run.
    """
    found: dict[str, float | str] = {}
    wide: Session | None = None
    for batch in batches:
        try:
            if batch > 1 and wide is None:
                wide = reopen()
            chosen = session if batch == 1 or wide is None else wide
            own = None if maps is None else np.repeat(maps, batch, axis=0)
            found[str(batch)] = _rate(chosen, np.repeat(query, batch, axis=0), own, seconds)
        except KdmriError as error:
            found[str(batch)] = str(error)
    return found


def _rate(session: Session, images: Array, maps: Array | None, seconds: float) -> float:
    count = _CALLS if len(images) == 1 else _WIDE_CALLS
    waiting = [images] * count
    many = None if maps is None else [maps] * count
    # memory for this batch is taken now
    session.run_all(waiting[:1], maps=None if many is None else many[:1])
    slices, began = 0, time.perf_counter()
    while True:
        session.run_all(waiting, maps=many)
        slices += len(waiting) * len(images)
        spent = time.perf_counter() - began
        if spent >= seconds:
            return slices / spent
