"""The server with good clients: every image, at once, flagged where it is not the network's."""

from __future__ import annotations

import contextlib
import re
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest

from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.data.scan import Scan
from kdmri_edge.errors import BackendError
from kdmri_edge.mrd.client import Reply, send_scan
from kdmri_edge.mrd.format.assembler import Slice
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.header import read_encoding, write_encoding
from kdmri_edge.mrd.format.images import BEYOND, INTERPOLATED, fallback_of
from kdmri_edge.mrd.format.messages import Close, ConfigText, HeaderText, Text, serialise
from kdmri_edge.mrd.format.parser import Parser
from kdmri_edge.mrd.server.send_queue import SendQueue
from kdmri_edge.mrd.server.server import Server
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.interpolation import interpolated
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.redraw import redrawn
from kdmri_edge.runtime.backends.onnxruntime import OnnxRuntimeSession
from kdmri_edge.runtime.pipeline import Outcome, Pipeline, zero_filled_magnitude
from tests.core.mrd.conftest import StandIn
from tests.core.mrd.scans import every_line, noise_scan, phantom_scan
from tests.waiting import until


def header(scan, oversampling: int = 1) -> str:
    return write_encoding(encoding_of(scan, oversampling), slices=len(scan.kspace))


def sent(server: Server, scan, oversampling: int = 2, **more: object) -> Reply:
    return send_scan(
        header(scan, oversampling), readouts(scan, oversampling), port=server.port,
        timeout_s=10, **more,
    )  # fmt: skip


def test_the_stream_gives_what_the_pipeline_gives(serving, tiny_bundles, events) -> None:
    pipeline = Pipeline(tiny_bundles["magnitude"], threads=1)
    mask = pipeline.reads.mask
    scan = phantom_scan(mask, slices=4)
    server = serving(pipeline)
    reply = sent(server, scan)
    assert reply.texts == []
    assert reply.closed
    assert len(reply.images) == 4
    assert len(list(reply.waits())) == 4
    for number, image in enumerate(reply.images):
        assert fallback_of(image) is None
        assert image.slice == number
        assert (image.image_type, image.image_series_index) == (ismrmrd.IMTYPE_MAGNITUDE, 1)
        wanted = np.abs(pipeline.reconstruct(scan.kspace[number], mask).image)
        got = image.data[0, 0]
        np.testing.assert_allclose(got, wanted, atol=2e-5 * wanted.max())
        # geometry: LPS+, the slice's centre on pixel (16, 16)
        place = scan.affine @ [number, 16, 16, 1]
        np.testing.assert_allclose(image.position, place[:3] * [-1, -1, 1], atol=1e-3)
        np.testing.assert_allclose(image.field_of_view, (48, 64, 4))
        np.testing.assert_allclose(image.phase_dir, (0, 1, 0))  # RAS (0, -2, 0) turned
    (session,) = events("session")
    assert session["outcome"] == "complete"
    assert session["images"] == 4


def test_one_server_reconstructs_every_matrix(serving, tiny_bundles) -> None:
    pipeline = Pipeline(tiny_bundles["any-matrix"], threads=1)
    server = serving(pipeline)
    for height, width in ((24, 24), (32, 32), (48, 40), (24, 24)):
        mask = redrawn(pipeline.reads.mask, height, width)
        whole = phantom_volume(2, slices=1, matrix=48)
        image = to_matrix(whole, (height, width)).image
        kspace = (image_to_kspace(image) * mask.grid).astype(np.complex64)
        affine = np.diag((4.0, 2.0, 2.0, 1.0))
        scan = Scan(kspace=kspace[:, None], mask=mask, name="s", subject="s", affine=affine)
        reply = sent(server, scan)
        (sent_back,) = reply.images
        assert fallback_of(sent_back) is None
        given = pipeline.prepare(scan)
        wanted = np.abs(pipeline.images(given)[0])
        got = sent_back.data[0, 0]
        assert got.shape == (height, width)
        np.testing.assert_allclose(got, wanted, atol=2e-5 * wanted.max())
        # what the network was not trained for is said beside the image
        assert sent_back.meta.get(BEYOND, "") == " ".join(given.beyond)
        assert reply.texts == [f"WRN {text}" for text in given.beyond]
        assert bool(given.beyond) == ((height, width) != (32, 32))


