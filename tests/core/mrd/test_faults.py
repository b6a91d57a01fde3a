"""Bad clients: their session ends with a reason in text and in the log, and nobody else notices."""

from __future__ import annotations

import gc
import logging
import socket
import threading
import tracemalloc

import pytest

from experiments.faults import FAULTS, LASTING, SILENT, misbehave
from kdmri_edge.mrd.client import send_scan
from kdmri_edge.mrd.format.assembler import Capacity
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.header import write_encoding
from kdmri_edge.mrd.format.images import fallback_of
from kdmri_edge.mrd.format.messages import Close, ConfigFile, HeaderText, Text, serialise
from tests.core.mrd.scans import noise_scan
from tests.waiting import until

SCAN = noise_scan(3, coils=2, height=64, width=64)
XML = write_encoding(encoding_of(SCAN))
LINES = list(readouts(SCAN))
# so many large images that a client which does not read fills the system's buffers
LONG = noise_scan(40, coils=1, height=256, width=256)
SAID = {
    "truncated stream": "ended within message ACQUISITION",
    "no close": "ended without CLOSE",
    "half a header": "ended within message HEADER",
    "half a readout's header": "ended within a message",
    "readout before header": "acquisition came before the header",
    "second header": "second header",
    "unknown message": "identifier 4711 is unknown",
    "outside the encoded space": "Line 60000",
    "other coils": "3 coils, those before it 2",
    "duplicate line": "came twice",
    "zero lines": "No line of an image came",
    "a billion samples": "ACQUISITION claims 8000513140",
    "a billion samples of a waveform": "WAVEFORM claims 4000256",
    "a header that is none": "no MRD header",
    "unknown configuration": "configuration that was asked for is unknown",
    "stops reading": "took nothing for",
    "disappears": "",
    "says nothing": "No scan was begun within 0.5 s",
    "falls silent": "Nothing came for 0.3 s",
    "a byte at a time": "No scan was begun within 0.5 s",
    "slow within a readout": "at less than 1024 bytes per second",
}


def scan_of(name: str):  # type: ignore[no-untyped-def]
    if name != "stops reading":
        return XML, LINES
    return write_encoding(encoding_of(LONG)), list(readouts(LONG))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_its_own_session_with_a_reason(serving, events, name: str) -> None:
    lasting = name in LASTING - SILENT
    server = serving(send_s=0.5, idle_s=0.3 if lasting else 5, opening_s=0.5 if lasting else 10)
    good: list = []
    other = threading.Thread(
        target=lambda: good.append(send_scan(XML, LINES, port=server.port, pace_s=0.002))
    )
    other.start()  # a scan that runs all the while
    heard = misbehave(name, *scan_of(name), server.port)
    other.join()
    assert len(good[0].images) == 3
    assert [fallback_of(image) for image in good[0].images] == [None] * 3
    failed = [e for e in events("session", 2) if e["outcome"] in ("failed", "refused")]
    assert len(failed) == 1
    assert SAID[name] in failed[0]["reason"]
    if name in SILENT:
        return
    texts = [message.text for message in heard if isinstance(message, Text)]
    assert any(text.startswith("ERR ") and SAID[name] in text for text in texts)
    assert isinstance(heard[-1], Close)
    if name in ("no close", "outside the encoded space", "other coils", "duplicate line",
                "second header", "unknown message", "a billion samples"):  # fmt: skip
        # what had come is not lost: the open slice goes back, flagged
        images = [m for m in heard if hasattr(m, "meta")]
        assert len(images) == 1
        assert "broke off" in (fallback_of(images[0]) or "")


def test_every_fault_is_tried_here() -> None:
    assert set(SAID) == set(FAULTS)


def test_memory_returns_to_where_it_was(serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own allocations, after every kind of fault, three times over."""
    # pytest keeps what is logged
    monkeypatch.setattr(logging.getLogger("kdmri_edge.serve"), "disabled", True)
    server = serving(send_s=0.3, linger_s=0.3)
    names = [name for name in FAULTS if name not in LASTING]
    failed = server.metrics.sessions.labels("failed")._value

    def round_of_faults() -> int:
        wanted = failed.get() + len(names)
        for name in names:
            misbehave(name, XML, LINES, server.port)
        # The last client left without waiting.
        until(lambda: failed.get() >= wanted and not server._running, 10)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = round_of_faults()
        for _ in range(2):
            after = round_of_faults()
    finally:
        tracemalloc.stop()
    assert after - before < 100_000  # one scan here is more than 200,000


def test_a_silent_client_is_given_up(serving, events) -> None:
    server = serving(idle_s=0.3)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(serialise(ConfigFile("kdmri-edge")) + serialise(HeaderText(XML)))
        (event,) = events("session")
    assert "Nothing came for 0.3 s" in event["reason"]


def test_a_connection_without_a_word_is_no_session(serving, events) -> None:
    """Health checks of containers do that."""
    server = serving()
    socket.create_connection(("127.0.0.1", server.port)).close()
    assert len(send_scan(XML, LINES, port=server.port).images) == 3
    assert [event["outcome"] for event in events("session")] == ["complete"]


def test_open_slices_are_bounded(serving) -> None:
    """A client that opens slice after slice without completing any: nothing is made of them."""
    server = serving(capacity=Capacity(open_bytes=20_000))
    lines = [line for line in LINES if line.idx.kspace_encode_step_1 != 63]
    reply = send_scan(XML, lines, port=server.port)
    assert "slices are open" in reply.errors[0]
    assert reply.images == []


def test_a_client_that_never_reads_does_not_fill_the_memory(serving) -> None:
    """Its data stay in its own buffers: the server stops reading them."""
    server = serving(send_s=0.5, in_flight=2)
    xml, lines = scan_of("stops reading")
    tracemalloc.start()
    try:
        misbehave("stops reading", xml, lines, server.port)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    scan_bytes = sum(line.data.nbytes for line in lines)
    assert scan_bytes > 2e7
    assert peak < 2.5 * scan_bytes  # the client's own copy of the stream is one of them
