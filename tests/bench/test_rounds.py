"""A row's process lives through its rounds, and a benchmark that is cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdmri_bench.measuring import measure as module
from kdmri_bench.measuring.isolation import Job, RowProcess
from kdmri_bench.measuring.measure import Measured, measure
from kdmri_bench.measuring.workspace import UNFINISHED, workspace
from kdmri_bench.planning.rows import Plan
from kdmri_bench.planning.settings import FULL, QUICK, BenchSettings
from kdmri_bench.results.rowfile import RowFile
from kdmri_bench.results.schema import Row, Status
from kdmri_edge.data.case import Case
from kdmri_edge.errors import BenchError, OutputError
from kdmri_edge.utils.memory import available_memory

STAYING = """
import os, sys, time
from pathlib import Path
import numpy as np
from kdmri_bench.measuring.isolation import ANSWER, Job, JobResult
fresh = True
while True:
    job = Job.read(Path(sys.argv[1]))
    name = Path(job.source).name
    with open(Path(job.source).parent / "log.txt", "a") as log:
        log.write(f"{name} {os.getpid()} {len(job.volumes)}\\n")
    for source, output in job.volumes:
        np.save(output, np.load(source) * np.float32(0.5 if name == "half" else 1.0))
    JobResult(
        **({"load_s": 0.25, "first_s": 0.5, "cold_s": 1.5} if fresh else {}),
        latency_s=tuple(0.01 * (i + 1) for i in range(job.samples)),
        memory={"baseline": 1, "loaded": 2, "peak": 3 if fresh else 5, "above_baseline": 2,
                "source": "none"},
        info={"precision_executed": "f32"},
    ).write(Path(sys.argv[2]))
    fresh = False
    print("a library prints this")
    print(ANSWER, flush=True)
    if name == "dies" or not sys.stdin.readline():
        break