def test_slices_go_back_while_the_scan_runs(serving) -> None:
    """The first image is there before the second slice has been sent."""
    scan = noise_scan(2)
    server = serving()
    lines = list(readouts(scan))
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(serialise(ConfigText("kdmri-edge")) + serialise(HeaderText(header(scan))))
        parser = Parser()
        for half in (lines[:8], lines[8:]):
            client.sendall(b"".join(map(serialise, half)))
            images = []
            while not images:
                parser.feed(client.recv(1 << 16))
                images = list(parser.messages())
            assert len(images) == 1
        client.sendall(serialise(Close()))
        assert client.recv(2) == serialise(Close())


def test_several_scans_at_once(serving) -> None:
    server = serving(in_flight=1)
    scans = [noise_scan(3, seed=seed) for seed in range(5)]
    replies: dict[int, Reply] = {}
    threads = [
        threading.Thread(target=lambda n=n: replies.update({n: sent(server, scans[n])}))
        for n in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, reply in replies.items():
        for image, kspace in zip(reply.images, scans[number].kspace, strict=True):
            np.testing.assert_allclose(image.data[0, 0], zero_filled_magnitude(kspace), rtol=1e-4)


def test_int16_has_a_scale_for_each_image(serving) -> None:
    """A first slice above the head is almost empty: it says nothing about the others."""
    scan = noise_scan(3)
    scan.kspace[0] *= 0.01
    scan.kspace[2] *= 40
    reply = sent(serving(format="int16"), scan)
    assert not reply.texts
    for image, kspace in zip(reply.images, scan.kspace, strict=True):
        assert image.data.dtype == np.int16
        assert image.data.max() == 32767
        back = image.data[0, 0] * float(image.meta["RescaleSlope"])
        wanted = zero_filled_magnitude(kspace)
        np.testing.assert_allclose(back, wanted, atol=2e-5 * wanted.max())


def test_parameters_as_fire_sends_them(serving) -> None:
    scan = noise_scan(1)
    server = serving()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        parts = [ConfigText('{"parameters": {"config": "openrecon"}}'), HeaderText(header(scan)),
                 Text('{"parameters": {"customconfig": "", "format": "int16", "other": 1}}'),
                 *readouts(scan), Close()]  # fmt: skip
        client.sendall(b"".join(map(serialise, parts)))
        text, image, _ = received(client)
    assert text.text == "INF Parameters that mean nothing here: other."
    assert image.data.dtype == np.int16


def test_parameters_as_xml(serving, events) -> None:
    """As older versions of the FIRE interface send them, in place of a configuration's name."""
    scan = noise_scan(1)
    config = (
        "<configuration><parameters><config>kdmri-edge</config><format>int16</format>"
        "<denoise>3</denoise></parameters></configuration>"
    )
    with socket.create_connection(("127.0.0.1", serving().port), timeout=5) as client:
        parts = [ConfigText(config), HeaderText(header(scan)), *readouts(scan), Close()]
        client.sendall(b"".join(map(serialise, parts)))
        text, image, _ = received(client)
    assert text.text == "INF Parameters that mean nothing here: denoise."
    assert image.data.dtype == np.int16
    assert events("unknown parameters")[0]["names"] == ["denoise"]


def received(client: socket.socket) -> list:
    parser, found = Parser(), []
    while data := client.recv(1 << 16):
        parser.feed(data)
        found += list(parser.messages())
    return found


def test_phase_oversampling_is_cut_off(serving) -> None:
    scan = noise_scan(1, height=8, width=6)
    xml = header(scan).replace("<y>8</y>", "<y>6</y>")
    xml = xml.replace("<y>6</y>", "<y>8</y>", 1)  # the encoded matrix
    xml = xml.replace("<y>8.0</y>", "<y>6.0</y>").replace("<y>6.0</y>", "<y>8.0</y>", 1)
    reply = send_scan(xml, readouts(scan), port=serving().port)
    (image,) = reply.images
    wanted = zero_filled_magnitude(scan.kspace[0])[1:7]
    np.testing.assert_allclose(image.data[0, 0], wanted, rtol=1e-5)
    np.testing.assert_allclose(image.field_of_view, (6, 6, 1))


def asking(xml: str, space: str = "reconSpace", **sizes: object) -> str:
    """A header with other numbers in a space: x=12, or fov_x=3.5."""
    before, _, after = xml.partition(f"<{space}>")
    inner, _, rest = after.partition(f"</{space}>")
    for name, value in sizes.items():
        part = "fieldOfView_mm" if name.startswith("fov_") else "matrixSize"
        axis, start = name[-1], inner.index(f"<{part}>")
        inner = inner[:start] + re.sub(
            f"<{axis}>[^<]*</{axis}>", f"<{axis}>{value}</{axis}>", inner[start:], count=1
        )
    return f"{before}<{space}>{inner}</{space}>{rest}"


def test_images_are_interpolated_as_the_header_asks(serving, events) -> None:
    """Without changing what was measured: the fine image's k-space is the encoded one's."""
    scan = noise_scan(1, height=8, width=6)
    fine = asking(header(scan), x=12, y=16)
    server = serving()
    reply = send_scan(fine, readouts(scan), port=server.port)
    assert reply.texts == []
    (image,) = reply.images
    assert image.data.shape[-2:] == (16, 12)
    np.testing.assert_allclose(image.field_of_view, (6, 8, 1))
    assert image.meta[INTERPOLATED] == "8 x 6"
    plain = zero_filled_magnitude(scan.kspace[0])
    wanted = interpolated(plain, (16, 12))
    np.testing.assert_allclose(image.data[0, 0], wanted, rtol=1e-4, atol=1e-5 * plain.max())
    (again,) = sent(server, scan).images
    assert INTERPOLATED not in again.meta
    np.testing.assert_allclose(again.data[0, 0], plain, rtol=1e-4)
    assert "finer_matrix_ignored" not in events("header")[0]


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [({"interpolate": False}, {"x": 12}), ({}, {"x": 6 * 4 + 1}), ({}, {"x": 10**9, "y": 10**9})],
)
def test_a_matrix_that_is_not_followed_is_named(serving, events, settings, sizes) -> None:
    """Whoever asked for it is told."""
    scan = noise_scan(1, height=8, width=6)
    server = serving(**settings)
    reply = send_scan(asking(header(scan), **sizes), readouts(scan), port=server.port)
    asked = f"{sizes.get('y', 8)} x {sizes['x']}"
    assert reply.texts == [
        f"WRN The header asks for images of {asked}, and 8 x 6 are encoded: images are not"
        " interpolated."
    ]
    assert reply.images[0].data.shape[-2:] == (8, 6)
    assert "finer_matrix_ignored" in events("header")[0]


