"""The whole benchmark on tiny networks, with real backends in real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from kdmri_bench.benchmark import Benchmark, measure_networks
from kdmri_bench.commands.bench import bench as command
from kdmri_bench.commands.select import select
from kdmri_bench.measuring.measure import measure
from kdmri_bench.planning import rows
from kdmri_bench.planning.exports import export_for
from kdmri_bench.planning.rows import Plan
from kdmri_bench.planning.settings import FULL as SHIPPED_FULL
from kdmri_bench.planning.settings import QUICK as SHIPPED_QUICK
from kdmri_bench.planning.settings import USUAL, BenchSettings, Precision
from kdmri_bench.planning.sources import Source, from_checkpoint, gather
from kdmri_bench.reporting.report import read_report
from kdmri_bench.results.schema import Report, Row, Status
from kdmri_edge.data.case import Case, make_case
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import BenchError, DataError, KdmriError, MaskError, OutputError, RunError
from kdmri_edge.metrics import volume_metrics
from kdmri_edge.physics.masks import Mask, variable_density_lines
from kdmri_edge.utils.files import sha256_file

MakeRun = Callable[..., Run]
QUICK = BenchSettings(threads=1, samples=3, warmup=1, rounds=1, precisions=(Precision.F32,))


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun, mask: Mask, cases: list[Case]
) -> Run:
    folder = tmp_path_factory.mktemp("run")
    return make_run(folder, mask, ("teacher", "student"), seen=cases[1].sha256)


@pytest.fixture(scope="module")
def done(run: Run, cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """At night: `quickstart` measures every network in every runtime for every change."""
    settings = replace(QUICK, plain_export=True)
    return measure_networks(run, cases, settings, out=tmp_path_factory.mktemp("out"))


def measured(report: Report) -> list[Row]:
    """Return the rows that were measured; only TensorRT's may be absent."""
    others = {row.runtime: row.reason for row in report.rows if row.status is not Status.MEASURED}
    assert set(others) <= {"TensorRT"}, others
    return [row for row in report.rows if row.status is Status.MEASURED]


@pytest.mark.nightly
def test_every_network_runs_on_every_backend(done: Benchmark) -> None:
    runtimes = {row.runtime for row in done.report.rows if row.role == "student"}
    assert runtimes == {"PyTorch", "TorchScript", "ONNX Runtime", "OpenVINO", "TensorRT"}
    for row in measured(done.report)[1:]:
        assert row.latency is not None
        assert row.latency["samples"] == 3
        assert row.session is not None
        assert row.session["precision_executed"].startswith("f32")
        assert row.size_bytes is not None
        assert row.size_bytes > 1000


@pytest.mark.nightly
def test_quality_is_that_of_the_networks_output(
    done: Benchmark, run: Run, cases: list[Case]
) -> None:
    import torch

    from kdmri_edge.models.checkpoint import load_reconstructor

    network = load_reconstructor(run.weights("student"))
    case = cases[0]
    scale = case.scale[:, None, None]
    with torch.no_grad():
        output = network(torch.from_numpy(case.zero_filled / scale)[:, None])[:, 0].numpy() * scale
    expected = volume_metrics(case.target, output)
    for row in measured(done.report):
        if row.role == "student":
            found = {name: row.volumes[0][name] for name in expected}
            assert found == pytest.approx(expected, rel=1e-3), row.key


@pytest.mark.nightly
def test_backends_agree_with_pytorch(done: Benchmark) -> None:
    compared = [row for row in measured(done.report)[1:] if row.runtime != "PyTorch"]
    for row in compared:
        assert row.difference is not None
        assert 0 <= row.difference["max_range_normalised"] < 1e-4, row.key  # type: ignore[operator]


@pytest.mark.nightly
def test_integers_are_measured_as_integers(run: Run, cases: list[Case], tmp_path: Path) -> None:
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    (copy.path / "teacher.safetensors").unlink()
    settings = replace(QUICK, samples=1, warmup=0, precisions=(Precision.INT8,))
    rows = measured(measure_networks(copy, cases, settings).report)[1:]
    assert {row.runtime for row in rows} == {"TorchScript", "ONNX Runtime", "OpenVINO"}
    for row in rows:
        assert row.session is not None
        assert "int8" in row.session["precision_executed"]
        assert row.key.endswith("-int8")


