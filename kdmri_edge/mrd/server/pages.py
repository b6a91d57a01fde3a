"""The two pages for an operator's tools: /metrics for Prometheus, and /healthz.

A visitor gets ten seconds, and few are served at once: nobody keeps this server's threads.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any, Final, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

__all__ = ["Check", "serve_pages"]

_VISITORS: Final = 16
_VISIT_S: Final = 10.0  # to ask; the answer may take longer


class _Report(Protocol):
    @property
    def healthy(self) -> bool: ...
    @property
    def status(self) -> str: ...
    @property
    def facts(self) -> dict[str, object]: ...


Check = Callable[[], _Report]
"""Checks a server."""


class _Handler(WSGIRequestHandler):
    timeout = _VISIT_S

    def handle(self) -> None:
        """Serve one request, whose lines have to come in time."""
        hasty = threading.Timer(_VISIT_S, self._hang_up)
        hasty.daemon = True
        self._hasty = hasty
        hasty.start()
        try:
            with contextlib.suppress(OSError, ValueError):  # the visitor has gone, or babbles
                super().handle()
        finally:
            hasty.cancel()

    def get_environ(self) -> dict[str, Any]:
        """Take the request, which has come as a whole."""
        self._hasty.cancel()
        return super().get_environ()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: tools ask every few seconds."""

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, *given: Any, **more: Any) -> None:
        self._visitors = threading.Semaphore(_VISITORS)
        super().__init__(*given, **more)

    def server_bind(self) -> None:
        """Listen, without asking a name server for this machine's name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a visitor, unless there are too many."""
        if not self._visitors.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._visitors.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a visitor in a thread of its own."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._visitors.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a visitor that goes away."""


class _Server6(_Server):
    address_family = socket.AF_INET6


def serve_pages(
    host: str, port: int, registry: CollectorRegistry, check: Callable[[], Check | None]
) -> None:
    """Serve /metrics and /healthz in threads of their own.

    Args:
        host: Address to listen at.
        port: TCP port.
        registry: Of the metrics.
        check: Returns what checks the server; None while it starts.

    Raises:
        OSError: The port is taken.
    """
    metrics = make_wsgi_app(registry)

    def pages(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != "/healthz":
            return metrics(environ, start)  # type: ignore[no-any-return]
        checked = check()
        if checked is None:
            healthy = False
            said: dict[str, object] = {"status": "starting"}
        else:
            report = checked()
            healthy, said = report.healthy, {"status": report.status, **report.facts}
        status = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
        body = json.dumps(said).encode() + b"\n"
        start(
            f"{status.value} {status.phrase}",
            [("Content-Type", "application/json"), ("Content-Length", str(len(body)))],
        )
        return [body]

    kind = _Server6 if ":" in host else _Server
    server = make_server(host, port, pages, server_class=kind, handler_class=_Handler)
    threading.Thread(target=server.serve_forever, name="pages", daemon=True).start()
