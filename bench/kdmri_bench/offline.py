"""Offline throughput: slices per second when all of them lie ready (MLPerf's offline scenario)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from kdmri_edge.errors import KdmriError

if TYPE_CHECKING:
    from kdmri_edge.runtime.session import Array, Session

__all__ = ["throughput"]

_CALLS: Final = 4
"""Slices handed over at a time one by one: enough for a runtime that works on several."""

_WIDE_CALLS: Final = 2
"""Larger batches handed over at a time; each of them is work enough already."""


def throughput(
    session: Session,
    reopen: Callable[[], Session],
    query: Array,
    *,
    batches: Sequence[int],
    seconds: float,
) -> dict[str, float | str]:
    """Measure slices per second.

    Args:
        session: an open network; it serves batch 1.
        reopen: opens the network that takes any batch; called at most once, for larger batches.
        query: [1, C, H, W] float32, repeated to fill the batches.
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
            found[str(batch)] = _rate(chosen, np.repeat(query, batch, axis=0), seconds)
        except KdmriError as error:
            found[str(batch)] = str(error)
    return found


def _rate(session: Session, images: Array, seconds: float) -> float:
    waiting = [images] * (_CALLS if len(images) == 1 else _WIDE_CALLS)
    session.run_all(waiting[:1])  # memory for this batch is taken now
    slices, began = 0, time.perf_counter()
    while True:
        session.run_all(waiting)
        slices += len(waiting) * len(images)
        spent = time.perf_counter() - began
        if spent >= seconds:
            return slices / spent
