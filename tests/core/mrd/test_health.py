"""The two pages for an operator's tools, and what a health check finds."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdmri_edge.mrd.client import send_scan
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.header import write_encoding
from kdmri_edge.mrd.server import health as module
from kdmri_edge.mrd.server import pages
from kdmri_edge.mrd.server.networks import many_networks
from kdmri_edge.mrd.server.server import Server
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.causes import Cause
from kdmri_edge.runtime.inputs import InputSpec
from kdmri_edge.runtime.pipeline import Outcome, Pipeline, zero_filled_magnitude
from tests.core.mrd.scans import noise_scan
from tests.export.networks import spec


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def page(port: int, name: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}", timeout=20) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def published(server: Server) -> int:
    port = free_port()
    server.metrics.publish("127.0.0.1", port)
    return port


class Reading:
    """What reconstructs, with what it reads, and a fault that begins later."""

    def __init__(self, coils: bool = False) -> None:
        samples = np.zeros(32, np.bool_)
        samples[np.r_[0:8, -8:0, 10]] = True
        self.reads = InputSpec(
            spec=spec(channels=2, coils=coils), mask=Mask(samples=samples, name="m"),
            matrix=(32, 32),
        )  # fmt: skip
        self.shapes: list[tuple[int, ...]] = []
        self.fault: Any = None

    def reconstruct(self, kspace: np.ndarray, mask: Mask, *_: Any) -> Outcome:
        self.shapes.append(kspace.shape)
        assert mask == self.reads.mask
        image = zero_filled_magnitude(kspace)
        return self.fault(image) if self.fault is not None else Outcome(image=image)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRESH_S", 0.0)


@pytest.mark.parametrize(("coils", "shape"), [(False, (1, 32, 32)), (True, (4, 32, 32))])
def test_a_check_reconstructs(serving, coils: bool, shape: tuple[int, ...]) -> None:
    network = Reading(coils)
    server = serving(network)
    status, said = page(published(server), "healthz")
    assert status == 200
    found = json.loads(said)
    assert (found["status"], found["reconstructed"]) == ("ok", True)
    assert network.shapes == [shape]
    # it is no scan, and none of its images was sent
    text = page_of_metrics(server)
    assert 'kdmri_images_total{kind="network"} 0.0' in text
    assert 'kdmri_sessions_total{outcome="complete"} 0.0' in text


def page_of_metrics(server: Server) -> str:
    return page(published(server), "metrics")[1]


def test_an_answer_stands_for_a_while(serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks every second keeps nobody's slices waiting."""
    monkeypatch.setattr(module, "_FRESH_S", 60.0)
    network = Reading()
    server = serving(network)
    port = published(server)
    threads = [threading.Thread(target=page, args=(port, "healthz")) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(network.shapes) == 1


def _raises(image: np.ndarray) -> Outcome:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda image: Outcome(image=image, fallback="No.", cause=Cause.NETWORK), "No."),
        (lambda image: Outcome(image=image * np.nan), "empty"),
        (lambda image: Outcome(image=image * 0), "empty"),
        (lambda image: Outcome(image=image * 1.01), "changed"),
        (_raises, "ZeroDivisionError"),
    ],
)
def test_what_is_wrong_is_found(serving, events, fault: Any, said: str) -> None:
    network = Reading()
    server = serving(network)
    port = published(server)
    assert page(port, "healthz")[0] == 200
    network.fault = fault
    status, text = page(port, "healthz")
    assert status == 503
    assert said in json.loads(text)["status"]
    assert said in events("unhealthy")[0]["status"]
    network.fault = None
    assert page(port, "healthz")[0] == 200


def test_a_busy_server_is_healthy_and_one_that_hangs_is_not(
    serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAIT_S", 0.3)
    network = Reading()
    server = serving(network)
    release = threading.Event()
    slow = server._worker.submit(lambda: release.wait(10))
    assert server.metrics.health is not None
    hanging = server.metrics.health()
    assert (hanging.healthy, "no slice was finished" in hanging.status) == (False, True)
    server._worker.submit(lambda: time.sleep(1.0))
    checks: list[Any] = []
    asking = threading.Thread(target=lambda: checks.append(server.metrics.health()))  # type: ignore[misc]
    asking.start()
    release.set()
    asking.join()
    assert slow.result(5)
    assert (checks[0].healthy, checks[0].status) == (True, "busy")


def test_a_stopping_server_is_not_healthy(serving) -> None:
    server = serving(Reading())
    server.stop()
    assert server.metrics.health is not None
    assert server.metrics.health().status == "stopping"


def test_a_visitor_that_says_nothing_is_sent_away(serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_VISIT_S", 0.2)
    monkeypatch.setattr(pages._Handler, "timeout", 0.2)
    monkeypatch.setattr(pages, "_VISITORS", 2)
    port = published(serving())
    with socket.create_connection(("127.0.0.1", port), timeout=5) as silent:
        silent.sendall(b"GET /heal")
        assert silent.recv(10) == b""
    held = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(3)]
    assert held[2].recv(10) == b""  # more than are served at once
    for one in held:
        one.close()
    time.sleep(0.3)
    assert page(port, "healthz")[0] == 200


def test_reasons_are_counted_and_logged(serving, events) -> None:
    network = Reading()
    network.fault = lambda image: Outcome(image=image, fallback="Too odd.", cause=Cause.MASK)
    server = serving(network)
    scan = noise_scan(3, height=32, width=32, mask=network.reads.mask)
    xml = write_encoding(encoding_of(scan))
    send_scan(xml, readouts(scan), port=server.port)
    (session,) = events("session")
    assert (session["zero_filled"], session["causes"]) == (3, {"mask": 3})
    (event,) = events("fallback")  # once for a scan
    assert (event["cause"], event["reason"], event["level"]) == ("mask", "Too odd.", "warning")
    text = page_of_metrics(server)
    assert 'kdmri_fallbacks_total{reason="mask"} 3.0' in text
    counted = [line for line in text.splitlines() if line.startswith("kdmri_fallbacks_total")]
    assert len(counted) == len(Cause)


def test_every_bundle_is_named_and_the_last_one_tried(
    serving, tiny_bundles, tmp_path: Path
) -> None:
    for name in ("complex", "magnitude"):
        (tmp_path / name).symlink_to(tiny_bundles[name])
    networks = many_networks([tmp_path], threads=1)
    server = serving(networks)
    text = page_of_metrics(server)
    assert 'kdmri_info{bundle="complex",version=' in text
    assert 'kdmri_info{bundle="magnitude",version=' in text
    assert server.metrics.health is not None
    assert server.metrics.health().facts["bundle"] == "complex"
    scan = noise_scan(1, coils=1, height=32, width=32, mask=networks.candidates[1].reads.mask)
    (tmp_path / "complex").unlink()
    networks.reload()
    server.metrics.know(networks.names)
    assert 'bundle="complex"' not in page_of_metrics(server)
    send_scan(write_encoding(encoding_of(scan)), readouts(scan), port=server.port)
    report = server.metrics.health()
    assert (report.status, report.facts["bundle"]) == ("ok", "magnitude")


def test_one_network_is_named(tiny_bundles) -> None:
    server = Server(Pipeline(tiny_bundles["magnitude"], threads=1), name="brain-4x")
    server._socket.close()
    assert 'kdmri_info{bundle="brain-4x"' in page_of_metrics(server)
    assert server.metrics.health is not None
    assert server.metrics.health().status == "ok"
