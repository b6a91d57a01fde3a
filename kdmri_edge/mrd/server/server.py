"""The server: a listening socket and a thread for each scan.

Threads, not asyncio: what takes time here is NumPy and the network's runtime, which release the
interpreter's lock, and blocking sockets give back-pressure for free: a scan whose slots are taken
is simply not read, and TCP stops its client, so that memory is bounded without any accounting. A
scan has one thread that reads and assembles and one that sends; one more runs the network for all.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from typing import Final

from kdmri_edge.errors import StreamError
from kdmri_edge.mrd.server.session import ClientSession
from kdmri_edge.mrd.server.settings import ServerSettings
from kdmri_edge.mrd.server.telemetry import Metrics, log_event
from kdmri_edge.mrd.server.worker import Worker
from kdmri_edge.runtime.pipeline import SliceReconstructor
from kdmri_edge.utils.memory import give_memory_back

__all__ = ["Server"]

_WAITING: Final = 8  # clients that wait for a scan to end, or are being told that none did
_GRACE_S: Final = 1.0  # a client that opens its next scan at once meets the end of its last one


class Server:
    """Serves a pipeline over the MRD streaming protocol.

    Args:
        pipeline: What reconstructs slices.
        settings: How to behave.
        metrics: Counters; None makes new ones.

    Attributes:
        port: The port that it listens at.

    Raises:
        StreamError: The address cannot be listened at.
    """

    def __init__(
        self,
        pipeline: SliceReconstructor,
        settings: ServerSettings | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.settings = settings or ServerSettings()
        self.metrics = metrics or Metrics()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._running: dict[int, threading.Thread] = {}
        self._slots = threading.Semaphore(self.settings.sessions)
        try:
            family = socket.AF_INET6 if ":" in self.settings.host else socket.AF_INET
            self._socket = socket.create_server(
                (self.settings.host, self.settings.port), family=family
            )
        except (OSError, OverflowError) as error:
            raise StreamError(
                f"{self.settings.host}:{self.settings.port} cannot be listened at ({error}).",
                "Choose another --port or --host.",
            ) from None
        self._socket.settimeout(0.2)
        self.port = int(self._socket.getsockname()[1])
        self._worker = Worker(pipeline)

    def stop(self) -> None:
        """Take no new scan; `serve` returns when those that run have ended."""
        self._stop.set()

    def serve(self) -> None:
        """Serve until `stop`, then until the running scans have ended."""
        log_event("listening", host=self.settings.host, port=self.port)
        number = 0
        while not self._stop.is_set():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            except OSError as error:  # too many open files, say: others may end soon
                log_event("accept failed", logging.ERROR, error=type(error).__name__)
                time.sleep(0.2)
                continue
            number += 1
            self._admit(number, connection)
        self._socket.close()
        log_event("stopping", running=len(self._running))
        while self._running:
            time.sleep(0.02)
        self._worker.close()
        log_event("stopped")

    def _admit(self, number: int, connection: socket.socket) -> None:
        with self._lock:
            if len(self._running) >= self.settings.sessions + _WAITING:
                connection.close()
                self.metrics.sessions.labels("refused").inc()
                log_event("turned away", logging.WARNING, session=number)
                return
            thread = threading.Thread(
                target=self._hold, args=(number, connection), name="scan", daemon=True
            )
            self._running[number] = thread
        try:
            thread.start()
        except RuntimeError:  # no more threads to be had: running scans go on
            with self._lock:
                del self._running[number]
            connection.close()
            self.metrics.sessions.labels("refused").inc()
            log_event("turned away", logging.ERROR, session=number, error="no thread")

    def _hold(self, number: int, connection: socket.socket) -> None:
        free = self._slots.acquire(timeout=_GRACE_S)
        refusal = None if free else "The server is busy with other scans. Try again later."
        try:
            with self.metrics.open.track_inprogress(), contextlib.suppress(OSError):
                ClientSession(
                    number, connection, self._worker, self.settings, self.metrics
                ).run(refusal)  # fmt: skip
        finally:
            connection.close()
            give_memory_back()
            if free:
                self._slots.release()
            with self._lock:
                del self._running[number]
