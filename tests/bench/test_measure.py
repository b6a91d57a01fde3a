"""Interleaving, isolation and book-keeping, with a stand-in for the worker."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdmri_bench.benchmark import measure_networks
from kdmri_bench.measuring.measure import Measured, measure
from kdmri_bench.planning.rows import Plan
from kdmri_bench.planning.settings import BenchSettings
from kdmri_bench.planning.sources import gather
from kdmri_bench.reporting.report import read_report
from kdmri_bench.results.derive import derived
from kdmri_bench.results.figures import precision_text
from kdmri_bench.results.schema import Network, Row, Status, TestVolume
from kdmri_edge.data.case import Case
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.metrics import volume_metrics
from kdmri_edge.physics.masks import Mask

Measure = Callable[..., tuple[Measured, list[str]]]
STAND_IN = """
import os, signal, sys
from pathlib import Path
import numpy as np
from kdmri_bench.measuring.isolation import Job, JobResult
job = Job.read(Path(sys.argv[1]))
name = Path(job.source).name
with open(Path(job.source).parent / "log.txt", "a") as log:
    log.write(f"{name} {job.samples} {len(job.volumes)}\\n")
if name == "killed":
    os.kill(os.getpid(), signal.SIGSEGV)
if name == "broken":
    raise OSError("graph is unreadable")
if name == "absent":
    JobResult(error="This CPU has no bf16.", absent=True).write(Path(sys.argv[2]))
    sys.exit(1)
if job.profile:
    layer = {"layer": "conv", "type": "Convolution", "precision": "u8", "kernel": "k", "ms": 3.0}
    error = "It tells nothing." if name == "other" else None
    JobResult(error=error, profile=(layer, {**layer, "layer": "sum", "ms": 1.0})).write(
        Path(sys.argv[2])
    )
    sys.exit(0)
gain = {"good": 1.0, "other": 0.5, "nearly": 0.9}.get(name, 1.0)
for source, output in job.volumes:
    image = np.load(source) * np.float32(gain)
    if name == "nan":
        image[0, 0, 0] = np.nan
    np.save(output, image)
