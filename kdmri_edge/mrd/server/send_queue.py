"""What goes back to a client: slices that are being reconstructed, and texts, in order.

A thread of its own sends, so that a client that only writes until it has sent everything is read
all the while. The queue is bounded by slots: a slice takes one from its last line until its image
has been sent.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from ismrmrd import Image
from numpy.typing import NDArray

from kdmri_edge.errors import StreamError
from kdmri_edge.mrd.format.assembler import Slice
from kdmri_edge.mrd.format.images import ImageMaker
from kdmri_edge.mrd.format.messages import Close, Message, Text, serialise
from kdmri_edge.mrd.server.archiving import ArchivedScan
from kdmri_edge.mrd.server.networks import Served, ServedImage
from kdmri_edge.mrd.server.settings import ServerSettings
from kdmri_edge.mrd.server.telemetry import Metrics, log_defect, log_event
from kdmri_edge.runtime.causes import Cause
from kdmri_edge.runtime.certificate import Policy
from kdmri_edge.runtime.pipeline import Outcome, zero_filled_magnitude

__all__ = ["SendQueue"]

_BUFFER: Final = 1 << 19
_ZERO_FILLED: Final = "zero-filled"
_NOTHING: Final = np.zeros((1, 1), np.float32)
_TEXTS: Final = 64  # texts about slices that one scan is sent; images carry their reason anyway


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Pending:
    """A slice, or an image that came, on its way back.

    Attributes:
        future: What becomes of it.
        make: Makes the image that is sent; returns None where none is.
        plain: Returns the image without the network.
        what: What it is.
        told: What is said before a reason.
        kind: What the metrics call an image that is not the network's.
        came: When the last line did.
        bundle: Which of many bundles serves; "none" for none, None for a server of one network.
        after: Called with what was sent.
    """

    future: Future[Outcome]
    make: Callable[[Outcome], Image | None]
    plain: Callable[[], NDArray[Any]]
    what: str
    told: str
    kind: str
    came: float
    bundle: str | None
    after: Callable[[Outcome], None] | None = None


class SendQueue:
    """Sends one scan's images.

    Attributes:
        images: How many have been sent.
        zero_filled: How many of them are zero-filled.
        fallbacks: Slices and images that came without an image of the network, by the reason.

    Args:
        number: Of the scan in the log.
        connection: The client's socket; a duplicate of it is written to.
        settings: Times and bounds.
        metrics: Counters.
    """

    def __init__(
        self, number: int, connection: socket.socket, settings: ServerSettings, metrics: Metrics
    ) -> None:
        self.images = self.zero_filled = 0
        self.fallbacks: Counter[str] = Counter()
        self._number = number
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
                future=future,
                make=lambda outcome: (
                    None
                    if self._refused(outcome)
                    else maker.make(part, outcome, bundle=served.name, why=served.said)
                ),
                plain=lambda: zero_filled_magnitude(part.kspace),
                what=f"Slice {part.key.slice}",
                told=f"Slice {part.key.slice} is the zero-filled one",
                kind=_ZERO_FILLED,
                came=came,
                bundle=(served.name or "none") if served.said else None,
                after=None
                if archived is None
                else lambda outcome: archived.put(part, outcome, served.name),
            )
        )

    def put_image(
        self,
        number: int,
        future: Future[Outcome],
        make: Callable[[Outcome], Image | None],
        came: float,
        served: ServedImage,
    ) -> None:
        """Send what becomes of an image that came, for which a slot was reserved.

        Args:
            number: Of the image, as it came.
            future: Its reconstruction.
            make: Makes the image that is sent; returns None where none is.
            came: See `put_slice`.
            served: What reconstructs it.
        """
        back = "is sent back as it came" if self._settings.pass_images else "is not reconstructed"
        self._items.put(
            _Pending(
                future=future,
                make=lambda outcome: None if self._refused(outcome) else make(outcome),
                plain=lambda: _NOTHING,
                what=f"Image {number}",
                told=f"Image {number} {back}",
                kind="unchanged",
                came=came,
                bundle=(served.name or "none") if served.why else None,
            )
        )

    def _refused(self, outcome: Outcome) -> bool:
        """Tell whether the site wants no image at all of a slice that is not inside the scope."""
        if outcome.cause is not Cause.SCOPE or outcome.certificate is None:
            return False
        return self._settings.policies.of(outcome.certificate.scope.inside) is Policy.REFUSE

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
        reason, cause = outcome.fallback, outcome.cause or Cause.OTHER
        if reason is not None and reason not in self._told and len(self._told) < _TEXTS:
            self._told.add(reason)
            log_event("fallback", logging.WARNING, session=self._number, cause=cause,
                      reason=reason)  # fmt: skip
            said = f"{pending.what} is not sent" if self._refused(outcome) else pending.told
            self._send(Text(f"WRN {said}: {reason}"))
        for text in outcome.beyond:
            if text not in self._told and len(self._told) < _TEXTS:
                self._told.add(text)
                self._send(Text(f"WRN {text}"))
        image = pending.make(outcome)
        if image is not None:
            self._send(image)
        if self._broken is not None:
            return
        if reason is not None:
            self.fallbacks[cause] += 1
            self._metrics.fallbacks.labels(cause).inc()
        if outcome.certificate is not None:
            self._metrics.scope.labels(outcome.certificate.scope.word).inc()
        if image is None:
            return
        self.images += 1
        self.zero_filled += reason is not None and pending.kind == _ZERO_FILLED
        self._metrics.images.labels("network" if reason is None else pending.kind).inc()
        self._metrics.latency.observe(time.monotonic() - pending.came)
        if pending.after is not None:
            pending.after(outcome)
        if pending.bundle is not None:
            self._metrics.bundles().labels(pending.bundle).inc()

    def _outcome(self, pending: _Pending) -> Outcome:
        deadline = self._settings.deadline_s
        left = pending.came + deadline - time.monotonic()
        try:
            return pending.future.result(timeout=max(left, 0.0))
        except (Late, CancelledError):
            pending.future.cancel()
            reason, cause = f"The network was not ready within {deadline:g} s.", Cause.DEADLINE
        except Exception as error:
            reason, cause = f"The network failed ({type(error).__name__}).", Cause.NETWORK
        return Outcome(image=pending.plain(), fallback=reason, cause=cause)

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
