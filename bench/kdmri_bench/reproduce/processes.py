"""Several trainings at once, each in a process of its own.

These networks are so small that one training leaves most of a GPU idle, waiting for the next kernel
to be started; several of them fill it. On a CPU there is nothing to fill: they share its cores.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import torch
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from kdmri_bench.measuring.isolation import ended_by
from kdmri_bench.planning.settings import available_threads
from kdmri_edge.distillation.engine import Engine
from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.errors import BenchError, KdmriError
from kdmri_edge.utils.console import get_console, progress, say
from kdmri_edge.utils.files import writing

__all__ = ["Piece", "TrainingProcess", "check_jobs", "interrupts_held", "train_side_by_side"]

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


@dataclass(frozen=True, slots=True)
class Piece:
    """One call of `distill`.

    Attributes:
        out: Its run folder.
        settings: The request.
        title: What a person is told.
        after: Run folders of earlier pieces that must be finished before it starts, since their
            networks teach its own; those of no piece count as finished.
    """

    out: Path
    settings: Settings
    title: str
    after: tuple[Path, ...] = ()


def check_jobs(jobs: int, engine: Engine) -> None:
    """Refuse numbers of trainings that cannot run side by side.

    Raises:
        BenchError: Fewer than one, or several with an engine of several processes.
    """
    if jobs < 1:
        raise BenchError(f"--jobs {jobs} trains nothing.", "Give --jobs 1 or more.")
    if jobs > 1 and (engine.processes > 1 or TorchElasticEnvironment.detect()):
        raise BenchError(
            f"--jobs {jobs} trains in processes of its own, which those of a distributed training"
            " cannot have.",
            "Start it without torchrun, in one process, or give --jobs 1.",
        )


def train_side_by_side(
    pieces: Sequence[Piece],
    jobs: int,
    engine: Engine,
    finished: Callable[[], None] = lambda: None,
) -> None:
    """Train all pieces, up to `jobs` at once, going on where they stopped.

    However this ends, no process is left behind. The weights depend on `jobs` only as far as those
    trained on a CPU depend on the number of its threads.

    Args:
        pieces: In an order in which they could be trained one by one.
        jobs: How many at once; 1 trains in this process.
        engine: Where to train. Where it leaves the number of threads open, the pieces share a CPU.
        finished: Called in this process after every piece.

    Raises:
        BenchError: See `check_jobs`; or a process ended without saying why (memory, a defect).
        KdmriError: See `distill`; with several jobs it names the piece.
        ValueError: A piece waits for itself or for a later one.
    """
    check_jobs(jobs, engine)
    for number, piece in enumerate(pieces):
        if not {later.out for later in pieces[number:]}.isdisjoint(piece.after):
            raise ValueError(f"{piece.title} comes before what it waits for")
    if jobs > 1:
        _train_all(pieces, jobs, _shared(engine, min(jobs, len(pieces))), finished)
        return
    for piece in pieces:
        say(piece.title)
        distill(piece.settings, piece.out, engine=engine)
        finished()


def _shared(engine: Engine, processes: int) -> Engine:
    """Divide the cores of a CPU, of which each process would take all."""
    on_gpu = engine.accelerator != "cpu" and torch.cuda.is_available()
    if on_gpu or engine.threads is not None or not processes:
        return engine
    return replace(engine, threads=max(1, available_threads() // processes))


def _train_all(
    pieces: Sequence[Piece], jobs: int, engine: Engine, finished: Callable[[], None]
) -> None:
    waiting = list(pieces)
    running: list[tuple[Piece, TrainingProcess]] = []
    try:
        with progress(f"Training, {jobs} at once", len(pieces)) as advance:
            while waiting or running:
                unfinished = {piece.out for piece in (*waiting, *(piece for piece, _ in running))}
                ready = [piece for piece in waiting if unfinished.isdisjoint(piece.after)]
                for piece in ready[: jobs - len(running)]:
                    say(f"Started: {piece.title}")
                    with interrupts_held():
                        process = TrainingProcess(piece.settings, piece.out, engine)
                        running.append((piece, process))
                    waiting.remove(piece)
                ended = connection.wait([process.sentinel for _, process in running])
                for piece, process in [pair for pair in running if pair[1].sentinel in ended]:
                    running.remove((piece, process))
                    process.check(piece.title)
                    say(f"Finished: {piece.title}")
                    advance(1)
                    finished()
    finally:  # the others end too, at an error and at Ctrl-C; they have checkpoints to go on from
        for _, process in running:
            process.kill()
        for _, process in running:
            process.discard()