@pytest.mark.nightly
def test_memory_is_plausible(done: Benchmark) -> None:
    rows = {(r.role, r.runtime): r.memory for r in done.report.rows if r.memory}
    for memory in rows.values():
        assert memory["baseline"] < memory["peak"]
        assert memory["peak"] - memory["baseline"] == memory["above_baseline"]
        assert 10 << 20 < memory["baseline"] < 200 << 20  # numpy and the light core, no runtime
        assert memory["peak"] < 4 << 30
    torch, ort = rows["student", "PyTorch"], rows["student", "ONNX Runtime"]
    assert torch["above_baseline"] > ort["above_baseline"]  # ONNX Runtime needs no PyTorch


@pytest.mark.nightly
def test_the_plain_export_has_dft_nodes_and_the_default_none(done: Benchmark) -> None:
    counts = {
        (row.runtime, row.variant): row.dft_nodes
        for row in done.report.rows
        if row.role == "student" and row.runtime in ("ONNX Runtime", "OpenVINO")
    }
    assert counts["ONNX Runtime", "default"] == counts["OpenVINO", "default"] == 0
    assert (counts["ONNX Runtime", "plain export"] or 0) >= 2
    assert (counts["OpenVINO", "plain export"] or 0) >= 2


@pytest.mark.nightly
def test_a_volume_seen_in_training_is_flagged(done: Benchmark) -> None:
    first, second = done.report.volumes
    assert first.seen_in_training == ()
    assert second.seen_in_training == ("teacher", "distilled student")


@pytest.mark.nightly
def test_files_are_written_and_complete(done: Benchmark) -> None:
    assert read_report(done.files["json"]).to_dict() == done.report.to_dict()
    assert (
        done.files["csv"].read_text().count("\n")
        == sum(1 + len(row.volumes) for row in done.report.rows) + 1
    )  # the head, and per row its mean and its volumes
    assert done.files["panel"].stat().st_size > 10_000
    assert done.report.panel is not None
    assert done.report.panel["shown"] == ["zero-filled", "target", "teacher", "ours (distilled)"]


@pytest.mark.nightly
@pytest.mark.nightly
def test_exports_are_kept_and_made_again_only_when_stale(
    done: Benchmark, run: Run, cases: list[Case], mask: Mask, tmp_path: Path
) -> None:
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    (copy.path / "teacher.safetensors").unlink()
    graphs = sorted(copy.exports_dir.glob("student-*/*"))
    before = {path: (path.stat().st_mtime_ns, sha256_file(path)) for path in graphs}
    assert len(graphs) > 5
    default = [path for path in graphs if "fft" not in path.parent.name]
    target = next(path for path in default if path.suffix == ".onnx")
    # One altered file makes that bundle worthless; the others are as good as before.
    target.write_bytes(b"damaged")
    settings = replace(QUICK, samples=1, warmup=0)
    report = measure_networks(copy, cases, settings).report
    assert len(measured(report)) > 4
    after = {path: path.stat().st_mtime_ns for path in graphs}
    changed = {path.parent.name for path in graphs if after[path] != before[path][0]}
    assert changed == {target.parent.name}


