"""The thread that runs the network: what it keeps, and what it must not."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from kdmri_edge.mrd.server.worker import Worker
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.pipeline import Outcome
from tests.core.mrd.conftest import StandIn
from tests.core.mrd.scans import every_line


class Hanging(StandIn):
    """Waits until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def reconstruct(self, kspace: np.ndarray, mask: Mask, *_: Any) -> Outcome:
        self.begun.set()
        assert self.go.wait(20)
        return super().reconstruct(kspace, mask)


def test_behind_a_network_that_hangs_slices_are_let_go() -> None:
    """Nobody waits for them any more, and the queue does not move."""
    network = Hanging()
    worker = Worker()
    try:
        running = worker.submit(
            network.reconstruct, np.ones((1, 8, 8), np.complex64), every_line(8)
        )
        assert network.begun.wait(20)
        kspace = np.ones((1, 8, 8), np.complex64)
        left = weakref.ref(kspace)
        waiting = worker.submit(network.reconstruct, kspace, every_line(8))
        del kspace
        gc.collect()
        assert left() is not None
        assert waiting.cancel()
        gc.collect()
        assert left() is None
    finally:
        network.go.set()
    assert running.result(20).fallback is None
    last = np.ones((1, 8, 8), np.complex64)
    later = worker.submit(network.reconstruct, last, every_line(8))
    assert later.result(20).image.shape == (8, 8)
    worker.close()


def test_an_exception_is_handed_on_and_the_next_slice_runs() -> None:
    class Once(StandIn):
        failed = False

        def reconstruct(self, kspace: np.ndarray, mask: Mask, *_: Any) -> Outcome:
            if not self.failed:
                self.failed = True
                raise ZeroDivisionError
            return super().reconstruct(kspace, mask)

    worker, reconstruct = Worker(), Once().reconstruct
    kspace = np.ones((1, 8, 8), np.complex64)
    with pytest.raises(ZeroDivisionError):
        worker.submit(reconstruct, kspace, every_line(8)).result(20)
    assert worker.submit(reconstruct, kspace, every_line(8)).result(20).fallback is None
    worker.close()


def test_slices_are_worked_on_beside_each_other() -> None:
    both = threading.Barrier(2)

    class Meeting(StandIn):
        def reconstruct(self, kspace: np.ndarray, mask: Mask, *_: Any) -> Outcome:
            both.wait(20)  # breaks where the other one does not come
            return super().reconstruct(kspace, mask)

    worker, reconstruct = Worker(2), Meeting().reconstruct
    kspace = np.ones((1, 8, 8), np.complex64)
    futures = [worker.submit(reconstruct, kspace, every_line(8)) for _ in range(4)]
    assert [future.result(20).fallback for future in futures] == [None] * 4
    worker.close()
    for thread in worker._threads:
        thread.join(20)
        assert not thread.is_alive()
