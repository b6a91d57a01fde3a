"""The server: a listening socket and a thread for each scan.

Threads, not asyncio: what takes time here is NumPy and the network's runtime, which release the
interpreter's lock, and blocking sockets give back-pressure for free: a scan whose slots are taken
is simply not read, and TCP stops its client, so that memory is bounded without any accounting. A
scan has one thread that reads and assembles and one that sends; one or two more run the network for
all.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from typing import Final

from kdmri_edge.errors import StreamError
from kdmri_edge.mrd.server.archiving import Archiving
from kdmri_edge.mrd.server.health import Health
from kdmri_edge.mrd.server.networks import Chooser, ManyNetworks, OneNetwork
from kdmri_edge.mrd.server.recording import Recorder
from kdmri_edge.mrd.server.session import ClientSession
from kdmri_edge.mrd.server.settings import ServerSettings
from kdmri_edge.mrd.server.telemetry import Metrics, log_event
from kdmri_edge.mrd.server.worker import Worker
from kdmri_edge.runtime.pipeline import SliceReconstructor
from kdmri_edge.utils.memory import give_memory_back

__all__ = ["Server"]

# Times as many connections as are waited for: those that were dropped are still being told why.
_CROWD: Final = 4


class Server:
    """Serves one network, or many, over the MRD streaming protocol.

    Args:
        pipeline: What reconstructs slices, or chooses among many that do.
        settings: How to behave.
        metrics: Counters; None makes new ones.
        archiving: Sends images to an archive as well; the caller enters it as a context.
        recorder: Records the scans, where the settings say so.
        name: What one network is called.

    Attributes:
        port: The port that it listens at.

    Raises:
        StreamError: The address cannot be listened at.
    """

    def __init__(
        self,
        pipeline: SliceReconstructor | ManyNetworks,
        settings: ServerSettings | None = None,
        metrics: Metrics | None = None,
        archiving: Archiving | None = None,
        recorder: Recorder | None = None,
        name: str = "",
    ) -> None:
        self.settings = settings or ServerSettings()
        self._recorder = recorder
        self.metrics = metrics or Metrics()
        self._archiving = archiving
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._running: dict[int, ClientSession | None] = {}  # None until its thread has begun
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
        self._worker = Worker(self.settings.at_once)
        self._networks: Chooser = (
            pipeline if isinstance(pipeline, ManyNetworks) else OneNetwork(pipeline, name)
        )
        self.metrics.know(self._networks.names)
        self.metrics.health = Health(self._networks, self._worker, self._stop.is_set).check

    def stop(self) -> None:
        """Take no new scan; `serve` returns when those that run have ended.

        Clients that have sent no header yet are sent away.
        """
        self._stop.set()

    def reload(self) -> None:
        """Look again for bundles, in a thread of its own; running scans go on as they began."""
        threading.Thread(target=self._reload, name="reload", daemon=True).start()

    def _reload(self) -> None:
        self._networks.reload()
        self.metrics.know(self._networks.names)

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
            for session in self._waiting():
                session.drop("The server is stopping.")
            time.sleep(0.02)
        self._worker.close()
        if self._recorder is not None:
            self._recorder.close()
        log_event("stopped")

    def _waiting(self) -> list[ClientSession]:
        """Return the sessions without a header, the oldest first."""
        with self._lock:
            return [session for session in self._running.values() if session and session.waits]

    def _admit(self, number: int, connection: socket.socket) -> None:
        waiting = self._waiting()
        if len(waiting) >= self.settings.waiting:
            waiting[0].drop("Too many clients have begun no scan.")
        with self._lock:
            full = self.settings.sessions + _CROWD * self.settings.waiting
            if len(self._running) >= full:
                connection.close()
                self.metrics.sessions.labels("refused").inc()
                log_event("turned away", logging.WARNING, session=number)
                return
            self._running[number] = None
        try:
            threading.Thread(
                target=self._hold, args=(number, connection), name="scan", daemon=True
            ).start()
        except RuntimeError:  # no more threads to be had: running scans go on
            with self._lock:
                del self._running[number]
            connection.close()
            self.metrics.sessions.labels("refused").inc()
            log_event("turned away", logging.ERROR, session=number, error="no thread")

    def _hold(self, number: int, connection: socket.socket) -> None:
        try:
            with self.metrics.open.track_inprogress(), contextlib.suppress(OSError):
                session = ClientSession(
                    number, connection, self._worker, self._networks, self.settings, self.metrics,
                    self._slots, self._archiving, self._recorder,
                )  # fmt: skip
                with self._lock:
                    self._running[number] = session
                session.run()
        finally:
            connection.close()
            give_memory_back()
            with self._lock:
                del self._running[number]
