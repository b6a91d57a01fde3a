"""The one thread that runs the network, for all scans in the order in which slices come."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.pipeline import Outcome, SliceReconstructor

__all__ = ["Worker"]

_Slice = tuple[NDArray[np.complex64], Mask, NDArray[np.complex128] | None]
_Job = tuple[Future[Outcome], list[_Slice]]


class Worker:
    """Runs a pipeline in a thread of its own.

    The thread is a daemon: a network that hangs delays nobody's exit, and its slices' deadlines
    pass. Who submits bounds the queue, and cancels what it no longer waits for: behind a network
    that hangs, cancelled slices stay in line, but their k-space does not.

    Args:
        pipeline: What reconstructs.
    """

    def __init__(self, pipeline: SliceReconstructor) -> None:
        self._pipeline = pipeline
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="reconstruct", daemon=True)
        self._thread.start()

    def submit(
        self,
        kspace: NDArray[np.complex64],
        mask: Mask,
        whitening: NDArray[np.complex128] | None = None,
    ) -> Future[Outcome]:
        """Queue a slice; a future that is cancelled before its turn is skipped."""
        future: Future[Outcome] = Future()
        given: list[_Slice] = [(kspace, mask, whitening)]
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
                    future.set_result(self._pipeline.reconstruct(*given[0]))
                except Exception as error:  # whoever waits decides what becomes of it
                    future.set_exception(error)
            del job, future, given  # nothing of a slice outlives it while the queue is empty
