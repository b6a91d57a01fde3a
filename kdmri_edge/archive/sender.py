"""Sending a queue while something else goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from kdmri_edge.archive.address import Archive
from kdmri_edge.archive.queue import ArchiveQueue
from kdmri_edge.archive.transfer import Delivery, Limits, deliver

__all__ = ["Sender"]

_LOOK_S: Final = 30.0  # other processes may put something into the queue, and cannot wake us


class Sender:
    """Sends a queue in a thread of its own, while something else goes on.

    Args:
        queue: The queue.
        limits: How much, and how long.
        tell: Called with the archive and what became of its objects, after each attempt that
            changed something; from the thread.
        fail: Called with what went wrong with the queue itself.
    """

    def __init__(
        self,
        queue: ArchiveQueue,
        limits: Limits | None = None,
        *,
        tell: Callable[[Archive, Delivery], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self._queue, self._limits = queue, limits or Limits()
        self._tell, self._fail = tell, fail
        self._begun = False
        self._wake, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="archive", daemon=True)

    def start(self) -> None:
        """Begin with what is left of an earlier process."""
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something new."""
        self._wake.set()

    def stop(self, timeout_s: float) -> None:
        """End after the object that is being sent; what waits stays in the queue."""
        self._over.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while not self._over.is_set():
            self._wake.clear()
            try:
                pause = self._round()
            except Exception as error:  # the server goes on, and so do we
                self._fail(error)
                pause = self._limits.longest_pause_s
            self._wake.wait(pause)

    def _round(self) -> float:
        """Send what is due; return the seconds until more is."""
        with self._queue.sending() as ours:
            if not ours:  # another process sends, ours included
                return self._limits.pause_s
            for line in self._queue.lines():
                if self._over.is_set():
                    break
                pause = line.state.next_s - time.time()
                # at a start at once, and whatever a clock says that has been set meanwhile
                waits = self._begun and 0 < pause <= self._limits.longest_pause_s
                if waits or not line.waiting():
                    continue
                done = deliver(line, self._limits, stop=self._over.is_set)
                self._tell(line.archive, done)
            self._begun = True
            left = [line.state.next_s for line in self._queue.lines() if line.waiting()]
        due = [next_s - time.time() for next_s in left]
        return max(min(due, default=_LOOK_S), 0.01)
