"""What a scan may cost: nothing for what is not taken, nothing for what is refused."""

from __future__ import annotations

import gc
import socket
import struct
import tracemalloc
from typing import Any

import ismrmrd
import numpy as np
import pytest

from kdmri_edge.errors import DataError
from kdmri_edge.mrd.client import send_scan
from kdmri_edge.mrd.format.assembler import Assembler, Capacity, TooLargeError
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.header import write_encoding
from kdmri_edge.mrd.format.messages import Close, ConfigFile, HeaderText, Id, serialise
from kdmri_edge.mrd.format.parser import Parser
from kdmri_edge.runtime.pipeline import Outcome, zero_filled_magnitude
from tests.core.mrd.scans import noise_scan

MIB = 2**20


def opening(scan: Any) -> bytes:
    return serialise(ConfigFile("kdmri-edge")) + serialise(
        HeaderText(write_encoding(encoding_of(scan)))
    )


def image_of(size: int) -> bytes:
    """The start of an image message of so many bytes of pixels."""
    head = ismrmrd.ImageHeader()
    head.data_type, head.channels = ismrmrd.DATATYPE_FLOAT, 1
    head.matrix_size[:] = (1, 1024, size // 4096)
    return struct.pack("<H", Id.IMAGE) + bytes(head) + struct.pack("<Q", 0)


def test_an_image_that_is_not_taken_costs_next_to_nothing(serving) -> None:
    scan = noise_scan(1)
    server = serving()
    size, piece = 48 * MIB, bytes(MIB)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(opening(scan))
        tracemalloc.start()
        try:
            client.sendall(image_of(size))
            for _ in range(size // MIB):
                client.sendall(piece)
            client.sendall(b"".join(map(serialise, [*readouts(scan), Close()])))
            parser, found = Parser(), []
            while data := client.recv(1 << 16):
                parser.feed(data)
                found += list(parser.messages())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert [type(message).__name__ for message in found] == ["Text", "Image", "Close"]
    assert peak < 4 * MIB


class Counting:
    """Counts the slices that it is given."""

    calls = 0

    def reconstruct(self, kspace: np.ndarray, *_: Any) -> Outcome:
        self.calls += 1
        return Outcome(image=zero_filled_magnitude(kspace))


def test_nothing_of_a_refused_scan_is_reconstructed(serving, events, monkeypatch) -> None:
    """Interleaved: all slices are open when the limit is met, and all of them are let go."""
    dropped: list[int] = []
    drop = Assembler.drop

    def noted(assembler: Assembler) -> None:
        drop(assembler)
        dropped.append(assembler.held)

    monkeypatch.setattr(Assembler, "drop", noted)
    scan = noise_scan(8, coils=4, height=32, width=32)
    lines = sorted(readouts(scan), key=lambda line: line.idx.kspace_encode_step_1)
    counting = Counting()
    server = serving(counting, capacity=Capacity(open_bytes=100_000))
    reply = send_scan(write_encoding(encoding_of(scan)), lines, port=server.port)
    assert reply.images == []
    assert "slices are open" in reply.errors[0]
    assert "--scan-memory" in reply.errors[0]
    assert (counting.calls, dropped) == (0, [0])
    (session,) = events("session")
    assert (session["outcome"], session["images"]) == ("failed", 0)


def test_a_slice_above_the_limit_is_refused_with_its_first_line(serving) -> None:
    scan = noise_scan(1, coils=4, height=32, width=32)
    server = serving(capacity=Capacity(slice_bytes=20_000))
    reply = send_scan(write_encoding(encoding_of(scan)), readouts(scan), port=server.port)
    assert reply.images == []
    assert "4 coils and 32 x 32 samples is larger than 20000 bytes" in reply.errors[0]
    assert "--slice-memory" in reply.errors[0]


def test_noise_may_take_a_fourth_of_a_slice() -> None:
    encoding = encoding_of(noise_scan())
    assembler = Assembler(encoding, Capacity(slice_bytes=4096))
    for _ in range(20):
        noise = ismrmrd.Acquisition.from_array(np.ones((2, 32), np.complex64))
        noise.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        assembler.add(noise)
    assert assembler.noise is not None
    assert assembler.noise.nbytes == 1024


def test_too_large_is_a_kind_of_bad_data() -> None:
    with pytest.raises(DataError) as refused:
        Assembler(encoding_of(noise_scan()), Capacity(slice_bytes=100))
    assert isinstance(refused.value, TooLargeError)


def test_the_zero_filled_image_takes_one_coil_at_a_time() -> None:
    """A fallback of a large slice must not hold it several times over."""
    kspace = noise_scan(1, coils=32, height=64, width=64).kspace[0]
    wanted = np.sqrt((np.abs(np.fft.ifft2(kspace, norm="ortho")) ** 2).sum(0))
    gc.collect()
    tracemalloc.start()
    try:
        image = zero_filled_magnitude(kspace)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_allclose(image, np.fft.fftshift(wanted), rtol=1e-5)
    assert peak < kspace.nbytes / 2