"""
Measure = Callable[..., Measured]


def plan(name: str, folder: Path, **more: Any) -> Plan:
    row = Row(key=f"student/{name}", network="student", role="student", runtime="x",
              precision="f32", **more)  # fmt: skip
    return Plan(row=row, source=folder / name)


@pytest.fixture
def run(tmp_path: Path, cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> Measure:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "staying.py").write_text(STAYING)
    monkeypatch.setattr(module, "available_memory", lambda: None)

    def measured(*plans: Plan, place: str = "work", **settings: Any) -> Measured:
        (tmp_path / place).mkdir(exist_ok=True)
        chosen = BenchSettings(threads=1, warmup=0, **{"samples": 4, **settings})
        return measure(plans, cases, chosen, tmp_path / place, worker="staying")

    return measured


def log(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "log.txt").read_text().splitlines()]


def test_a_process_lives_through_all_rounds_of_its_row(run: Measure, tmp_path: Path) -> None:
    rows = run(plan("one", tmp_path), plan("half", tmp_path)).rows
    names, pids, volumes = zip(*log(tmp_path), strict=True)
    assert names == ("one", "half", "one", "half")  # interleaved
    assert volumes == ("0", "0", "2", "2")  # quality comes after the last peak of memory
    assert pids[:2] == pids[2:]
    assert pids[0] != pids[1]
    for row in rows:
        assert row.status is Status.MEASURED
        assert row.latency is not None
        assert row.latency["round_p50_ms"] == pytest.approx([15.0, 15.0])
        assert row.cold == {"load_s": [0.25], "first_s": [0.5], "process_s": [1.5]}
        assert row.memory is not None
        assert row.memory["peak"] == 5  # largest of the rounds


@pytest.mark.nightly
def test_a_process_that_ends_between_rounds_is_started_anew(run: Measure, tmp_path: Path) -> None:
    (row,) = run(plan("dies", tmp_path)).rows
    assert row.status is Status.MEASURED
    assert len(row.load_s) == 2
    assert len({pid for _, pid, _ in log(tmp_path)}) == 2


@pytest.mark.nightly
@pytest.mark.parametrize("reason", ["restart", "memory"])
def test_processes_end_where_they_must(
    reason: str, run: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "memory":
        monkeypatch.setattr(module, "available_memory", lambda: 1 << 30)
        monkeypatch.setattr(module, "physical_memory", lambda: 8 << 30)
    (row,) = run(plan("one", tmp_path), restart=reason == "restart").rows
    assert len(row.load_s) == 2
    assert len({pid for _, pid, _ in log(tmp_path)}) == 2


def test_only_the_full_mode_measures_cpus_in_new_processes() -> None:
    assert FULL.restart
    assert not QUICK.restart


@pytest.mark.nightly
def test_a_process_of_a_gpu_lives_on_in_the_full_mode(run: Measure, tmp_path: Path) -> None:
    run(plan("one", tmp_path, device="cuda"), restart=True)
    assert len({pid for _, pid, _ in log(tmp_path)}) == 1


@pytest.mark.nightly
def test_no_process_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "staying.py").write_text(STAYING)
    job = Job(source=str(tmp_path / "one"), backend=None, precision="f32", threads=1, query="q",
              warmup=0, samples=1)  # fmt: skip
    with RowProcess(tmp_path, timeout_s=60, module="staying") as process:
        assert process.run(job).latency_s == (0.01,)
        assert process.alive
    assert not process.alive
    pid = int(log(tmp_path)[0][1])
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    "rounds_done", [4, *(pytest.param(n, marks=pytest.mark.nightly) for n in (1, 2, 3, 5))]
)
def test_a_benchmark_goes_on_where_it_was_cut_off(
    rounds_done: int, run: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [plan("one", tmp_path), plan("half", tmp_path), plan("half2", tmp_path)]
    whole = run(*plans, place="whole")
    (tmp_path / "log.txt").unlink()
    usual, done = module._Bench.round, []

    def cut_off(self: Any, *arguments: Any, **more: Any) -> None:
        if len(done) == rounds_done:
            raise KeyboardInterrupt
        usual(self, *arguments, **more)
        done.append(1)

    monkeypatch.setattr(module._Bench, "round", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(*plans)
    left = sorted((tmp_path / "work").glob("rows/*/row.json"))
    assert len(left) == min(rounds_done, 3)
    for path in left:
        assert RowFile.read(path).row.latency is not None  # a figure, hours before the report
    monkeypatch.setattr(module._Bench, "round", usual)
    again = run(*plans)
    assert len(log(tmp_path)) == 6  # nothing was measured twice
    assert [row.key for row in again.rows] == [row.key for row in whole.rows]
    for found, expected in zip(again.rows, whole.rows, strict=True):
        for name in ("quality", "volumes", "difference", "worst", "status"):
            assert getattr(found, name) == getattr(expected, name), name
        assert found.latency is not None
        assert expected.latency is not None
        assert found.latency["round_p50_ms"] == expected.latency["round_p50_ms"]
    assert again.outputs.keys() == whole.outputs.keys()
    for key, views in whole.views.items():
        for view, other in zip(views, again.views[key], strict=True):
            assert view.score == other.score
            assert np.array_equal(view.image, other.image)


@pytest.mark.nightly
def test_other_settings_or_another_file_are_measured_anew(run: Measure, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("weights")
    counts = []
    for samples, text in ((4, "weights"), (4, "weights"), (6, "weights"), (6, "others")):
        (tmp_path / "one").write_text(text)
        run(plan("one", tmp_path), samples=samples, rounds=1)
        counts.append(len(log(tmp_path)))
    assert counts == [1, 1, 2, 3]
    (path,) = (tmp_path / "work").glob("rows/*/row.json")
    path.write_text("{")  # damaged: measured anew, too
    run(plan("one", tmp_path), samples=6, rounds=1)
    assert len(log(tmp_path)) == 4


def test_with_a_limit_of_time_each_row_that_began_is_complete(
    run: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 11.0, 12.0, 13.0])  # begun; round 1 of both, round 2 of both
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock, 14.0))
    monkeypatch.setattr(module, "progress", _silent)
    one, late = run(plan("one", tmp_path), plan("late", tmp_path), limit_s=10.0).rows
    assert one.status is Status.MEASURED
    assert one.quality
    assert one.latency is not None
    assert one.latency["samples"] == 2
    assert late.status is Status.SKIPPED
    assert "limit of 10 s had passed" in (late.reason or "")
    assert [volumes for _, _, volumes in log(tmp_path)] == ["2"]


class _silent:  # noqa: N801 - stands in for a function
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> _silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, n: int = 1, *, note: str | None = None) -> None:
        pass

    def line(self) -> str:
        return ""


def test_what_is_printed_names_row_round_and_time_left(
    run: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(plan("one", tmp_path), plan("half", tmp_path))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Measuring: 1 of 4, round 1 of 2, student/one: 15 ms, about ")
    assert lines[3] == "Measuring: 4 of 4, round 2 of 2, student/half: 15 ms."


def test_a_row_file_is_read_as_it_was_written_and_nothing_else_is(tmp_path: Path) -> None:
    row = replace(plan("one", tmp_path).row, load_s=(0.5,), latency={"p50_ms": 1.0})
    path = tmp_path / "row.json"
    RowFile(row=row, network={"role": "student"}, measured_on="Orin", more={"x": 1}).write(path)
    assert RowFile.read(path) == RowFile(
        row=row, network={"role": "student"}, measured_on="Orin", more={"x": 1}
    )
    value = json.loads(path.read_text())
    for change, words in (
        ({"format": "other"}, "no row of a benchmark"), ({"version": 9}, "version 9"),
        ({"row": {}}, "damaged"), ({"row": 3}, "damaged"),
    ):  # fmt: skip
        path.write_text(json.dumps({**value, **change}))
        with pytest.raises(BenchError, match=words):
            RowFile.read(path)


def test_the_workspace_is_gone_when_the_report_is_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with workspace(out) as place:
        assert place.path == out / UNFINISHED
        assert place.continued == 0
        with pytest.raises(BenchError, match="Another benchmark"), workspace(out):
            pass
        assert place.path.is_dir()
    assert list(out.iterdir()) == []
    with pytest.raises(ValueError, match="nothing measured"), workspace(tmp_path / "new"):
        raise ValueError("nothing measured")
    assert not (tmp_path / "new").exists()


def cut_off_in(out: Path, expected: int) -> Path:
    """Write a row's file and be interrupted."""
    with workspace(out) as place:
        assert place.continued == expected
        file = place.path / "rows" / "one" / "row.json"
        RowFile(row=plan("one", out).row).write(file)
        raise KeyboardInterrupt