@pytest.mark.nightly
def test_a_broken_source_costs_only_its_row(run: Run, cases: list[Case], tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(run.weights("student").read_bytes()[:-100])
    made = [
        Row(key=key, network=key, role="student", runtime="PyTorch", precision="f32")
        for key in ("broken", "good")
    ]
    plans = [
        Plan(row=made[0], source=broken),
        Plan(row=made[1], source=run.weights("student")),
    ]
    found = measure(plans, cases, QUICK, tmp_path).rows
    assert found[0].status is Status.FAILED
    assert "broken.safetensors" in (found[0].reason or "")
    assert found[1].status is Status.MEASURED


def test_what_is_absent_or_cannot_be_exported_keeps_its_row(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "available", lambda module: module != "openvino")

    def fail(source: Source, target: str, **_: object) -> Path:
        try:
            raise ValueError("\x1b[96mno lowering\x1b[0m for this operator\nmany more lines")
        except ValueError as error:
            raise RuntimeError("Failed. This is step 2/3.") from error

    monkeypatch.setattr(rows, "export_for", fail)
    source = from_checkpoint(run.weights("student"))
    plans = rows.plan_rows([source], BenchSettings(), tmp_path)
    found = {plan.row.key.partition("/")[2]: plan for plan in plans}
    assert list(found) == [
        "pytorch-f32", "torchscript-f32", "torchscript-int8", "onnx-f32", "onnx-int8",
        "openvino-f32", "openvino-bf16", "openvino-int8", "trt-f32", "trt-bf16", "trt-int8",
    ]  # fmt: skip
    assert found["pytorch-f32"].source == run.weights("student")
    for key in ("openvino-f32", "openvino-bf16"):
        assert found[key].row.status is Status.SKIPPED
        assert 'pip install "kdmri-edge[openvino]"' in (found[key].row.reason or "")
    assert found["onnx-f32"].row.status is Status.FAILED
    reason = "The export failed: ValueError: no lowering for this operator"
    assert found["onnx-f32"].row.reason == reason
    assert found["onnx-f32"].source is None


def test_every_way_has_a_row_and_what_is_absent_its_reason(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = rows.export_for(
        from_checkpoint(run.weights("student")), "onnx", dc="auto", scratch=tmp_path
    )
    monkeypatch.setattr(rows, "export_for", lambda *_, **__: bundle)
    monkeypatch.setattr(rows, "has_cuda", lambda: False)
    settings = replace(SHIPPED_QUICK, precisions=USUAL)
    plans = rows.plan_rows([from_checkpoint(run.weights("student"))], settings, tmp_path)
    found = {plan.row.key.partition("/")[2]: plan for plan in plans}
    assert {
        "pytorch-f32", "pytorch-f32-layout", "pytorch-f32-compile", "cuda-f32", "cuda-f32-graph",
        "cuda-f32-compile", "openvino-f32-throughput", "openvino-bf16-throughput",
        "openvino-int8-throughput", "trt-f32", "trt-f16", "trt-bf16", "trt-int8",
        "tensorrt-rtx-f32", "tensorrt-rtx-f16", "tensorrt-rtx-bf16", "tensorrt-rtx-int8",
        "onnx-fft-f32", "openvino-fft-bf16",
    } <= set(found)  # fmt: skip
    for key, words in (
        ("pytorch-f32-compile", "--full"), ("cuda-f32-graph", "no CUDA device"),
        ("tensorrt-rtx-f16", ""), ("trt-f32", ""),
    ):  # fmt: skip
        assert found[key].source is None
        assert found[key].row.status is Status.SKIPPED
        assert words in (found[key].row.reason or "")
    assert found["openvino-f32-throughput"].options == {"hint": "THROUGHPUT"}
    assert found["cuda-f32"].row.device == found["trt-f32"].row.device == "cuda"
    assert len(found) == len(plans)


def test_with_a_gpu_its_rows_are_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = from_checkpoint(run.weights("student"))
    bundle = rows.export_for(source, "onnx", dc="auto", scratch=tmp_path)
    asked = []

    def export(_: Source, target: str, **more: object) -> Path:
        asked.append((target, more.get("builder")))
        written.add((target, more.get("precision")))
        return bundle

    written: set[tuple[str, object]] = set()

    monkeypatch.setattr(rows, "export_for", export)
    monkeypatch.setattr(rows, "has_cuda", lambda: True)
    monkeypatch.setattr(rows, "available", lambda _: True)
    plans = rows.plan_rows([source], SHIPPED_FULL, tmp_path)
    found = {plan.row.key.partition("/")[2]: plan for plan in plans}
    assert found["cuda-f32-graph"].options["mode"] == "graph"
    assert found["trt-f16"].backend is None  # the target's own
    assert found["tensorrt-rtx-f16"].backend == "tensorrt-rtx"
    assert {("trt", "tensorrt"), ("trt", "rtx"), ("onnx", None)} <= set(asked)
    # engines compute what their graph says; OpenVINO is told when it loads a float32 graph
    assert ("trt", "bf16") in written
    assert ("openvino", "bf16") not in written
    assert found["pytorch-f32-compile"].source is not None
    assert found["onnx-f32"].dynamic is not None  # for batches of 8 and 32


def test_rows_are_chosen_by_the_patterns_of_their_keys(run: Run, tmp_path: Path) -> None:
    sources = gather([run.path])
    drafts = rows.draft_rows(sources, QUICK)
    keys = [draft.plan.row.key for draft in drafts]
    assert len(set(keys)) == len(keys)

    def chosen(*patterns: str) -> list[str]:
        return [draft.plan.row.key for draft in rows.chosen(drafts, patterns)]

    assert chosen() == keys
    assert chosen("teacher/onnx-f32") == ["teacher/onnx-f32"]
    assert chosen("student/onnx-f32") == ["distilled student/onnx-f32"]
    assert chosen("onnx-*") == [key for key in keys if "/onnx-" in key]
    assert chosen("openvino-f32", "*/pytorch-f32") == [
        f"{name}/{key}" for name in ("teacher", "distilled student")
        for key in ("pytorch-f32", "openvino-f32")
    ]  # fmt: skip
    with pytest.raises(BenchError, match=r"'tpu-\*'.*--list-rows"):
        chosen("onnx-*", "tpu-*")
    plans = rows.plan_rows(sources, QUICK, tmp_path, rows=["teacher/pytorch-f32"])
    assert [plan.row.key for plan in plans] == ["teacher/pytorch-f32"]
    assert not list(tmp_path.iterdir())  # nothing was exported for others


def test_rows_are_listed_without_data_and_without_exports(run: Run) -> None:
    before = sorted(run.path.rglob("*"))
    result = invoke(run.path, "--list-rows", "--rows", "teacher/*", "--precision", "fp32")
    assert result.exit_code == 0, result.exception
    lines = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    assert all(key.startswith("teacher/") for key in lines)
    assert lines["teacher/pytorch-f32"].strip() == "PyTorch, fp32"
    assert "--full" in lines["teacher/pytorch-f32-compile"]
    asked = ("--list-rows", "--rows", "teacher/*", "--precision", "fp32", "--json")
    found = {row["key"]: row for row in json.loads(invoke(run.path, *asked).stdout)}
    assert list(found) == list(lines)
    row = found["teacher/pytorch-f32"]
    assert (row["role"], row["precision"], row["reason"]) == ("teacher", "f32", None)
    assert "--full" in found["teacher/pytorch-f32-compile"]["reason"]
    assert sorted(run.path.rglob("*")) == before
    assert isinstance(invoke(run.path, "--list-rows", "--rows", "x").exception, BenchError)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.mark.parametrize("given", ["bundle", pytest.param("checkpoint", marks=pytest.mark.nightly)])
@pytest.mark.nightly
def test_the_command_measures_a_network_on_a_folder(
    done: Benchmark, given: str, run: Run, data_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    network = run.exports_dir / "student-onnx" if given == "bundle" else run.weights("student")
    result = invoke(
        network, "--data", data_folder, "--out", out, "--threads", 1, "--samples", 1,
        "--warmup", 0, "--precision", "f32", "--limit-slices", 2, "--usual-only",
        "--without-plain-export", "--json", "--max-latency", "60s", "--max-memory", "8GB",
    )  # fmt: skip
    assert result.exit_code == 0, result.exception
    value = json.loads(result.stdout)
    assert value["schema_version"] == 2
    assert value["limits"] == {"latency_ms": 6e4, "memory_bytes": 8e9, "loss_db": None}
    chosen = CliRunner().invoke(select, [str(out), "--json"])
    assert json.loads(chosen.stdout)["selected"] == value["recommended"]
    assert value["recommended"] in {row["key"] for row in value["rows"]}
    assert [volume["slices"] for volume in value["volumes"]] == [2, 2]
    assert value["split"] is None
    assert "single-coil" in value["statement"]
    assert value["mask"]["effective_acceleration"] < value["mask"]["nominal_acceleration"]
    assert sorted(path.name for path in out.iterdir()) == [
        "panel.png", "report.csv", "report.html", "report.json", "report.md",
    ]  # fmt: skip
    assert json.loads((out / "report.json").read_text()) == value


@pytest.mark.parametrize("option", ["--samples", "--threads"])
def test_numbers_out_of_range_are_usage_errors(run: Run, tmp_path: Path, option: str) -> None:
    result = invoke(run.path, "--out", tmp_path / "out", option, "0")
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (["--data", "nowhere"], DataError, "does not exist"),
        (["--contrast", "T9w"], DataError, "T9w"),
        (["--subjects", "99"], BenchError, "subject 99"),
    ],
)
def test_bad_options_are_one_sentence(
    run: Run, data_folder: Path, tmp_path: Path,
    options: list[str], error: type[KdmriError], words: str,
) -> None:  # fmt: skip
    data = () if "--data" in options else ("--data", data_folder)
    result = invoke(run.path, *data, "--out", tmp_path / "out", *options)
    assert isinstance(result.exception, error)
    assert words in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_limit_that_is_no_number_is_a_wrong_use(run: Run, tmp_path: Path) -> None:
    result = invoke(run.path, "--out", tmp_path / "out", "--max-loss", "much")
    assert result.exit_code == 2
    assert "no number with a unit" in result.output
    assert not (tmp_path / "out").exists()


def test_the_command_module_is_light() -> None:
    code = "import sys; sys.path[:] = %r; import kdmri_bench.commands.bench; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code % sys.path], capture_output=True, text=True, check=True
    )
    heavy = {"numpy", "torch", "skimage", "matplotlib", "openvino", "onnxruntime", "rich"}
    assert not heavy & set(done.stdout.split())


