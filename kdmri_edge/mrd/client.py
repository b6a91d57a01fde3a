"""A small client: sends a scan to a server and collects the images that come back."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import ismrmrd
from ismrmrd import Acquisition, Image

from kdmri_edge.errors import StreamError
from kdmri_edge.mrd.format.messages import Close, ConfigFile, HeaderText, Text, serialise
from kdmri_edge.mrd.format.parser import Parser

__all__ = ["BrokenReplyError", "Reply", "send_scan"]

_CHUNK: Final = 1 << 18
_LAST: Final = 1 << (ismrmrd.ACQ_LAST_IN_SLICE - 1)


@dataclass(slots=True)
class Reply:
    """What came back.

    Attributes:
        images: In the order in which they came.
        texts: The same for texts.
        arrived: When each image did, by `time.perf_counter`.
        sent: When the flagged last line of a slice was sent, by (repetition, slice).
        closed: Whether the server ended with CLOSE.
    """

    images: list[Image] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    sent: dict[tuple[int, int], float] = field(default_factory=dict)
    closed: bool = False

    @property
    def errors(self) -> list[str]:
        """Texts that say why a scan was ended."""
        return [text[4:] for text in self.texts if text.startswith("ERR ")]

    def waits(self) -> Iterator[float]:
        """Yield the seconds from each slice's last line to its image, where the line had its flag.

        Both are seen from the client: the line when its last byte was handed to the system.
        """
        for image, arrived in zip(self.images, self.arrived, strict=True):
            key = (int(image.repetition), int(image.slice))
            if key in self.sent:
                yield arrived - self.sent[key]


class BrokenReplyError(StreamError):
    """The server fell silent or went away in the middle of a scan.

    Attributes:
        reply: What had come until then.
    """

    def __init__(self, trouble: StreamError, reply: Reply) -> None:
        super().__init__(trouble.what, trouble.remedy)
        self.reply = reply


def send_scan(
    xml: str,
    acquisitions: Iterable[Acquisition | Image],
    *,
    host: str = "127.0.0.1",
    port: int = 9002,
    config: str = "kdmri-edge",
    pace_s: float = 0.0,
    timeout_s: float = 60.0,
    advance: Callable[[int], None] | None = None,
) -> Reply:
    """Send a scan, or images, and wait until the server closes.

    Args:
        xml: Header of the scan.
        acquisitions: Its readouts, or images.
        host: Of the server.
        port: Of the server.
        config: Name of the configuration to ask for.
        pace_s: Seconds from one readout to the next, as a scanner would; 0 sends as fast as the
            server takes them.
        timeout_s: How long the server may be silent once nothing is sent any more, or take nothing.
        advance: Called with 1 for every readout or image that was sent.

    Raises:
        StreamError: No server answers there, or, as a `BrokenReplyError`, it falls silent.
    """
    try:
        connection = socket.create_connection((host, port), timeout=timeout_s)
    except (OSError, OverflowError) as error:
        raise StreamError(
            f"No server answers at {host}:{port} ({error}).", "Start `kdmri-edge serve` there."
        ) from None
    reply = Reply()
    trouble: list[StreamError] = []
    clock = _Clock(timeout_s)
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = threading.Thread(
            target=_receive, args=(connection, reply, trouble, clock), daemon=True
        )
        reader.start()
        # a server that has ended the scan has said why, or has gone: the reader knows
        with contextlib.suppress(OSError):
            connection.sendall(serialise(ConfigFile(config)) + serialise(HeaderText(xml)))
            due = time.perf_counter()
            for acquisition in acquisitions:
                if not reader.is_alive():
                    break
                if pace_s:
                    due += pace_s
                    time.sleep(max(due - time.perf_counter(), 0.0))
                connection.sendall(serialise(acquisition))
                clock.sent()
                if isinstance(acquisition, Acquisition) and int(acquisition.flags) & _LAST:
                    index = acquisition.idx
                    reply.sent[int(index.repetition), int(index.slice)] = time.perf_counter()
                if advance is not None:
                    advance(1)
            connection.sendall(serialise(Close()))
        reader.join()
    if trouble:
        raise BrokenReplyError(trouble[0], reply)
    return reply


class _Clock:
    """Tells how long nothing has been sent either: until then a server may owe no answer.

    Args:
        timeout_s: How long the server may be silent after the last readout.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._last = time.monotonic()

    def sent(self) -> None:
        """Note that something was sent."""
        self._last = time.monotonic()

    @property
    def out(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() - self._last >= self._timeout_s


def _received(connection: socket.socket, clock: _Clock) -> bytes:
    while True:
        try:
            return connection.recv(_CHUNK)
        except TimeoutError:
            if clock.out:
                raise


def _receive(
    connection: socket.socket, reply: Reply, trouble: list[StreamError], clock: _Clock
) -> None:
    parser = Parser()
    try:
        while data := _received(connection, clock):
            parser.feed(data)
            for message in parser.messages():
                if isinstance(message, Image):
                    reply.images.append(message)
                    reply.arrived.append(time.perf_counter())
                elif isinstance(message, Text):
                    reply.texts.append(message.text)
                elif isinstance(message, Close):
                    reply.closed = True
                    return
        parser.finish()
        raise StreamError("The server went away before it sent CLOSE.", "Look at its log.")
    except TimeoutError:
        trouble.append(StreamError("The server fell silent.", "Look at its log."))
    except OSError as error:
        trouble.append(
            StreamError(f"The server went away ({type(error).__name__}).", "Look at its log.")
        )
    except StreamError as error:
        trouble.append(error)
