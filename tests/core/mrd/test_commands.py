"""`kdmri-edge serve` and `kdmri-edge send`, as a user starts them."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest

from kdmri_edge.errors import StreamError
from kdmri_edge.mrd.client import send_scan
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.hdf5 import read_header, read_readouts, write_scan
from kdmri_edge.mrd.format.header import write_encoding
from kdmri_edge.mrd.format.images import fallback_of
from kdmri_edge.mrd.format.messages import Close, ConfigText, HeaderText, serialise
from kdmri_edge.runtime.bundle import open_bundle
from kdmri_edge.runtime.pipeline import Pipeline
from tests.core.mrd.scans import every_line, noise_scan, phantom_scan

Cli = Callable[..., Any]


@pytest.fixture
def scan(tiny_bundles: dict[str, Path], tmp_path: Path) -> Path:
    """An MRD file of three slices, sampled with the bundle's mask."""
    file = tmp_path / "scan.h5"
    mask = open_bundle(tiny_bundles["magnitude"]).mask
    write_scan(file, phantom_scan(mask, slices=3), oversampling=2)
    return file


def _listening(process: Any) -> int:
    log = []
    while not log or log[-1].get("event") != "listening":
        line = process.stderr.readline()
        assert line, "the server did not start"
        log.append(json.loads(line))
    assert "ONNX Runtime" in log[0]["runs"]
    assert log[-1]["host"] == "127.0.0.1"
    return int(log[-1]["port"])


def _last_events(process: Any) -> list[str]:
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    return [json.loads(line)["event"] for line in rest.splitlines()]


@pytest.fixture
def port(tiny_bundles: dict[str, Path], start: Callable[..., Any]) -> Iterator[int]:
    """A server in a process of its own, ended by SIGTERM."""
    process = start(["kdmri_edge", "serve", tiny_bundles["magnitude"], "--port", 0, "--threads", 1])
    yield _listening(process)
    process.send_signal(signal.SIGTERM)
    assert _last_events(process)[-2:] == ["stopping", "stopped"]


def test_sigterm_waits_for_the_running_scan(tiny_bundles, start: Callable[..., Any]) -> None:
    """With its metrics at another port all the while."""
    mask = open_bundle(tiny_bundles["magnitude"]).mask
    scan = phantom_scan(mask, slices=2)
    metrics = _nobody()
    process = start(["kdmri_edge", "serve", tiny_bundles["magnitude"], "--port", 0,
                     "--threads", 1, "--metrics-port", metrics])  # fmt: skip
    port = _listening(process)
    lines = iter(list(readouts(scan)))

    def in_the_middle() -> Iterator[Any]:
        yield from itertools.islice(lines, int(mask.samples.sum()))
        while 'kdmri_images_total{kind="network"} 1.0' not in _page(metrics):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        while json.loads(process.stderr.readline())["event"] != "stopping":
            pass
        yield from lines

    reply = send_scan(write_encoding(encoding_of(scan)), in_the_middle(), port=port)
    assert [fallback_of(image) for image in reply.images] == [None, None]
    assert (reply.closed, reply.texts) == (True, [])
    assert _last_events(process) == ["session", "stopped"]


def test_a_second_sigterm_ends_at_once_and_a_closed_terminal_nothing(
    tiny_bundles, start: Callable[..., Any]
) -> None:
    process = start(["kdmri_edge", "serve", tiny_bundles["magnitude"], "--port", 0])
    port = _listening(process)
    process.send_signal(signal.SIGHUP)
    xml = write_encoding(encoding_of(phantom_scan(open_bundle(tiny_bundles["magnitude"]).mask)))
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(serialise(ConfigText("kdmri-edge")) + serialise(HeaderText(xml)))
        while json.loads(process.stderr.readline())["event"] != "header":
            pass
        process.send_signal(signal.SIGTERM)
        while json.loads(process.stderr.readline())["event"] != "stopping":
            pass
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=5)
    assert process.returncode == -signal.SIGTERM


def _page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        return str(page.read().decode())


def test_send_and_serve(cli: Cli, port: int, scan: Path, tmp_path: Path, tiny_bundles) -> None:
    done = cli("send", scan, "-o", tmp_path / "out.h5", "--port", port)
    assert done.code == 0, done.err
    assert "out.h5: 3 image(s)\n" in done.out
    mask = open_bundle(tiny_bundles["magnitude"]).mask
    pipeline = Pipeline(tiny_bundles["magnitude"], threads=1)
    with ismrmrd.Dataset(str(tmp_path / "out.h5"), mode="r") as dataset:
        assert dataset.number_of_images("image_1") == 3
        for number, kspace in enumerate(phantom_scan(mask, slices=3).kspace):
            image = dataset.read_image("image_1", number)
            assert fallback_of(image) is None
            wanted = np.abs(pipeline.reconstruct(kspace, mask).image)
            np.testing.assert_allclose(image.data[0, 0], wanted, atol=2e-5 * wanted.max())

    # the same process goes on: another mask, as JSON; another configuration; then SIGTERM
    write_scan(tmp_path / "whole.h5", phantom_scan(every_line(32)))
    done = cli("send", tmp_path / "whole.h5", "-o", tmp_path / "o.h5", "--port", port, "--json",
               "--pace", 0.1)  # fmt: skip
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert (result["images"], result["zero_filled"], result["readouts"]) == (2, 2, 64)
    assert "another mask" in result["reasons"][0]
    done = cli("send", scan, "-o", tmp_path / "no.h5", "--port", port, "--config", "other")
    done.check_refusal("ended the scan", "configuration that was asked for is unknown")
    assert not (tmp_path / "no.h5").exists()


