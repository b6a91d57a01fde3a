"""The one thread that runs networks, for all scans in the order in which slices come."""

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
    """Runs networks in a thread of its own.

    The thread is a daemon: a network that hangs delays nobody's exit, and its slices' deadlines
    pass. Who submits bounds the queue, and cancels what it no longer waits for: behind a network
    that hangs, cancelled slices stay in line, but their k-space does not.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="reconstruct", daemon=True)
        self._thread.start()

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
        """Let the thread end once the queue is empty."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, given = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(_called(*given[0]))
                except Exception as error:  # whoever waits decides what becomes of it
                    future.set_exception(error)
            del job, future, given  # nothing of a slice outlives it while the queue is empty


def _called(reconstruct: Callable[..., Outcome], *slice_of: Any) -> Outcome:
    return reconstruct(*slice_of)
