"""Servers for the tests, on loopback, at a free port."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdmri_edge.mrd.server.server import Server
from kdmri_edge.mrd.server.settings import ServerSettings
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.pipeline import Outcome, zero_filled_magnitude


class StandIn:
    """A pipeline where the network does not matter: the zero-filled magnitude, negated twice."""

    def reconstruct(self, kspace: np.ndarray, mask: Mask, *_: Any) -> Outcome:
        return Outcome(image=zero_filled_magnitude(kspace))


@contextlib.contextmanager
def running(pipeline: Any, **settings: Any) -> Iterator[Server]:
    defaults = {"port": 0, "idle_s": 5.0, "send_s": 1.0, "linger_s": 1.0}
    server = Server(pipeline, ServerSettings(**{**defaults, **settings}))
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive(), "a session hangs"


@pytest.fixture(scope="session")
def sense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX bundle of a network that combines coils, 32 x 32, of any mask of lines."""
    from kdmri_export.export import export_model
    from kdmri_export.recipe import ExportRecipe
    from tests.export.networks import spec, write_checkpoint

    folder = tmp_path_factory.mktemp("sense")
    samples = np.zeros(32, np.bool_)
    samples[np.r_[0:12, -12:0]] = True
    mask = Mask(samples=samples, name="centre")
    weights = write_checkpoint(folder / "s.safetensors", spec(channels=2, coils=True), mask)
    return export_model(weights, ExportRecipe(target="onnx", mask_input=True), folder / "s").path


@pytest.fixture
def serving() -> Iterator[Callable[..., Server]]:
    with contextlib.ExitStack() as stack:
        yield lambda pipeline=None, **settings: stack.enter_context(
            running(pipeline or StandIn(), **settings)
        )


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Callable[..., list[dict[str, Any]]]:
    """The server's log, parsed."""
    caplog.set_level(logging.INFO, "kdmri_edge.serve")

    def of(name: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait for so many events of a name: the server logs a session after its client left."""
        until = time.monotonic() + 10
        while True:
            parsed = [json.loads(record.message) for record in list(caplog.records)]
            found = [event for event in parsed if event["event"] == name]
            if len(found) >= count or time.monotonic() > until:
                return found
            time.sleep(0.02)

    return of
