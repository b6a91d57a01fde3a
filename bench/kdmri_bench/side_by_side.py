"""Several trainings at once, each in a process of its own.

These networks are so small that one training leaves most of a GPU idle, waiting for the next kernel
to be started; several of them fill it. On a CPU there is nothing to fill: they share its cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection
from pathlib import Path

import torch
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from kdmri_bench.settings import available_threads
from kdmri_bench.training_process import TrainingProcess, interrupts_held
from kdmri_edge.console import progress, say
from kdmri_edge.distill.engine import Engine
from kdmri_edge.distill.run import distill
from kdmri_edge.distill.settings import Settings
from kdmri_edge.errors import BenchError

__all__ = ["Piece", "check_jobs", "train_side_by_side"]


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
