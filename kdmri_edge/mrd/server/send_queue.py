"""What goes back to a client: slices that are being reconstructed, and texts, in order.

A thread of its own sends, so that a client that only writes until it has sent everything is read
all the while. The queue is bounded by slots: a slice takes one from its last line until its image
has been sent.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass
from typing import Final

from kdmri_edge.errors import StreamError
from kdmri_edge.mrd.format.assembler import Slice
from kdmri_edge.mrd.format.images import ImageMaker
from kdmri_edge.mrd.format.messages import Close, Message, Text, serialise
from kdmri_edge.mrd.server.archiving import ArchivedScan
from kdmri_edge.mrd.server.networks import Served
from kdmri_edge.mrd.server.settings import ServerSettings
from kdmri_edge.mrd.server.telemetry import Metrics, log_defect
from kdmri_edge.runtime.pipeline import Outcome, zero_filled_magnitude

__all__ = ["SendQueue"]

_BUFFER: Final = 1 << 19
_TEXTS: Final = 64  # texts about slices that one scan is sent; images carry their reason anyway


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Pending:
    part: Slice
    future: Future[Outcome]
    maker: ImageMaker
    came: float  # when the last line did
    served: Served
    archived: ArchivedScan | None


class SendQueue:
    """Sends one scan's images.

    Args:
        connection: The client's socket; a duplicate of it is written to.
        settings: Times and bounds.
        metrics: Counters.
    """

    def __init__(
        self, connection: socket.socket, settings: ServerSettings, metrics: Metrics
    ) -> None:
        self.images = 0
        self.fallbacks = 0
        self._connection = connection
        self._socket = connection.dup()
        self._socket.settimeout(settings.send_s)
        # what the system may hold of a client that does not read is bounded too
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self._settings = settings
        self._metrics = metrics
        self._slots = threading.Semaphore(settings.in_flight)
        self._items: queue.SimpleQueue[_Pending | Message | None] = queue.SimpleQueue()
        self._broken: str | None = None
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._send_all, name="send", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Refuse to go on once the client does not take what it is sent.

        Raises:
            StreamError: It went away, or stopped reading.
        """
        if self._broken is not None:
            raise StreamError(self._broken, "Keep reading until the server closes.")

    def reserve(self) -> None:
        """Wait for a slot.

        Raises:
            StreamError: See `check`.
        """
        while not self._slots.acquire(timeout=0.2):
            self.check()
        self.check()

    def put_slice(
        self,
        part: Slice,
        future: Future[Outcome],
        maker: ImageMaker,
        came: float,
        served: Served,
        archived: ArchivedScan | None = None,
    ) -> None:
        """Send the image of a slice, for which a slot was reserved, when it is there.

        Args:
            part: The slice.
            future: Its image.
            maker: Of the scan.
            came: When its last line did, by `time.monotonic`; waiting for the slot counts.
            served: What reconstructs it.
            archived: Takes images that are sent to an archive as well.
        """
        self._items.put(
            _Pending(
                part=part, future=future, maker=maker, came=came, served=served, archived=archived
            )
        )

    def put_text(self, text: str) -> None:
        """Send a text."""
        self._items.put(Text(text))

    def finish(self) -> None:
        """Send what is left and CLOSE, and wait until it is done or the client is given up."""
        self._items.put(Close())
        self._items.put(None)
        self._thread.join()
        self._socket.close()

    def _send_all(self) -> None:
        while (item := self._items.get()) is not None:
            if isinstance(item, _Pending):
                try:
                    self._send_slice(item)
                except Exception as error:  # a defect of ours; whoever waits for slots has to know
                    log_defect(error)
                    self._break(f"Internal error ({type(error).__name__}).")
                self._slots.release()
            else:
                self._send(item)
            del item

    def _send_slice(self, pending: _Pending) -> None:
        if self._broken is not None:
            pending.future.cancel()
            return
        outcome = self._outcome(pending)
        reason = outcome.fallback
        if reason is not None and reason not in self._told and len(self._told) < _TEXTS:
            self._told.add(reason)
            self._send(Text(f"WRN Slice {pending.part.key.slice} is the zero-filled one: {reason}"))
        for text in outcome.beyond:
            if text not in self._told and len(self._told) < _TEXTS:
                self._told.add(text)
                self._send(Text(f"WRN {text}"))
        served = pending.served
        image = pending.maker.make(pending.part, outcome, bundle=served.name, why=served.said)
        self._send(image)
        if self._broken is None:
            self.images += 1
            self.fallbacks += reason is not None
            self._metrics.images.labels("network" if reason is None else "zero-filled").inc()
            self._metrics.latency.observe(time.monotonic() - pending.came)
            if pending.archived is not None:
                pending.archived.put(pending.part, outcome, served.name)
            if served.said:
                self._metrics.bundles().labels(served.name or "none").inc()

    def _outcome(self, pending: _Pending) -> Outcome:
        deadline = self._settings.deadline_s
        left = pending.came + deadline - time.monotonic()
        try:
            return pending.future.result(timeout=max(left, 0.0))
        except (Late, CancelledError):
            pending.future.cancel()
            reason = f"The network was not ready within {deadline:g} s."
        except Exception as error:
            reason = f"The network failed ({type(error).__name__})."
        return Outcome(image=zero_filled_magnitude(pending.part.kspace), fallback=reason)

    def _send(self, message: Message) -> None:
        if self._broken is not None:
            return
        try:
            self._socket.sendall(serialise(message))
        except TimeoutError:
            self._break(f"The client took nothing for {self._settings.send_s:g} s.")
        except OSError as error:
            self._break(f"The client went away ({type(error).__name__}).")

    def _break(self, reason: str) -> None:
        self._broken = reason
        with contextlib.suppress(OSError):  # wakes whoever reads
            self._connection.shutdown(socket.SHUT_RDWR)
