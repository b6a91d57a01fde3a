"""Running a row in its own process, so that a crash costs one row and memory is that row's own.

The process lives through the row's rounds: importing PyTorch with CUDA takes longer than most
queries that are timed. The files of a job and of its result are the same in each round; a line on
the process's standard input asks for the next one, a line on its standard output says that the
result lies there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Event, Timer
from typing import IO, Any, Final, Self

__all__ = [
    "ANSWER",
    "Job",
    "JobResult",
    "RowProcess",
    "close_pipe",
    "ended_by",
    "environment",
    "run_isolated",
]

_TUPLES: Final = ("latency_s", "end_to_end_s", "resident_s", "profile")

ANSWER: Final = "result written"
"""What a worker prints when the file of its result is complete."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a worker does.

    Attributes:
        source: bundle folder or checkpoint file.
        backend: the runtime's name, None for the source's own.
        precision: to ask the backend for.
        threads: of the backend.
        options: further arguments of `open_session`.
        query: .npy file, float32 [1, C, H, W] or of k-space [1, coils, 2, H, W], normalised: the
            input that is timed.
        maps: .npy file, float32 [1, coils, 2, H, W]: what goes with it; None for other networks.
        warmup: untimed queries.
        samples: timed queries, network only.
        seconds: timing ends sooner after so many, of both kinds together; None sets no limit.
        kspace: .npy file, complex64 [C, H, W]: k-space of that slice, for timing end to end, of
            one coil fully sampled; None times the network alone.
        reads: checkpoint or bundle that says what is made of k-space; None for the source.
        end_to_end: timed queries, k-space in and image out; they count as samples too.
        batches: batch sizes of the offline throughput; empty measures none.
        throughput_s: seconds for each of them.
        resident: also time queries whose data lies on the device already.
        dynamic: bundle that takes any batch; None where the source itself does.
        mask: `Mask.to_dict` of another mask than the source's own; None for that.
        profile: queries that every layer is timed in; 0 times none. Nothing else is measured then.
        opener: import string of what opens the source instead of `open_session`.
        spawned: time.time() when the process was started; filled in by `run_isolated`.
        volumes: pairs of .npy files: zero-filled volume [S, H, W], or k-space of coils
            [S, C, H, W], to read, and reconstruction to write; empty to measure time and memory
            only.
    """

    source: str
    backend: str | None
    precision: str
    threads: int
    query: str
    warmup: int
    samples: int
    seconds: float | None = None
    maps: str | None = None
    kspace: str | None = None
    reads: str | None = None
    end_to_end: int = 0
    batches: tuple[int, ...] = ()
    throughput_s: float = 1.0
    resident: bool = False
    dynamic: str | None = None
    mask: Mapping[str, Any] | None = None
    profile: int = 0
    opener: str | None = None
    spawned: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    volumes: tuple[tuple[str, str], ...] = ()

    def write(self, path: Path) -> None:
        """Write the job for a worker."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read what `write` wrote."""
        value = json.loads(path.read_text(encoding="utf-8"))
        pairs = tuple((a, b) for a, b in value["volumes"])
        return cls(**{**value, "volumes": pairs, "batches": tuple(value["batches"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class JobResult:
    """What a worker found, or why it could not.

    Attributes:
        error: the reason, None when all went well; then the rest is filled in.
        absent: with an error: this machine lacks a package, a device or a precision; nothing broke.
        load_s: seconds from nothing to a session that is ready, imports of the runtime included;
            None, as for the two that follow, in a round that found the session open.
        first_s: seconds of the first query, compilation included where a runtime compiles then.
        cold_s: seconds from the start of the process to the first image.
        latency_s: durations of the timed queries, network only, seconds.
        end_to_end_s: durations from k-space to image, seconds.
        throughput: batch size -> slices per second, or the reason why there is none.
        memory: bytes: `baseline` (resident before the runtime was imported), `loaded` (after the
            session was opened), `peak` (largest until the last timed query), `above_baseline`
            (peak - baseline); and `source`. With a GPU `gpu_peak` and `gpu_source`.
        resident_s: durations of queries whose data lies on the device already, seconds.
        resident_rates: batch size -> slices per second of such queries, or why there are none.
        clocks: `sm_mhz` of the GPU after the timed queries and `largest_sm_mhz`; empty without one.
        energy: `joules` of the timed queries, `queries`, `source`; empty where nothing is readable.
        profile: layers with `layer`, `type`, `precision`, `kernel` and `ms`
            (`kdmri_edge.runtime.profile.LayerTime`), in the order in which they run.
        info: what the session says about itself (`SessionInfo`).
    """

    error: str | None = None
    absent: bool = False
    load_s: float | None = None
    first_s: float | None = None
    cold_s: float | None = None
    latency_s: tuple[float, ...] = ()
    end_to_end_s: tuple[float, ...] = ()
    throughput: Mapping[str, float | str] = field(default_factory=dict)
    resident_s: tuple[float, ...] = ()
    resident_rates: Mapping[str, float | str] = field(default_factory=dict)
    clocks: Mapping[str, float] = field(default_factory=dict)
    energy: Mapping[str, Any] = field(default_factory=dict)
    memory: Mapping[str, Any] = field(default_factory=dict)
    profile: tuple[Mapping[str, Any], ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the result for the parent."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> JobResult:
        """Read what `write` wrote.

        Raises:
            ValueError: the file is not a result.
        """
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path.name} is not a result ({error})") from error

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> JobResult:
        """Rebuild a result of what `asdict` made of it."""
        return cls(**{**value, **{key: tuple(value.get(key, ())) for key in _TUPLES}})


WORKER = "kdmri_bench.measuring.worker"


class RowProcess:
    """The process of one row; a context manager, at whose end that process is gone.

    A worker may also end after its result; the next job then has a new process.

    Args:
        folder: an existing folder for the files of this row.
        timeout_s: the process is killed when a job takes longer.
        module: the worker module, run with `python -m`.
    """

    def __init__(self, folder: Path, *, timeout_s: float, module: str = WORKER) -> None:
        """Start nothing yet."""
        self._folder, self._timeout_s, self._module = folder, timeout_s, module
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.end()

    @property
    def alive(self) -> bool:
        """Whether a process waits for the next job."""
        return self._process is not None and self._process.poll() is None

    def run(self, job: Job) -> JobResult:
        """Run a job and wait for it.

        Returns:
            The worker's result. However its process ended (exception, signal, timeout), the reason
            is in `error` and nothing is raised.
        """
        alive = self.alive
        result = self._once(job)
        if result is None and alive and self.end() == 0:
            result = self._once(job)  # it had ended of its own accord between two rounds
        return result or JobResult(error=ended_by(self.end(), self._log))

    def _once(self, job: Job) -> JobResult | None:
        """Run a job; return None where its process ended without a result."""
        job_file, result_file = self._folder / "job.json", self._folder / "result.json"
        result_file.unlink(missing_ok=True)
        fresh = not self.alive
        replace(job, spawned=time.time() if fresh else 0.0).write(job_file)
        if fresh:
            self.end()
            self._process = self._start(job.threads, job_file, result_file)
        try:
            hung = not self._answered(again=not fresh)
        except BaseException:  # also when the user presses Ctrl-C: no process is left behind
            self.end()
            raise
        if hung:
            self.end()
            return JobResult(error=f"No result after {self._timeout_s:g} s; the process was ended.")
        if result_file.is_file():
            try:
                return JobResult.read(result_file)
            except ValueError as error:
                return JobResult(error=f"The process left a damaged result ({error}).")
        return None

    def end(self) -> int:
        """End the process, if there is one; return its status, its own if it was over already."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.kill()
        for pipe in (process.stdin, process.stdout):
            close_pipe(pipe)
        return process.wait()

    @property
    def _log(self) -> Path:
        return self._folder / "stderr.txt"

    def _start(self, threads: int, *files: Path) -> subprocess.Popen[str]:
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", self._module, *map(str, files)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                errors="replace",
                env={
                    **environment(threads),
                    # torch.compile starts cold in the first round, whatever was compiled before.
                    "TORCHINDUCTOR_CACHE_DIR": str(self._folder / "inductor"),
                },
            )

    def _answered(self, *, again: bool) -> bool:
        """Wait for the result, or for the end of the process; False where that took too long."""
        process, late = self._process, Event()
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None

        def end() -> None:
            late.set()
            process.kill()

        timer = Timer(self._timeout_s, end)
        timer.start()
        try:
            if again:
                process.stdin.write("\n")
                process.stdin.flush()
            if not any(line.rstrip("\n") == ANSWER for line in process.stdout):
                process.wait()
        except BrokenPipeError:  # it ended between two rounds
            process.wait()
        finally:
            timer.cancel()
        return not late.is_set()


def run_isolated(job: Job, folder: Path, *, timeout_s: float, module: str = WORKER) -> JobResult:
    """Run one job in a new interpreter and wait for it; see `RowProcess`."""
    with RowProcess(folder, timeout_s=timeout_s, module=module) as process:
        return process.run(job)


def close_pipe(pipe: IO[Any] | None) -> None:
    """Close one end of a pipe whose other end may be gone."""
    try:
        if pipe is not None:
            pipe.close()
    except OSError:
        pass  # nobody reads it any more


def environment(threads: int) -> dict[str, str]:
    """The parent's environment, with its import path: a source checkout works uninstalled."""
    paths = [entry for entry in sys.path if entry]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(threads),
    }


def ended_by(status: int, log: Path) -> str:
    """Say in one line how a process without a result ended."""
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        hint = " (was the memory exhausted?)" if name == "SIGKILL" else ""
        return f"The process was ended by {name}{hint}."
    text = log.read_bytes().decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else f"The process ended with status {status} and no message."
