"""Running a job in its own process, so that a crash costs one row and memory is that row's own."""

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
from typing import Any

__all__ = ["Job", "JobResult", "ended_by", "environment", "run_isolated"]


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
        dynamic: bundle that takes any batch; None where the source itself does.
        mask: `Mask.to_dict` of another mask than the source's own; None for that.
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
    dynamic: str | None = None
    mask: Mapping[str, Any] | None = None
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
        load_s: seconds from nothing to a session that is ready, imports of the runtime included.
        first_s: seconds of the first query, compilation included where a runtime compiles then.
        cold_s: seconds from the start of the process to the first image.
        latency_s: durations of the timed queries, network only, seconds.
        end_to_end_s: durations from k-space to image, seconds.
        throughput: batch size -> slices per second, or the reason why there is none.
        memory: bytes: `baseline` (resident before the runtime was imported), `loaded` (after the
            session was opened), `peak` (largest until the last timed query), `above_baseline`
            (peak - baseline); and `source`. With a GPU `gpu_peak` and `gpu_source`.
        energy: `joules` of the timed queries, `queries`, `source`; empty where nothing is readable.
        info: what the session says about itself (`SessionInfo`).
    """

    error: str | None = None
    absent: bool = False
    load_s: float = 0.0
    first_s: float = 0.0
    cold_s: float = 0.0
    latency_s: tuple[float, ...] = ()
    end_to_end_s: tuple[float, ...] = ()
    throughput: Mapping[str, float | str] = field(default_factory=dict)
    energy: Mapping[str, Any] = field(default_factory=dict)
    memory: Mapping[str, Any] = field(default_factory=dict)
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
        value = json.loads(path.read_text(encoding="utf-8"))
        try:
            times = {key: tuple(value.get(key, ())) for key in ("latency_s", "end_to_end_s")}
            return cls(**{**value, **times})
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path.name} is not a result ({error})") from error


WORKER = "kdmri_bench.measuring.worker"


def run_isolated(job: Job, folder: Path, *, timeout_s: float, module: str = WORKER) -> JobResult:
    """Run a job in a new interpreter and wait for it.

    Args:
        job: what to measure.
        folder: an existing folder for the files of this call.
        timeout_s: the process is killed after so many seconds.
        module: the worker module, run with `python -m`.

    Returns:
        The worker's result. However it ended (exception, signal, timeout), the reason is in
        `error` and nothing is raised.
    """
    job_file, result_file = folder / "job.json", folder / "result.json"
    result_file.unlink(missing_ok=True)
    command = [sys.executable, "-P", "-m", module, str(job_file), str(result_file)]
    log = folder / "stderr.txt"
    replace(job, spawned=time.time()).write(job_file)
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            # torch.compile starts cold in the first round, whatever was compiled here before.
            env={**environment(job.threads), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")},
        )
        try:
            status = process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return JobResult(error=f"No result after {timeout_s:g} s; the process was ended.")
        finally:  # also when the user presses Ctrl-C: no process is left behind
            process.kill()
            process.wait()
    if result_file.is_file():
        try:
            return JobResult.read(result_file)
        except ValueError as error:
            return JobResult(error=f"The process left a damaged result ({error}).")
    return JobResult(error=ended_by(status, log))


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
