"""Batches that are read ahead of the steps that take them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Generic, TypeVar

__all__ = ["Prefetch"]

Drawn = TypeVar("Drawn")

_AHEAD: Final = 2
"""Batches for each worker that are drawn before they are wanted."""


class Prefetch(Generic[Drawn]):
    """Draws the batches of a stage, of which each follows from its step alone.

    Args:
        draw: Returns the batch of a step; called from several threads at once.
        last: The step after the last one.
        workers: Threads that draw ahead; 0 draws a batch when it is asked for.

    Attributes:
        waited: Seconds that the caller has waited for batches.
    """

    def __init__(self, draw: Callable[[int], Drawn], last: int, workers: int) -> None:
        self._draw, self._last, self._ahead = draw, last, _AHEAD * workers
        self._pool = ThreadPoolExecutor(workers, "batches") if workers else None
        self._coming: dict[int, Future[Drawn]] = {}
        self.waited = 0.0

    def __call__(self, step: int) -> Drawn:
        """Return the batch of a step; whatever drawing it raises is raised here."""
        began = time.perf_counter()
        try:
            if self._pool is None:
                return self._draw(step)
            for coming in range(step, min(step + self._ahead + 1, self._last)):
                if coming not in self._coming:
                    self._coming[coming] = self._pool.submit(self._draw, coming)
            return self._coming.pop(step).result()
        finally:
            self.waited += time.perf_counter() - began

    def close(self) -> None:
        """Stop drawing ahead."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
