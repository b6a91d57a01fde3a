"""Running a job in its own process, so that a crash costs one row and memory is that row's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from kdmri_bench.jobs import Job, JobResult

__all__ = ["ended_by", "environment", "run_isolated"]

WORKER = "kdmri_bench.worker"


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