def _nobody() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_send_without_a_server(cli: Cli, scan: Path, tmp_path: Path) -> None:
    done = cli("send", scan, "-o", tmp_path / "o.h5", "--port", _nobody())
    done.check_refusal("No server answers at 127.0.0.1")
    assert not (tmp_path / "o.h5").exists()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"no"), "cannot be read as HDF5"),
    ],
)
def test_send_of_what_is_no_scan(cli: Cli, tmp_path: Path, make, said: str) -> None:
    make(tmp_path / "a.h5")
    cli("send", tmp_path / "a.h5", "-o", tmp_path / "o.h5").check_refusal(said)


def test_send_does_not_replace_its_input(cli: Cli, scan: Path) -> None:
    cli("send", scan, "-o", scan).check_refusal("is the input")


def test_a_server_that_falls_silent(cli: Cli, scan: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        held = []
        threading.Thread(target=lambda: held.append(mute.accept()), daemon=True).start()
        done = cli("send", scan, "-o", tmp_path / "o.h5", "--port", mute.getsockname()[1],
                   "--timeout", 0.3)  # fmt: skip
        for connection, _ in held:
            connection.close()
    done.check_refusal("fell silent")


def test_images_that_came_before_the_server_went_away_are_kept(
    cli: Cli, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdmri_edge.mrd import client

    image = ismrmrd.Image.from_array(np.ones((8, 8), np.float32))

    def half(*_: object, **__: object) -> None:
        trouble = StreamError("The server fell silent.", "Look at its log.")
        raise client.BrokenReplyError(trouble, client.Reply(images=[image]))

    monkeypatch.setattr(client, "send_scan", half)
    done = cli("send", scan, "-o", tmp_path / "o.h5")
    done.check_refusal("fell silent", "holds the 1 image(s) that came")
    assert (tmp_path / "o.h5").is_file()


def test_send_finds_out_first_where_it_cannot_write(cli: Cli, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = cli("send", scan, "-o", tmp_path / "file" / "o.h5", "--port", _nobody())
    done.check_refusal("cannot be written")


def test_a_server_that_ends_without_close_has_not_ended_the_scan(
    cli: Cli, scan: Path, tmp_path: Path
) -> None:
    """As one that is killed between two images: what it sent is whole, and not all."""
    image = serialise(ismrmrd.Image.from_array(np.ones((8, 8), np.float32)))
    with socket.create_server(("127.0.0.1", 0)) as dying:

        def serve() -> None:
            connection, _ = dying.accept()
            with connection:
                while b"".join(connection.recv(1 << 16) for _ in range(1)):
                    break
                connection.sendall(image)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass

        threading.Thread(target=serve, daemon=True).start()
        done = cli("send", scan, "-o", tmp_path / "o.h5", "--port", dying.getsockname()[1])
    done.check_refusal("before it sent CLOSE", "holds the 1 image(s) that came")
    assert (tmp_path / "o.h5").is_file()


def test_a_server_may_be_silent_while_readouts_are_sent(scan: Path) -> None:
    """Nothing is owed before the first slice is complete."""
    served: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as patient:

        def serve() -> None:
            connection, _ = patient.accept()
            with connection:
                while data := connection.recv(1 << 16):
                    served.append(len(data))
                    if data.endswith(serialise(Close())):
                        break
                connection.sendall(serialise(Close()))

        threading.Thread(target=serve, daemon=True).start()
        lines = list(read_readouts(scan))
        reply = send_scan(read_header(scan), lines, port=patient.getsockname()[1],
                          pace_s=1.2 / len(lines), timeout_s=0.4)  # fmt: skip
    assert reply.closed
    assert served


def test_send_with_a_server_that_hangs_up(cli: Cli, scan: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as rude:

        def hang_up() -> None:
            rude.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        done = cli("send", scan, "-o", tmp_path / "o.h5", "--port", rude.getsockname()[1])
    assert done.code == 1
    assert "Traceback" not in done.err


def test_serve_refusals(cli: Cli, tmp_path: Path, tiny_bundles: dict[str, Path]) -> None:
    cli("serve", tmp_path / "none").check_refusal("does not exist")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = cli("serve", tiny_bundles["magnitude"], "--port", taken.getsockname()[1])
    done.check_refusal("cannot be listened at", "Choose another --port")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = cli("serve", tiny_bundles["magnitude"], "--port", 0,
                   "--metrics-port", taken.getsockname()[1])  # fmt: skip
    done.check_refusal("Metrics cannot be served at", "Choose another --metrics-port")


def test_read_by_run(cli: Cli, tiny_bundles: dict[str, Path], tmp_path: Path) -> None:
    """One fully sampled coil is a volume like any other measured one."""
    write_scan(tmp_path / "one.h5", phantom_scan(every_line(32), coils=1))
    done = cli("run", tiny_bundles["magnitude"], tmp_path / "one.h5", "-o", tmp_path / "o.npy",
               "--undersample", "--threads", 1)  # fmt: skip
    assert done.code == 0, done.err
    write_scan(tmp_path / "many.h5", noise_scan(coils=3))
    done = cli("run", tiny_bundles["magnitude"], tmp_path / "many.h5", "-o", tmp_path / "o.npy")
    done.check_refusal("is 8 x 8, the network takes 32 x 32")