JobResult(
    load_s=0.25,
    latency_s=tuple(0.01 * (i + 1) for i in range(job.samples)),
    end_to_end_s=tuple(0.02 * (i + 1) for i in range(job.end_to_end)),
    first_s=0.5, cold_s=1.5, energy={"joules": 3.0, "queries": 6, "source": "s"},
    throughput={str(batch): 100.0 * batch for batch in job.batches},
    memory={"baseline": 1, "loaded": 2, "peak": 3, "above_baseline": 2, "source": "none"},
    info={"version": "1", "precision_executed": {
        "undone": "int8 in 0/15 convolutions", "mostly": "int8 in 14/15 convolutions",
    }.get(name, "f32")},
).write(Path(sys.argv[2]))
"""


def plan(name: str, folder: Path, precision: str = "f32", network: str = "student") -> Plan:
    row = Row(key=name, network=network, role="student", runtime="x", precision=precision)
    return Plan(row=row, source=folder / name)


@pytest.fixture
def run(tmp_path: Path, cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> Measure:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "stand_in.py").write_text(STAND_IN)

    def measured(*plans: Plan, **settings: Any) -> tuple[Measured, list[str]]:
        workspace = tmp_path / "work"
        workspace.mkdir()
        chosen = BenchSettings(threads=1, warmup=0, **{"samples": 5, **settings})
        result = measure(plans, cases, chosen, workspace, worker="stand_in")
        return result, (tmp_path / "log.txt").read_text().splitlines()

    return measured


def test_rounds_are_interleaved_and_samples_combined(
    run: Measure, tmp_path: Path, cases: list[Case]
) -> None:
    result, log = run(plan("good", tmp_path), plan("other", tmp_path))
    assert log == ["good 3 0", "other 3 0", "good 2 2", "other 2 2"]
    first, second = result.rows
    assert first.latency["samples"] == 5
    assert first.latency["round_p50_ms"] == pytest.approx([20.0, 15.0])
    assert first.load_s == (0.25, 0.25)
    expected = volume_metrics(cases[1].target, cases[1].zero_filled)
    assert {k: first.volumes[1][k] for k in expected} == pytest.approx(expected)
    mean = np.mean([volume["psnr"] for volume in first.volumes])
    assert first.quality["psnr"]["mean"] == pytest.approx(mean)
    assert first.difference is None
    largest = max(np.abs(0.5 * c.zero_filled).max() / c.target.max() for c in cases)
    assert second.difference["max_range_normalised"] == pytest.approx(largest, rel=1e-5)
    assert second.difference["psnr_db"] < 0
    assert second.difference["from"] == first.key
    assert np.array_equal(result.outputs["student"][0], cases[0].zero_filled)


def test_layers_are_timed_after_everything_else_and_apart_from_it(
    run: Measure, tmp_path: Path
) -> None:
    def told(name: str, runtime: str = "OpenVINO") -> Plan:
        made = plan(name, tmp_path)
        return replace(made, row=replace(made.row, runtime=runtime))

    usual, _ = run(told("good"))
    plans = told("good"), told("other", "ONNX Runtime"), told("nearly", "PyTorch")
    shutil.rmtree(tmp_path / "work")
    (tmp_path / "log.txt").unlink()
    result, log = run(*plans, profile=7)
    # the last two without queries of their own, and of PyTorch, which does not tell, none
    assert log[-3:] == ["nearly 2 2", "good 0 0", "other 0 0"]
    good, other, nearly = result.rows
    assert good.latency == usual.rows[0].latency
    assert good.profile["total_ms"] == 4.0
    assert good.profile["queries"] == 7
    assert [layer["share"] for layer in good.profile["layers"]] == [0.75, 0.25]
    assert other.profile == {"reason": "It tells nothing."}
    assert other.status is Status.MEASURED
    assert nearly.profile is None


def test_rows_that_fail_cost_only_themselves(run: Measure, tmp_path: Path) -> None:
    names = ["killed", "good", "broken", "absent", "nan", "other"]
    result, log = run(*(plan(name, tmp_path) for name in names))
    status = {row.key: (row.status, row.reason) for row in result.rows}
    assert status["good"] == status["other"] == (Status.MEASURED, None)
    assert status["killed"][0] is Status.FAILED
    assert "SIGSEGV" in status["killed"][1]
    assert status["broken"] == (Status.FAILED, "OSError: graph is unreadable")
    assert status["absent"] == (Status.SKIPPED, "This CPU has no bf16.")
    assert status["nan"][0] is Status.FAILED
    assert "NaN" in status["nan"][1]
    assert sum(line.startswith("killed") for line in log) == 1  # no second round


@pytest.mark.parametrize("survivor", ["good", None])
def test_the_report_is_written_whatever_crashes(
    survivor: str | None,
    cases: list[Case],
    make_run: Callable[..., Run],
    mask: Mask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    sources = gather([make_run(tmp_path / "run", mask, ("teacher", "student")).path])
    plans = [
        Plan(
            row=Row(key=f"{source.name}/x", network=source.name, role=source.role,
                    runtime="PyTorch", precision="f32"),
            source=tmp_path / name,
        )
        for source, name in zip(sources, ("killed", survivor or "broken"), strict=True)
    ]  # fmt: skip
    monkeypatch.setattr("kdmri_bench.benchmark.plan_rows", lambda *_, **__: plans)
    settings = BenchSettings(threads=1, warmup=0, samples=5)
    files = measure_networks(
        sources, cases, settings, out=tmp_path / "out", worker="stand_in"
    ).files
    report = read_report(files["json"])
    assert [row.status for row in report.rows[1:]] == [
        Status.FAILED, Status.MEASURED if survivor else Status.FAILED,
    ]  # fmt: skip
    for kind in ("html", "md", "csv"):
        assert "SIGSEGV" in files[kind].read_text()
    assert (report.recommended is None) is (survivor is None)


def test_another_precision_than_asked_is_not_passed_off(run: Measure, tmp_path: Path) -> None:
    result, _ = run(plan("good", tmp_path, precision="bf16"))
    (row,) = result.rows
    assert row.status is Status.SKIPPED
    assert "executed f32" in row.reason
    assert row.latency is None


def test_integers_that_a_runtime_undid_are_not_passed_off(run: Measure, tmp_path: Path) -> None:
    plans = [plan(name, tmp_path, precision="int8") for name in ("undone", "mostly")]
    undone, mostly = run(*plans)[0].rows
    assert undone.status is Status.SKIPPED
    assert "executed int8 in 0/15 convolutions" in undone.reason
    assert undone.latency is None
    assert mostly.status is Status.MEASURED
    assert precision_text(mostly) == "int8 14/15"


def test_halves_that_are_only_stored_are_called_that() -> None:
    session = {"precision_executed": "f16 weights, f32 arithmetic"}
    row = Row(key="k", network="n", role="student", runtime="x", precision="f16", session=session)
    assert precision_text(row) == "fp16 weights"


def test_a_row_without_source_keeps_its_reason(run: Measure, tmp_path: Path) -> None:
    row = Row(key="k", network="n", role="student", runtime="x", precision="f32",
              status=Status.SKIPPED, reason="not installed")  # fmt: skip
    result, log = run(Plan(row=row, source=None), plan("good", tmp_path), samples=1)
    assert result.rows[0] == row
    assert len(log) == 1


def test_a_known_error_is_ranked_accordingly(
    run: Measure, tmp_path: Path, cases: list[Case]
) -> None:
    names = ("good", "nearly", "other")
    plans = [plan(name, tmp_path, network=f"net-{name}") for name in names]
    plans[0] = Plan(row=replace(plans[0].row, role="teacher", runtime="PyTorch"),
                    source=plans[0].source)  # fmt: skip
    result, _ = run(*plans, samples=1)
    networks = [
        Network(name=f"net-{name}", role="teacher" if name == "good" else "student",
                parameters=1, macs={"all": 10**9}, attribution=None)
        for name in names
    ]  # fmt: skip
    volumes = [
        TestVolume(name=c.name, subject=c.subject, contrast=None, sha256=c.sha256, slices=3)
        for c in cases
    ]
    rows = derived(result.rows, networks, volumes, {"PyTorch": {"f32": 200.0}})
    lost = [row.to_teacher["psnr"]["value"] for row in rows]
    assert lost[0] == 0.0
    for row, gain in zip(rows[1:], (0.9, 0.5), strict=True):
        expected = np.mean(
            [
                volume_metrics(c.target, np.float32(gain) * c.zero_filled)["psnr"]
                - volume_metrics(c.target, c.zero_filled)["psnr"]
                for c in cases
            ]
        )
        found = row.to_teacher["psnr"]
        assert found["value"] == pytest.approx(expected, rel=1e-5)
        assert found["low"] <= found["value"] <= found["high"]
        assert row.worst[0]["loss_db"] == max(item["loss_db"] for item in row.worst)
    assert lost[0] > lost[1] > lost[2]
    assert rows[0].limit["gmac_per_s"] == pytest.approx(100.0)  # 1 GMAC in 10 ms
    assert rows[0].limit["fraction"] == pytest.approx(0.5)


def test_the_last_round_alone_measures_throughput_and_every_round_end_to_end(
    run: Measure, tmp_path: Path
) -> None:
    result, _ = run(plan("good", tmp_path), end_to_end=4, batches=(1, 8))
    row = result.rows[0]
    assert row.end_to_end["samples"] == 4
    assert row.throughput == {"1": 100.0, "8": 800.0}
    assert row.cold == {"load_s": [0.25] * 2, "first_s": [0.5] * 2, "process_s": [1.5] * 2}
    assert row.energy == {"joules_per_slice": pytest.approx(0.5), "source": "s"}
