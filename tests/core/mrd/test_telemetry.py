"""The log: one JSON object a line, whoever writes it, and nothing that a client said."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from kdmri_edge.mrd.server.telemetry import log_defect, log_event, log_to_stderr


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """The package's logger as it was before."""
    log = logging.getLogger("kdmri_edge")
    before = (log.handlers[:], log.propagate, log.level)
    yield
    log.handlers[:], log.propagate = before[0], before[1]
    log.setLevel(before[2])


def _fail() -> None:
    raise ValueError("Doe, John")


def test_every_line_is_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr()
    log_event("listening", port=9002)
    pipeline = logging.getLogger("kdmri_edge.runtime.pipeline")  # logs a failing network
    try:
        _fail()
    except ValueError as error:
        pipeline.exception("the network failed")
        log_defect(error, session=3)
    pipeline.warning("one of %d", 2)
    text = capsys.readouterr().err
    listening, failed, defect, plain = map(json.loads, text.splitlines())
    assert (listening["event"], listening["port"], listening["level"]) == (
        "listening",
        9002,
        "info",
    )
    assert (failed["event"], failed["error"]) == ("the network failed", "ValueError")
    assert failed["trace"][-1].startswith("_fail (test_telemetry.py:")
    assert (defect["event"], defect["session"]) == ("defect", 3)
    assert defect["trace"] == failed["trace"]
    assert (plain["event"], plain["level"]) == ("one of 2", "warning")
    assert "Doe" not in text


def test_quiet_leaves_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(quiet=True)
    log_event("listening")
    log_event("turned away", logging.WARNING)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "turned away"
