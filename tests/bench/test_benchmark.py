"""The benchmark as somebody's Python calls it, without the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdmri_bench import benchmark as module
from kdmri_bench.benchmark import Benchmark, benchmark
from kdmri_bench.planning.settings import BenchSettings, Precision
from kdmri_bench.planning.sources import at_matrix, from_checkpoint, gather, runs_of
from kdmri_bench.planning.testdata import load_data
from kdmri_bench.results.schema import Status
from kdmri_bench.results.select import Limits
from kdmri_edge.data.case import Case
from kdmri_edge.data.formats.registry import read_volume
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import BenchError
from kdmri_edge.metrics import psnr
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.redraw import redrawn
from kdmri_edge.runtime.pipeline import Pipeline
from kdmri_export.jobs import export

MakeRun = Callable[..., Run]
SMALL = BenchSettings(threads=1, samples=2, warmup=0, rounds=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun, mask: Mask) -> Run:
    return make_run(tmp_path_factory.mktemp("run"), mask, ("teacher", "student"))


@pytest.fixture(scope="module")
def done(run: Run, cases: list[Case]) -> Benchmark:
    """Both networks in PyTorch alone: what the report can do, not what runtimes do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdmri_bench.planning.rows.exported_variants", lambda *_: [])
        return benchmark(
            [run.weights("teacher"), str(run.weights("student"))],
            cases,
            settings=SMALL,
            precisions=["fp32"],
            limits=Limits(latency_ms=60_000.0),
        )


def test_rows_and_dictionary_hold_the_figures(done: Benchmark) -> None:
    assert [row.key for row in done.rows] == [
        "zero-filled", "teacher/pytorch-f32", "distilled student/pytorch-f32",
    ]  # fmt: skip
    assert done.to_dict()["rows"][1]["latency"]["samples"] == 2
    assert done.recommended is done.rows[2]
    assert done.select(Limits(latency_ms=1e-6)).row is None


def test_the_table_is_plain_text(done: Benchmark) -> None:
    text = done.table()
    assert text == str(done)
    assert "distilled student" in text
    assert "\x1b" not in text
    assert all(len(line) <= 50 for line in done.table(width=50).splitlines())


def test_what_is_saved_is_what_was_found(done: Benchmark, tmp_path: Path) -> None:
    files = done.save(tmp_path / "report")
    assert {path.name for path in files.values()} == {
        "panel.png", "report.html", "report.md", "report.csv", "report.json",
    }  # fmt: skip
    assert json.loads(files["json"].read_text()) == done.to_dict()
    assert files["panel"].read_bytes() == done.picture()
    lines = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert len(lines) == 3 * 3  # the mean and two volumes of each row
    again = Benchmark.load(tmp_path / "report")
    assert again.to_dict() == done.to_dict()
    assert again.pareto() == done.pareto()
    with pytest.raises(BenchError, match="no images"):
        again.picture()


def test_a_notebook_shows_figures_and_pictures(done: Benchmark) -> None:
    assert done.pareto()._repr_svg_().startswith("<svg")
    assert done.picture()._repr_png_().startswith(b"\x89PNG")
    shown = done._repr_html_()
    assert "<svg" in shown
    assert "data:image/png;base64," in shown
    assert "distilled student" in shown
    assert "<html" not in shown  # a part of a page


def test_networks_are_named_in_every_way(run: Run) -> None:
    def keys(networks: object) -> list[str]:
        return [source.role for source in gather(networks)]  # type: ignore[arg-type]

    assert keys(run) == keys(run.path) == keys(str(run.path)) == ["teacher", "student"]
    described = from_checkpoint(run.weights("student"))
    assert keys(described) == keys([described]) == keys(run.weights("student")) == ["student"]
    assert keys("dccnn-d3c5@brain-4x") == ["student"]


