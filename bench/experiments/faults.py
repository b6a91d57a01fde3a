"""Faulty clients: every way in which a scan goes wrong, for the tests and for soaking a server."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
from ismrmrd import Acquisition
from ismrmrd.acquisition import AcquisitionHeader
from ismrmrd.waveform import WaveformHeader

from kdmri_edge.errors import StreamError
from kdmri_edge.mrd.format.messages import (
    Close,
    ConfigFile,
    HeaderText,
    Id,
    Message,
    Text,
    serialise,
)
from kdmri_edge.mrd.format.parser import Parser

__all__ = ["FAULTS", "LASTING", "SILENT", "Fault", "misbehave"]

Fault = Callable[[bytes, Sequence[Acquisition]], bytes]
"""From a scan's opening (configuration and header) and its readouts to the bytes that are sent."""

SILENT: Final = {"stops reading", "disappears"}
"""Faults after which there is nobody to tell why."""

LASTING: Final = {"stops reading", "says nothing", "falls silent", "a byte at a time",
                  "slow within a readout"}  # fmt: skip
"""Faults that a server can tell by the time alone that has passed."""

_WAITING: Final = {"says nothing", "falls silent"}
_PAUSE_S: Final = 0.02  # between single bytes: far below any server's least rate


def _joined(opening: bytes, messages: Sequence[Message]) -> bytes:
    return opening + b"".join(map(serialise, messages))


def _changed(opening: bytes, lines: Sequence[Acquisition], line: Acquisition) -> bytes:
    """Two good lines, one bad one, and the rest of the scan."""
    return _joined(opening, [*lines[:2], line, *lines[2:], Close()])


def _beyond(opening: bytes, lines: Sequence[Acquisition]) -> bytes:
    line = Acquisition.from_bytes(lines[2].to_bytes())
    line.idx.kspace_encode_step_1 = 60_000
    return _changed(opening, lines, line)


def _more_coils(opening: bytes, lines: Sequence[Acquisition]) -> bytes:
    data = np.concatenate([lines[2].data, lines[2].data[:1]])
    line = Acquisition.from_array(data, center_sample=lines[2].center_sample, idx=lines[2].idx)
    return _changed(opening, lines, line)


def _billion(opening: bytes, lines: Sequence[Acquisition]) -> bytes:
    head = AcquisitionHeader.from_buffer_copy(lines[2].getHead())
    head.number_of_samples, head.active_channels = 65_535, 15_260
    claim = struct.pack("<H", Id.ACQUISITION) + bytes(head)
    return _joined(opening, lines[:2]) + claim + bytes(1 << 16)


def _billion_waveform(opening: bytes, lines: Sequence[Acquisition]) -> bytes:
    head = WaveformHeader(number_of_samples=65_535, channels=15_260)
    return _joined(opening, lines[:2]) + struct.pack("<H", Id.WAVEFORM) + bytes(head)


FAULTS: Final[dict[str, Fault]] = {
    "truncated stream": lambda o, a: _joined(o, a[:5]) + serialise(a[5])[:500],
    "no close": lambda o, a: _joined(o, a[:5]),
    "half a header": lambda o, a: o[: len(o) - 200],
    "half a readout's header": lambda o, a: _joined(o, a[:2]) + serialise(a[2])[:170],
    "readout before header": lambda o, a: serialise(ConfigFile("kdmri-edge")) + serialise(a[0]),
    "second header": lambda o, a: _joined(o, [*a[:2], HeaderText("<again/>"), *a[2:], Close()]),
    "unknown message": lambda o, a: _joined(o, a[:2]) + struct.pack("<H", 4711) + bytes(100),
    "outside the encoded space": _beyond,
    "other coils": _more_coils,
    "duplicate line": lambda o, a: _changed(o, a, a[1]),
    "zero lines": lambda o, a: _joined(o, [Close()]),
    "a billion samples": _billion,
    "a billion samples of a waveform": _billion_waveform,
    "a header that is none": lambda o, a: _joined(b"", [ConfigFile("kdmri-edge"),
                                                        HeaderText("Dummy"), Close()]),
    "unknown configuration": lambda o, a: serialise(ConfigFile("invertcontrast")),
    "stops reading": lambda o, a: _joined(o, [*a, Close()]),
    "disappears": lambda o, a: _joined(o, a[:7]),
    "says nothing": lambda o, a: b"",
    "falls silent": lambda o, a: _joined(o, a[:5]),
    "a byte at a time": lambda o, a: _joined(o, [*a, Close()]),
    "slow within a readout": lambda o, a: _joined(o, [*a, Close()]),
}  # fmt: skip
"""Every kind of faulty client, by name."""


def misbehave(name: str, xml: str, lines: Sequence[Acquisition], port: int,
              patience_s: float = 10.0) -> list[Message]:  # fmt: skip
    """Be a faulty client of a server on this machine.

    Args:
        name: Key of `FAULTS`.
        xml: Header of a scan.
        lines: Its readouts.
        port: The server's.
        patience_s: How long to wait for the server's last words.

    Returns:
        What the server said; nothing from a client that does not listen.
    """
    opening = serialise(ConfigFile("kdmri-edge")) + serialise(HeaderText(xml))
    data = FAULTS[name](opening, lines)
    with socket.socket() as client:
        if name == "stops reading":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.settimeout(patience_s)
        client.connect(("127.0.0.1", port))
        with contextlib.suppress(OSError):  # a server that has had enough hangs up
            at_once = _at_once(name, opening, lines)
            client.sendall(data[:at_once])
            if at_once is not None:
                _trickle(client, data[at_once:], patience_s)
            if name == "disappears":
                # close at once, with a reset instead of an orderly end
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return []
            if name == "stops reading":
                _wait_until_dropped(client, patience_s)
                return []
            if name not in _WAITING:
                client.shutdown(socket.SHUT_WR)
        return list(_heard(client))


def _at_once(name: str, opening: bytes, lines: Sequence[Acquisition]) -> int | None:
    """Return how many bytes come before those that come one by one; None where none do."""
    if name == "a byte at a time":
        return 0
    if name == "slow within a readout":
        return len(_joined(opening, lines[:2])) + 10
    return None


def _trickle(client: socket.socket, data: bytes, patience_s: float) -> None:
    """Send byte after byte, until all are sent or the server has said something."""
    until = time.monotonic() + patience_s
    for byte in data:
        client.sendall(bytes([byte]))
        readable, _, _ = select.select([client], [], [], _PAUSE_S)
        if readable or time.monotonic() > until:
            return


def _wait_until_dropped(client: socket.socket, patience_s: float) -> None:
    """Read nothing until the server has hung up, which sending notices."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        time.sleep(0.05)
        client.sendall(serialise(Text("")))


def _heard(client: socket.socket) -> Iterator[Message]:
    parser = Parser()
    with contextlib.suppress(OSError, StreamError):
        while data := client.recv(1 << 16):
            parser.feed(data)
            yield from parser.messages()
