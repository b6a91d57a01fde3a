"""A row's process may end in any way: the benchmark goes on and says why."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kdmri_bench.measuring.isolation import Job, JobResult, run_isolated

Worker = Callable[..., JobResult]
JOB = Job(
    source="nowhere", backend=None, precision="f32", threads=1, query="q.npy", warmup=0, samples=1
)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """Write a worker module with the given body and run the job with it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(body: str, timeout_s: float = 60.0) -> JobResult:
        (tmp_path / "stand_in_worker.py").write_text("import os, sys, time, signal\n" + body)
        folder = tmp_path / "row"
        folder.mkdir(exist_ok=True)
        return run_isolated(JOB, folder, timeout_s=timeout_s, module="stand_in_worker")

    return run


def test_job_and_result_survive_their_files(tmp_path: Path) -> None:
    job = Job(
        source="a", backend="b", precision="bf16", threads=2, query="q", warmup=3, samples=4,
        options={"x": 1}, volumes=(("in", "out"), ("in2", "out2")),
    )  # fmt: skip
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job
    result = JobResult(load_s=0.5, latency_s=(0.1, 0.2), memory={"peak": 5}, info={"backend": "x"})
    result.write(tmp_path / "result.json")
    assert JobResult.read(tmp_path / "result.json") == result


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_killed_process_names_its_signal(worker: Worker, name: str) -> None:
    result = worker(f"os.kill(os.getpid(), signal.{name})")
    assert name in (result.error or "")
    assert not result.absent


def test_an_exception_gives_its_last_line(worker: Worker) -> None:
    result = worker("raise RuntimeError('the kernel is missing')")
    assert result.error == "RuntimeError: the kernel is missing"


def test_silent_death_still_has_a_reason(worker: Worker) -> None:
    assert "status 3" in (worker("os._exit(3)").error or "")


def test_a_hanging_process_is_ended(worker: Worker, tmp_path: Path) -> None:
    body = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    result = worker(body, timeout_s=3.0)
    assert "3 s" in (result.error or "")
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIG_DFL)


def test_half_a_result_is_no_result(worker: Worker) -> None:
    result = worker("open(sys.argv[2], 'w').write('{\"load_s\": 1')")
    assert "damaged result" in (result.error or "")


def test_an_earlier_result_is_not_taken_for_this_one(worker: Worker, tmp_path: Path) -> None:
    folder = tmp_path / "row"
    folder.mkdir()
    JobResult(load_s=1.0).write(folder / "result.json")
    assert worker("sys.exit(1)").error is not None


def test_the_process_sees_the_threads_and_the_import_path(worker: Worker) -> None:
    body = (
        "import kdmri_bench\nfrom kdmri_bench.measuring.isolation import JobResult\n"
        "from pathlib import Path\n"
        "JobResult(info={'omp': os.environ['OMP_NUM_THREADS']}).write(Path(sys.argv[2]))"
    )
    assert worker(body).info == {"omp": "1"}
