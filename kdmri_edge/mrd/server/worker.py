"""The threads that run networks, for all scans in the order in which slices come."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from kdmri_edge.runtime.pipeline import Outcome

__all__ = ["Worker"]

_Job = tuple[Future[Outcome], list[tuple[Any, ...]]]


class Worker:
    """Runs networks in threads of its own.

    The threads are daemons: a network that hangs delays nobody's exit, and its slices' deadlines
    pass. Who submits bounds the queue, and cancels what it no longer waits for: behind a network
    that hangs, cancelled slices stay in line, but their k-space does not.

    Args:
        at_once: Slices that are worked on at a time.

    Attributes:
        finished: How many slices have been reconstructed, or tried to be.
    """

    def __init__(self, at_once: int = 1) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.finished = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"reconstruct-{number}", daemon=True)
            for number in range(at_once)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, reconstruct: Callable[..., Outcome], *slice_of: Any) -> Future[Outcome]:
        """Queue a slice; a future that is cancelled before its turn is skipped.

        Args:
            reconstruct: `SliceReconstructor.reconstruct` of the network that is to be run.
            *slice_of: Its arguments.
        """
        future: Future[Outcome] = Future()
        given: list[tuple[Any, ...]] = [(reconstruct, *slice_of)]
        future.add_done_callback(lambda _: given.clear())
        self._jobs.put((future, given))
        return future

    def close(self) -> None:
        """Let the threads end once the queue is empty."""
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, given = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(_called(*given[0]))
                except Exception as error:  # whoever waits decides what becomes of it
                    future.set_exception(error)
                self.finished += 1
            del job, future, given  # nothing of a slice outlives it while the queue is empty


def _called(reconstruct: Callable[..., Outcome], *slice_of: Any) -> Outcome:
    return reconstruct(*slice_of)