@pytest.mark.parametrize(
    ("sizes", "finer"),
    [
        ({"x": 12, "fov_x": 12.0}, None),  # twice the field of view: pixels of the same size
        ({"x": 24, "fov_x": 12.0}, (8, 12)),
        ({"x": 3, "fov_x": 3.0}, None),  # half the field of view: cropped
        ({"x": 6, "fov_x": 3.0}, (8, 6)),  # cropped to 3, and interpolated
        ({"x": 4}, None),
    ],
)
def test_fields_of_view_tell_what_is_finer(sizes: dict, finer: tuple | None) -> None:
    found = read_encoding(asking(header(noise_scan(1, height=8, width=6)), **sizes))
    assert found.finer == finer


def test_a_matrix_that_cannot_be_read_is_no_wish() -> None:
    xml = header(noise_scan(1, height=8, width=6))
    encoded, recon = xml.split("<reconSpace>")
    odd = recon.replace("<x>6</x>", "<x>fine</x>", 1)
    assert read_encoding(f"{encoded}<reconSpace>{odd}").finer is None


def test_each_contrast_is_a_series(serving) -> None:
    scan = noise_scan(2)
    lines = []
    for echo in (0, 1):
        for line in readouts(scan):
            line.idx.contrast = echo
            lines.append(line)
    reply = send_scan(header(scan), lines, port=serving().port)
    series = [(i.contrast, i.slice, i.image_series_index) for i in reply.images]
    assert series == [(0, 0, 1), (0, 1, 1), (1, 0, 2), (1, 1, 2)]


