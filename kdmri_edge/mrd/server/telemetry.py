"""What an operator sees: counters and histograms for Prometheus, and one JSON object a log line.

Neither holds patient data: no header, name, comment or text of a client is ever logged.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from traceback import extract_tb
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from kdmri_edge import __version__
from kdmri_edge.mrd.server.pages import Check, serve_pages
from kdmri_edge.runtime.causes import Cause

__all__ = ["Metrics", "log_defect", "log_event", "log_to_stderr"]

_ALL: Final = logging.getLogger("kdmri_edge")
_LOG: Final = logging.getLogger("kdmri_edge.serve")
_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one server.

    Attributes:
        registry: Where they are registered; each server has its own.
        health: Checks the server that counts by them; None until there is one.
    """

    def __init__(self) -> None:
        self.health: Check | None = None
        self.registry = registry = CollectorRegistry()
        self._info = Gauge(
            "kdmri_info", "The bundles that are served, and this package's version",
            ["bundle", "version"], registry=registry,
        )  # fmt: skip
        self.fallbacks = Counter(
            "kdmri_fallbacks", "Images that are not the network's, by the reason",
            ["reason"], registry=registry,
        )  # fmt: skip
        for cause in Cause:
            self.fallbacks.labels(cause)
        self.scope = Counter(
            "kdmri_scope", "Slices that a network reconstructed, by whether they are in its scope",
            ["verdict"], registry=registry,
        )  # fmt: skip
        for verdict in ("inside", "outside", "unknown"):
            self.scope.labels(verdict)
        self.open = Gauge("kdmri_sessions_open", "Scans that are running", registry=registry)
        self.sessions = Counter(
            "kdmri_sessions", "Scans that have ended", ["outcome"], registry=registry
        )
        self.readouts = Counter("kdmri_readouts", "Readouts that arrived", registry=registry)
        self.received = Counter("kdmri_received_bytes", "Bytes that arrived", registry=registry)
        self.images = Counter("kdmri_images", "Images that were sent", ["kind"], registry=registry)
        self.latency = Histogram(
            "kdmri_slice_seconds",
            "From a slice's last line to its image being sent",
            buckets=_SECONDS,
            registry=registry,
        )
        self.recordings = Counter(
            "kdmri_recordings", "Scans that were recorded, that were not, and files that made room",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self._bundles: Counter | None = None
        self._lock = threading.Lock()
        for kind in ("network", "zero-filled"):
            self.images.labels(kind)
        for outcome in ("complete", "failed", "refused"):
            self.sessions.labels(outcome)
        for outcome in ("kept", "failed", "deleted"):
            self.recordings.labels(outcome)

    def bundles(self) -> Counter:
        """Return the counter of images by bundle, which a server of one network has not."""
        with self._lock:
            if self._bundles is None:
                self._bundles = Counter(
                    "kdmri_bundle_images", "Images that were sent, by the bundle that served",
                    ["bundle"], registry=self.registry,
                )  # fmt: skip
            return self._bundles

    def know(self, bundles: Sequence[str]) -> None:
        """Say which bundles are served, in place of those before."""
        self._info.clear()
        for name in bundles:
            self._info.labels(name, __version__).set(1)

    def publish(self, host: str, port: int) -> None:
        """Serve them over HTTP at /metrics, and the health check at /healthz.

        Raises:
            OSError: The port is taken.
        """
        serve_pages(host, port, self.registry, lambda: self.health)


def log_event(event: str, /, level: int = logging.INFO, **fields: object) -> None:
    """Log one event as a JSON object."""
    if _LOG.isEnabledFor(level):
        _LOG.log(level, _line(event, level, fields))


def _line(event: str, level: int, fields: Mapping[str, object]) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    name = logging.getLevelName(level).lower()
    return json.dumps({"time": stamp, "level": name, "event": event, **fields})


def log_defect(error: Exception, **fields: object) -> None:
    """Log where an unexpected exception came from; its message may quote a client, and is not."""
    log_event("defect", logging.ERROR, **_origin(error), **fields)


def _origin(error: BaseException) -> dict[str, object]:
    trace = [
        f"{f.name} ({Path(f.filename).name}:{f.lineno})" for f in extract_tb(error.__traceback__)
    ]
    return {"error": type(error).__name__, "trace": trace}


class _Structured(logging.Formatter):
    """Our own events as they are, what other modules log as events of the same form."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == _LOG.name:
            return record.getMessage()
        raised = record.exc_info[1] if record.exc_info else None
        return _line(record.getMessage(), record.levelno, _origin(raised) if raised else {})


def log_to_stderr(*, quiet: bool = False) -> None:
    """Write the events to standard error; with `quiet` warnings and errors alone."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Structured())
    _ALL.handlers[:] = [handler]
    _ALL.propagate = False
    _ALL.setLevel(logging.WARNING if quiet else logging.INFO)