def test_a_checkpoint_or_an_export_belongs_to_its_run(run: Run) -> None:
    both = [run.weights("teacher"), run.exports_dir / "student-onnx"]
    assert [found.path for found in runs_of(both)] == [run.path]
    assert runs_of("dccnn-d3c5@brain-4x") == []


@pytest.mark.parametrize("kind", ["folder", "file", "volumes", "cases"])
def test_data_are_given_in_every_way(
    run: Run, mask: Mask, cases: list[Case], data_folder: Path, kind: str
) -> None:
    given = {
        "folder": data_folder,
        "file": str(data_folder / "sub-x_T1w.npy"),
        "volumes": [phantom_volume(4, slices=4, matrix=40)],
        "cases": cases,
    }[kind]
    spec = from_checkpoint(run.weights("student")).spec
    found = load_data(given, mask=mask, matrix=32, spec=spec, runs=[run])  # type: ignore[arg-type]
    assert len(found.cases) == {"folder": 2, "cases": 2}.get(kind, 1)
    assert {case.target.shape[1:] for case in found.cases} == {(32, 32)}
    assert found.split is None


def test_the_phantom_of_a_run_is_its_test_part(run: Run, mask: Mask) -> None:
    spec = from_checkpoint(run.weights("student")).spec
    free = load_data("phantom", mask=mask, matrix=32, spec=spec)
    assert len(free.cases) == 1
    assert "phantom" in free.statement
    with pytest.raises(BenchError, match="volumes or cases"):
        load_data([np.zeros(3)], mask=mask, matrix=32, spec=spec)  # type: ignore[list-item]


def test_bundles_of_any_matrix_alone_are_brought_to_another(
    run: Run, mask: Mask, tmp_path: Path
) -> None:
    weights = run.weights("student")
    bundle = export(weights, target="torchscript", matrix="any", out=tmp_path / "bundle")
    (source,) = at_matrix(gather(bundle.path), 24)
    assert (source.matrix, source.mask) == (24, redrawn(mask, 24, 24))
    with pytest.raises(BenchError, match="--matrix any"):
        at_matrix(gather(weights), 24)


@pytest.mark.nightly
def test_a_bundle_of_any_matrix_is_measured_at_another(
    run: Run, mask: Mask, data_folder: Path, tmp_path: Path
) -> None:
    weights = run.weights("student")
    bundle = export(weights, target="torchscript", matrix="any", out=tmp_path / "bundle")
    done = benchmark(
        bundle, data_folder, matrix=24, settings=SMALL, precisions=["fp32"],
        limits=Limits(latency_ms=60_000.0),
    )  # fmt: skip
    report = done.report
    assert report.matrix == 24
    assert Mask.from_dict(report.mask) == redrawn(mask, 24, 24)
    (row,) = [row for row in report.rows if row.runtime != "none"]
    assert row.status is Status.MEASURED
    # what a run at that matrix gives
    with Pipeline(bundle.path) as pipeline:
        for volume in row.volumes:
            image = read_volume(data_folder / f"{volume['name']}.npy")
            given = pipeline.prepare(to_matrix(image, 24), undersample=True)
            assert volume["psnr"] == pytest.approx(psnr(given.target, pipeline.images(given)))
    with pytest.raises(BenchError, match="--matrix any"):
        benchmark(weights, data_folder, matrix=24, settings=SMALL)


def test_an_unknown_precision_is_a_sentence(run: Run, cases: list[Case]) -> None:
    with pytest.raises(BenchError, match="no precision 'fp64'"):
        benchmark(run, cases, precisions=["fp64"])
    assert Precision.of("fp16") is Precision.of("f16") is Precision.F16


def test_what_is_measured_on_is_said(
    run: Run, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "say", said.append)
    monkeypatch.setattr(module, "measure_networks", lambda *_, **__: None)
    benchmark(run, cases, settings=replace(SMALL, limit_slices=2))
    names = ", ".join(case.name for case in cases)
    assert said == [f"Measuring on 2 volume(s): {names}, 2 central slices of each."]