def test_the_workspace_stays_with_the_rows_that_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for times in (0, 1, 2):
        with pytest.raises(KeyboardInterrupt):
            cut_off_in(tmp_path, times)
    assert "1 row(s) have figures" in capsys.readouterr().err
    assert (tmp_path / UNFINISHED / "rows" / "one" / "row.json").is_file()


@pytest.mark.parametrize("text", ["{", "[]", '{"continued": "often"}'])
def test_a_damaged_state_is_told_and_figures_are_kept(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / UNFINISHED / "state.json"
    state.parent.mkdir()
    state.write_text(text)
    with pytest.raises(KeyboardInterrupt):
        cut_off_in(tmp_path, 0)
    assert f"{state} is damaged: nothing beside it" in (said := capsys.readouterr().err)
    assert "starts anew" in said
    state.write_text(text)
    with pytest.raises(KeyboardInterrupt):
        cut_off_in(tmp_path, 1)
    assert f"{state} is damaged: the 1 finished row(s) beside it are kept" in (
        capsys.readouterr().err
    )


def test_a_workspace_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError), workspace(tmp_path / "file"):
        pass


def test_available_memory_counts_a_containers_limit(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    assert available_memory(meminfo, tmp_path) is None
    meminfo.write_text("MemTotal: 8000 kB\nMemAvailable: 4000 kB\n")
    assert available_memory(meminfo, tmp_path) == 4000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 400\n")
    assert available_memory(meminfo, tmp_path) == 4000 * 1024
    (tmp_path / "memory.max").write_text("2000\n")
    assert available_memory(meminfo, tmp_path) == 1400