def test_usage_errors_exit_with_2(run: Run, data_folder: Path) -> None:
    assert invoke(run.path).exit_code == 2
    assert invoke(run.path, "--data", data_folder, "--precision", "f8").exit_code == 2
    nothing = invoke(run.path, "--data", data_folder, "--subjects", ",")
    assert nothing.exit_code == 2
    assert "--subjects names nothing" in nothing.output


def test_an_unwritable_place_is_found_out_before_measuring(
    run: Run, data_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    result = invoke(run.path, "--data", data_folder, "--out", tmp_path / "file")
    assert isinstance(result.exception, OutputError)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_without_weights(
    make_run: MakeRun, data_folder: Path, mask: Mask, tmp_path: Path
) -> None:
    empty = make_run(tmp_path / "empty", mask, ())
    result = invoke(empty.path, "--data", data_folder, "--out", tmp_path / "out")
    assert isinstance(result.exception, RunError)
    assert "--resume" in str(result.exception)


def test_nothing_to_measure(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(invoke("--data", data_folder).exception, RunError)
    result = invoke("nowhere", "--data", data_folder)
    assert isinstance(result.exception, BenchError)
    result = invoke(data_folder, "--data", data_folder)
    assert "no run, bundle" in str(result.exception)


def test_networks_for_different_masks_are_not_compared(
    make_run: MakeRun, run: Run, tmp_path: Path
) -> None:
    other = make_run(tmp_path / "other", variable_density_lines(32, 2, seed=9), ("student",))
    with pytest.raises(BenchError, match="one mask together"):
        gather([run.path, other.path])


def test_networks_of_one_role_get_names_of_their_own(
    make_run: MakeRun, run: Run, mask: Mask, tmp_path: Path
) -> None:
    other = make_run(tmp_path / "other", mask, ("student",))
    names = [source.name for source in gather([run.path, other.path])]
    assert len(set(names)) == 3
    assert names[0] == "teacher"
    assert "(other/student)" in names[2]


def test_a_given_bundle_in_a_precision_that_is_not_asked_for_keeps_its_row(
    run: Run, tmp_path: Path
) -> None:
    (source,) = gather([run.weights("student")])
    bundle = export_for(source, "onnx", dc="auto", scratch=tmp_path, precision="f16")
    (plan,) = rows.plan_rows(gather([bundle]), QUICK, tmp_path)
    assert plan.row.status is Status.SKIPPED
    assert "Measure with --precision fp16." in (plan.row.reason or "")
    asked = replace(QUICK, precisions=(Precision.F16,))
    (plan,) = rows.plan_rows(gather([bundle]), asked, tmp_path)
    assert plan.row.status is Status.MEASURED


@pytest.mark.nightly
def test_bundles_of_one_network_are_one_source(done: Benchmark, run: Run) -> None:
    sources = gather([run.exports_dir])
    assert [source.role for source in sources] == ["student", "teacher"]
    assert len(sources[0].bundles) == 5


@pytest.mark.parametrize("kind", ["none", "size", "double"])
def test_cases_that_do_not_fit_are_refused(run: Run, cases: list[Case], kind: str) -> None:
    small = make_case(phantom_volume(1, slices=2, matrix=24), variable_density_lines(24, 2))
    wrong = {"none": [], "size": [small], "double": [cases[0], cases[0]]}[kind]
    with pytest.raises((BenchError, MaskError)):
        measure_networks([from_checkpoint(run.weights("student"))], wrong, QUICK)


def test_the_mean_of_several_slices_counts_the_kept_ones(run: Run, cases: list[Case]) -> None:
    from kdmri_bench.planning.testdata import central_slices

    kept = central_slices(cases[0], 1)
    assert np.array_equal(kept.target, cases[0].target[1:2])
    assert central_slices(cases[0], None) is cases[0]