@pytest.mark.parametrize("form", ["float", "int16"])
def test_hosts_are_told_that_an_image_is_derived(serving, form: str) -> None:
    """By the names that scanners' interfaces and converters to DICOM read."""

    class Second(StandIn):
        calls = 0

        def reconstruct(self, kspace: np.ndarray, mask: Mask, *_: Any) -> Outcome:
            self.calls += 1
            image = zero_filled_magnitude(kspace)
            if self.calls == 2:
                return Outcome(image=image, fallback="Too noisy.")
            return Outcome(image=image, beyond=("The matrix is new.",))

    first, second = sent(serving(Second(), format=form), noise_scan(2)).images
    for image, kind, said in ((first, "KDMRI", "neural network"), (second, "ZERO_FILLED", "zero-")):
        meta = image.meta
        values = meta["ImageType"].split("\\")
        assert values == ["DERIVED", "PRIMARY", "M", kind]
        assert all(re.fullmatch("[A-Z0-9_ ]{1,16}", value) for value in values)  # DICOM's CS
        assert meta["ImageTypeValue4"] == kind
        assert said in meta["ImageComment"] == meta["ImageComments"]
        assert meta["SequenceDescriptionAdditional"] == "KDMRI"  # of one series one name
        assert meta["Keep_image_geometry"] == "1"
        centre, width = float(meta["WindowCenter"]), float(meta["WindowWidth"])
        assert centre == pytest.approx(width / 2, rel=1e-4)
        assert np.median(image.data) < width <= image.data.max()
    assert "The matrix is new." in first.meta["ImageComment"]
    assert "Too noisy." in second.meta["ImageComment"]


def test_a_blank_image_has_a_window(serving) -> None:
    scan = noise_scan(1)
    scan.kspace[:] = 0
    (image,) = sent(serving(format="int16"), scan).images
    assert (image.meta["WindowCenter"], image.meta["WindowWidth"]) == ("0.5", "1")


class Slow(StandIn):
    def reconstruct(self, kspace: np.ndarray, mask: Mask, *_: Any) -> Outcome:
        time.sleep(0.5)
        return super().reconstruct(kspace, mask)


class Failing(StandIn):
    def reconstruct(self, kspace: np.ndarray, mask: Mask, *_: Any) -> Outcome:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("pipeline", "said"), [(Slow(), "not ready within 0.1 s"), (Failing(), "ZeroDivisionError")]
)
def test_there_is_always_an_image(serving, pipeline, said: str) -> None:
    scan = noise_scan(2)
    reply = sent(serving(pipeline, deadline_s=0.1), scan)
    assert len(reply.images) == 2
    for image, kspace in zip(reply.images, scan.kspace, strict=True):
        assert said in (fallback_of(image) or "")
        assert said in image.meta["ImageComment"]
        np.testing.assert_allclose(image.data[0, 0], zero_filled_magnitude(kspace), rtol=1e-4)
    assert [text for text in reply.texts if text.startswith("WRN") and said in text]
    assert reply.errors == []


