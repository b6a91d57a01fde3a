"""The one command for a lent machine, with devices that are stood in for by the CPU."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdmri_bench import device
from kdmri_bench.device import ROWS, Place, find_places, measure_device
from kdmri_bench.planning import rows, variants
from kdmri_bench.planning.settings import BenchSettings, Precision
from kdmri_bench.planning.sources import from_checkpoint
from kdmri_bench.reporting.report import read_report
from kdmri_bench.results.schema import Status
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import BackendError, BenchError
from kdmri_edge.physics.masks import Mask

ALL = BenchSettings(precisions=tuple(Precision), every_way=True, limit_s=60.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., Run], mask: Mask) -> Run:
    return make_run(tmp_path_factory.mktemp("run"), mask, ("teacher", "student"))


@pytest.mark.parametrize("kind", ROWS)
def test_every_pattern_names_rows_and_their_order_is_kept(
    kind: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "has_cuda", lambda: True)
    monkeypatch.setattr(variants, "found_by_openvino", lambda: ("cpu", "gpu", "npu"))
    sources = [from_checkpoint(run.weights(role)) for role in ("teacher", "student")]
    drafts = rows.draft_rows(sources, ALL)
    rows.chosen(drafts, ROWS[kind])  # refuses a pattern that names nothing
    found = [d.plan.row.key for d in rows.chosen(drafts, ROWS[kind], ordered=True)]
    assert found[:2] == ["teacher/pytorch-f32", "distilled student/pytorch-f32"]
    assert len(set(found)) == len(found)
    places = [next(i for i, pattern in enumerate(ROWS[kind])
                   if rows._named(draft, pattern)) for draft in
              rows.chosen(drafts, ROWS[kind], ordered=True)]  # fmt: skip
    assert places == sorted(places)


def test_gpus_are_measured_in_halves_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "has_cuda", lambda: True)
    monkeypatch.setattr(variants, "found_by_openvino", lambda: ("cpu", "gpu"))
    drafts = rows.draft_rows([from_checkpoint(run.weights("student"))], ALL)
    found = {d.plan.row.key.partition("/")[2]: d.plan for d in drafts}
    graph = found["cuda-f16-graph"]
    assert graph.row.precision == "f16"
    assert graph.options == {"layout": "channels_last", "device": "cuda", "mode": "graph"}
    for key, place in (("onnxruntime-cuda-f16", "cuda"), ("onnxruntime-rtx-f32", "cuda"),
                       ("openvino-gpu-int8", "gpu"), ("openvino-f32", "cpu")):  # fmt: skip
        assert found[key].row.device == place
    absent = found["cuda-f16-torch-tensorrt"].row
    assert absent.status is Status.SKIPPED
    assert "torch-tensorrt-rtx" in (absent.reason or "")  # either build will do
    assert not any(key.startswith("openvino-npu") for key in found)
    usual = rows.draft_rows([from_checkpoint(run.weights("student"))],
                            BenchSettings(every_way=True))  # fmt: skip
    keys = {draft.plan.row.key.partition("/")[2] for draft in usual}
    assert {"cuda-f32", "cuda-f16", "cuda-bf16"} <= keys
    assert "pytorch-f32" in keys
    assert "onnx-f16" not in keys  # CPUs have nothing to gain from it


def test_no_export_begins_when_the_time_is_over(run: Run, tmp_path: Path) -> None:
    source = from_checkpoint(run.weights("student"))
    settings = replace(ALL, precisions=(Precision.F32,), every_way=False)
    plans = rows.plan_rows(
        [source], settings, tmp_path, rows=["onnx-f32", "pytorch-f32"],
        until=time.perf_counter() - 1,
    )  # fmt: skip
    late, eager = plans
    assert late.row.status is Status.SKIPPED
    assert "no time left" in (late.row.reason or "")
    assert eager.source is not None  # nothing has to be exported for it
    assert not list(tmp_path.iterdir())


def test_without_a_device_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"no GPU.*--on cpu"):
        measure_device(tmp_path / "out", places=[])
    with pytest.raises(BenchError, match="too few"):
        measure_device(tmp_path / "out", places=[], seconds=10)
    monkeypatch.setattr(device, "find_places", lambda: [])
    done = CliRunner().invoke(device.main, ["--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert done.output.startswith("Error: This machine has no GPU")
    assert not (tmp_path / "out").exists()


def test_devices_are_found_by_what_runs_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "has_cuda", lambda: True)
    monkeypatch.setattr(variants, "found_by_openvino", lambda: ("cpu", "npu"))
    assert [place.kind for place in find_places()] == ["cuda", "npu"]
    monkeypatch.setattr(rows, "has_cuda", lambda: False)
    monkeypatch.setattr(variants, "found_by_openvino", lambda: ("cpu",))
    assert find_places() == []


@pytest.mark.nightly
def test_it_runs_from_end_to_end_with_a_list_of_devices(run: Run, tmp_path: Path) -> None:
    places = [
        Place(kind="cuda", name="the first that is stood in for", rows=("pytorch-f32",)),
        Place(kind="gpu", name="the second", rows=("openvino-f32", "cuda-f16-graph")),
    ]
    file = measure_device(
        tmp_path / "out",
        networks=[run.path],
        places=places,
        changes={"samples": 3, "end_to_end": 2, "warmup": 0, "batches": (1, 2), "threads": 1,
                 "throughput_s": 0.01, "peaks_s": 0.0},
    )  # fmt: skip
    machine = json.loads((tmp_path / "out" / "machine.json").read_text())
    assert machine["places"] == [place.name for place in places]
    report = read_report(file)
    found = {row.key: row for row in report.rows[1:]}
    assert list(found) == [
        f"{name}/{key}" for key in ("pytorch-f32", "openvino-f32", "cuda-f16-graph")
        for name in ("teacher", "distilled student")
    ]  # fmt: skip
    for key in ("pytorch-f32", "openvino-f32"):
        row = found[f"distilled student/{key}"]
        assert row.status is Status.MEASURED
        assert row.quality
        assert set(row.throughput) == {"1"}  # larger batches are for GPUs
    assert found["teacher/cuda-f16-graph"].status is Status.SKIPPED
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "machine.json", "panel.png", "report.csv", "report.html", "report.json", "report.md",
    ]  # fmt: skip
