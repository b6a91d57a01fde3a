"""A training in a process of its own: how it starts, fails and ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from kdmri_bench.isolation import ended_by
from kdmri_edge.console import get_console
from kdmri_edge.distill.engine import Engine
from kdmri_edge.distill.run import distill
from kdmri_edge.distill.settings import Settings
from kdmri_edge.errors import BenchError, KdmriError
from kdmri_edge.files import writing

__all__ = ["TrainingProcess", "interrupts_held"]

# A process that has a CUDA context cannot be forked.
_CONTEXT: Final = get_context("spawn")


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while a process is started, and from that process for good.

    A terminal sends it to all of them. The children would fill the screen with tracebacks; their
    parent ends them, for which it has to know them first.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # else the first start does that, and lets signals in again
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


class TrainingProcess:
    """A running call of `distill`; it ends with this process at the latest.

    What it and its libraries print goes to OUT.log beside the run folder, which stays only where
    the process ends without saying why.

    Args:
        settings: The request.
        out: The run folder.
        engine: Where to train, one process.

    Raises:
        OutputError: The log cannot be written.
    """

    def __init__(self, settings: Settings, out: Path, engine: Engine) -> None:
        self._log = out.with_name(f"{out.name}.log")
        with writing(self._log):
            self._log.parent.mkdir(parents=True, exist_ok=True)
            self._log.write_bytes(b"")
        self._answer, says = _CONTEXT.Pipe(duplex=False)
        with says:  # only the child's copy stays open, so that its end is seen
            self._process = _CONTEXT.Process(
                target=_train, args=(settings, out, engine, self._log, says), daemon=True
            )
            self._process.start()
        self.sentinel = self._process.sentinel

    def check(self, title: str) -> None:
        """Wait for the end, and raise what the training failed of, if it did.

        Args:
            title: Of the training, for the message.

        Raises:
            KdmriError: The training's own.
            BenchError: The process ended without saying why.
        """
        self._process.join()
        code = self._process.exitcode or 0
        try:
            failure = self._answer.recv()
        except EOFError:
            self._answer.close()
            raise BenchError(
                f"{title} ended with exit code {code}: {ended_by(code, self._log)}",
                f"See {self._log}; if memory ran out, lower --jobs. The same command goes on.",
            ) from None
        self.discard()
        if failure is not None:
            kind, parts = failure
            error = kind.__new__(kind)
            vars(error).update(parts)
            KdmriError.__init__(error, f"{title}: {error.what}", error.remedy)
            raise error

    def kill(self) -> None:
        """End it without waiting."""
        self._process.kill()

    def discard(self) -> None:
        """Wait for the end, and remove what it printed."""
        self._process.join()
        self._answer.close()
        self._log.unlink(missing_ok=True)


def _train(settings: Settings, out: Path, engine: Engine, log: Path, says: Connection) -> None:
    """Train in this process; say None, or what a `KdmriError` is made of."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with log.open("ab", buffering=0) as stream:
        for descriptor in (1, 2):  # also of what libraries write there past Python
            os.dup2(stream.fileno(), descriptor)
    get_console().quiet = True
    failure: tuple[type[KdmriError], dict[str, Any]] | None = None
    try:
        distill(settings, out, engine=engine)
    except KdmriError as error:
        failure = type(error), vars(error)  # errors of two arguments cannot be pickled themselves
    says.send(failure)


def _end_with_parent() -> None:
    """End this process once its parent is gone, which may have had no time to end it."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