def test_the_deadline_counts_from_the_last_line(serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice that waits until others have been sent is late all the same."""
    asked: list[float] = []
    came: list[float] = []
    reserve, put_slice = SendQueue.reserve, SendQueue.put_slice

    def slowly(queue: SendQueue) -> None:
        asked.append(time.monotonic())
        time.sleep(0.1)
        reserve(queue)

    def noted(queue: SendQueue, part: Slice, future: Any, maker: Any, at: float, *by: Any) -> None:
        came.append(at)
        put_slice(queue, part, future, maker, at, *by)

    monkeypatch.setattr(SendQueue, "reserve", slowly)
    monkeypatch.setattr(SendQueue, "put_slice", noted)
    assert len(sent(serving(), noise_scan(2)).images) == 2
    assert len(came) == 2
    assert all(at <= begun for at, begun in zip(came, asked, strict=True))


@pytest.mark.parametrize("kind", ["mask", "matrix", "nan"])
def test_outside_the_bundles_scope(serving, tiny_bundles, kind: str) -> None:
    pipeline = Pipeline(tiny_bundles["magnitude"], threads=1)
    scan = {
        "mask": lambda: phantom_scan(every_line(32)),
        "matrix": lambda: phantom_scan(every_line(16), matrix=16),
        "nan": lambda: phantom_scan(pipeline.reads.mask),
    }[kind]()
    if kind == "nan":
        scan.kspace[0, 0, 0, 0] = np.nan
    with np.errstate(invalid="ignore"):
        reply = sent(serving(pipeline), scan, oversampling=1)
    assert len(reply.images) == 2
    said = {"mask": "another mask", "matrix": "matrix is 16 x 16", "nan": "NaN"}[kind]
    assert said in (fallback_of(reply.images[0]) or "")
    assert (fallback_of(reply.images[1]) is None) == (kind == "nan")
    assert all(np.isfinite(image.data).all() for image in reply.images)
    assert len([text for text in reply.texts if said in text]) == 1  # told once, not per slice


def test_lines_that_are_not_of_the_image_are_counted(serving, events) -> None:
    """Phase correction is not done, and whoever reads the log can see that there was some."""
    scan = noise_scan(1)
    echo = ismrmrd.Acquisition.from_array(np.ones((5, 3), np.complex64))
    echo.set_flag(ismrmrd.ACQ_IS_PHASECORR_DATA)
    reply = send_scan(header(scan), [echo, echo, *readouts(scan)], port=serving().port)
    (image,) = reply.images
    np.testing.assert_allclose(image.data[0, 0], zero_filled_magnitude(scan.kspace[0]), rtol=1e-4)
    (session,) = events("session")
    assert (session["readouts"], session["ignored"]) == (10, 2)


def test_waveforms_pass_and_images_are_not_taken(serving) -> None:
    scan = noise_scan(1)
    waveform = ismrmrd.Waveform.from_array(np.zeros((2, 5), np.uint32))
    picture = ismrmrd.Image.from_array(np.zeros((4, 4), np.float32))
    reply = send_scan(header(scan), [waveform, picture, picture, *readouts(scan)],
                      port=serving().port)  # fmt: skip
    assert len(reply.images) == 1
    assert reply.texts == ["WRN Images are not taken; k-space is."]


def test_a_scan_at_the_end_of_its_life(serving, events) -> None:
    """Stopping waits for the scan that runs, and takes no other."""
    scan = noise_scan(1)
    server = serving()
    lines = list(readouts(scan))
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(serialise(ConfigText("kdmri-edge")) + serialise(HeaderText(header(scan))))
        until(server.metrics.open._value.get)
        server.stop()
        assert events("stopping")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=1)
        client.sendall(b"".join(map(serialise, [*lines, Close()])))
        found = received(client)
    assert [type(message).__name__ for message in found] == ["Image", "Close"]


def begun(client: socket.socket) -> None:
    """Send a configuration and a header, and wait until the scan has its slot."""
    xml = write_encoding(encoding_of(noise_scan(1)))
    client.sendall(serialise(ConfigText("kdmri-edge")) + serialise(HeaderText(xml)))


def test_too_many_scans_are_told_so(serving, events) -> None:
    server = serving(sessions=1)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as first:
        begun(first)
        events("header")
        reply = sent(server, noise_scan(1))
        assert reply.errors == ["The server is busy with other scans. Try again later."]
        first.sendall(serialise(Close()))
        received(first)
    ended = {event["session"]: event["outcome"] for event in events("session", 2)}
    assert ended == {1: "failed", 2: "refused"}  # the first one sent no line
    assert len(sent(server, noise_scan(1)).images) == 1


def test_clients_that_say_nothing_are_in_nobodys_way(serving, events) -> None:
    server = serving(sessions=1, waiting=4, linger_s=0.2)
    with contextlib.ExitStack() as clients:
        silent = [
            clients.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            for _ in range(12)
        ]
        assert len(sent(server, noise_scan(2)).images) == 2
        (text, closed) = received(silent[0])  # the oldest made room
        assert text.text == "ERR Too many clients have begun no scan. Try again later."
        assert isinstance(closed, Close)


def test_a_client_that_begins_nothing_is_sent_away(serving, events) -> None:
    server = serving(opening_s=0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(serialise(ConfigText("kdmri-edge")))
        (text, closed) = received(client)
    assert text.text.startswith("ERR No scan was begun within 0.3 s.")
    assert isinstance(closed, Close)
    assert events("session")[0]["outcome"] == "refused"


def test_a_message_that_trickles_in_is_given_up(serving, events) -> None:
    server = serving(opening_s=0.4, slowest=1000, idle_s=60)
    scan = noise_scan(1)
    line = serialise(next(iter(readouts(scan))))
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        begun(client)
        with contextlib.suppress(OSError):  # the server has closed
            for number in range(40):
                client.sendall(line[number : number + 1])
                time.sleep(0.05)
    reason = events("session")[0]["reason"]
    assert "less than 1000 bytes per second" in reason


def test_a_pause_between_messages_is_no_trickle(serving, events) -> None:
    server = serving(opening_s=0.3, slowest=1e9, idle_s=60)
    scan = noise_scan(2)
    lines = list(readouts(scan))

    def paused() -> Iterator[Any]:
        yield lines[0]
        time.sleep(0.5)
        yield from lines[1:]

    xml = write_encoding(encoding_of(scan))
    assert len(send_scan(xml, paused(), port=server.port).images) == 2


def test_a_stopping_server_waits_for_no_client_without_a_header(serving, events) -> None:
    server = serving(linger_s=0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        until(server.metrics.open._value.get)
        server.stop()
        texts = [message.text for message in received(client) if isinstance(message, Text)]
    assert texts == ["ERR The server is stopping. Try again later."]
    assert events("stopped")


def test_a_crowd_is_turned_away_and_logged(serving, events, monkeypatch) -> None:
    """Where even those that are being told why are too many."""
    monkeypatch.setattr("kdmri_edge.mrd.server.server._CROWD", 0)
    server = serving(sessions=1)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as first:
        begun(first)
        events("header")
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as second:
            assert received(second) == []
        assert [event["level"] for event in events("turned away")] == ["warning"]
        first.sendall(serialise(Close()))
        received(first)
    assert server.metrics.sessions.labels("refused")._value.get() == 1


def test_a_probe_of_a_busy_server_is_no_refused_scan(serving, events) -> None:
    server = serving(sessions=1)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as first:
        begun(first)
        events("header")
        socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
        assert "busy" in sent(server, noise_scan(1)).errors[0]
        first.sendall(serialise(Close()))
        received(first)
    refused = server.metrics.sessions.labels("refused")._value
    until(refused.get)  # it is counted after the answer
    assert refused.get() == 1


def test_no_thread_for_a_scan_ends_no_other(serving, events, monkeypatch) -> None:
    server = serving(sessions=2)
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == "scan":
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as turned_away:
        assert received(turned_away) == []
    monkeypatch.setattr(threading.Thread, "start", start)
    assert [event["level"] for event in events("turned away")] == ["error"]
    assert len(sent(server, noise_scan(2)).images) == 2


def test_metrics(serving) -> None:
    server = serving()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server.metrics.publish("127.0.0.1", port)
    sent(server, noise_scan(3))
    until(lambda: not server.metrics.open._value.get())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        text = page.read().decode()
    assert 'kdmri_images_total{kind="network"} 3.0' in text
    assert 'kdmri_sessions_total{outcome="complete"} 1.0' in text
    assert "kdmri_slice_seconds_count 3.0" in text
    assert "kdmri_readouts_total 24.0" in text


def test_the_log_holds_no_patient_data(serving, events, caplog) -> None:
    scan = noise_scan(1)
    xml = header(scan).replace(
        "<experimentalConditions>",
        "<subjectInformation><patientName>Doe</patientName></subjectInformation>"
        "<experimentalConditions>",
    )
    assert "Doe" in xml
    server = serving()
    send_scan(xml, readouts(scan), port=server.port)
    send_scan(xml, readouts(scan), port=server.port, config="Doe")
    assert len(events("session", 2)) == 2
    assert "Doe" not in caplog.text


def test_an_image_comes_with_geometry_of_its_own_bundle_path(tiny_bundles: dict[str, Path]) -> None:
    """A pipeline warms up without a scan."""
    Pipeline(tiny_bundles["complex"], threads=1).warm_up()


def test_a_root_that_is_read_only(
    tiny_bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a folder for temporary files networks run; int8, which needs one, says so."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    Pipeline(tiny_bundles["magnitude"], threads=1).warm_up()
    with pytest.raises(BackendError, match="no folder for temporary files") as refused:
        OnnxRuntimeSession(tiny_bundles["magnitude"] / "model.onnx", precision="int8")
    assert "TMPDIR" in refused.value.remedy
