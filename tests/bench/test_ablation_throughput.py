"""The maintainers' measurements: they run, and say what they measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import ablation, cold_start, throughput
from kdmri_bench.reproduce import protocol
from kdmri_bench.reproduce.protocol import CaseSpec, plan
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.distillation.engine import Engine
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.models.checkpoint import load_checkpoint


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaseSpec:
    """Three phantoms of 90 x 90 under the names of the split's subjects, 8 steps."""
    task = replace(protocol.TASKS["brain"], matrix=90, paper_masks=None)
    monkeypatch.setitem(protocol.TASKS, "brain", task)
    folder = tmp_path / "brain"
    folder.mkdir()
    for number, subject in enumerate(("01", "20", "04")):
        image = phantom_volume(number, slices=2, matrix=90).image
        np.save(folder / f"sub-{subject}_ses-1_T1w.npy", image)
    small = (
        "batches.size=2",
        "batches.strip=16",
        "validate_every=4",
        "precision=f32",
        "batches.whole_slices=0.0",
    )
    (only,) = plan("brain", folder, accelerations=(4,), folds=False, steps=8, assignments=small)
    return only


def test_ablation_trains_what_is_asked_for(case: CaseSpec, tmp_path: Path) -> None:
    variants = [v for v in ablation.VARIANTS if v.name == "base"]
    report = ablation.ablate(case, tmp_path / "out", variants=variants)
    assert [row["title"] for row in report["rows"]] == [v.title for v in variants]
    assert all(row["validation_psnr_db"] > 10 for row in report["rows"])
    again = ablation.ablate(case, tmp_path / "out", variants=variants, train=False)
    assert again["rows"] == report["rows"]
    nothing = ablation.ablate(case, tmp_path / "none", variants=variants, train=False)
    assert "not trained yet" in ablation.markdown(nothing)


@pytest.mark.nightly
def test_optimizers_are_tried_beside_one_another(case: CaseSpec, tmp_path: Path) -> None:
    variants = [v for v in ablation.SETS["optimizers"] if v.network == "dccnn-d3c5"]
    report = ablation.ablate(case, tmp_path / "out", variants=variants)
    assert not (tmp_path / "out" / "base").exists()
    assert len({row["validation_psnr_db"] for row in report["rows"]}) == len(variants) == 3
    table = ablation.markdown(report)
    assert "gap" not in table
    assert all(row.count("|") == 3 for row in table.splitlines() if row.startswith("|"))


@pytest.mark.nightly
def test_ablation_changes_one_thing_at_a_time(case: CaseSpec, tmp_path: Path) -> None:
    report = ablation.ablate(case, tmp_path / "out")
    rows = {row["title"]: row for row in report["rows"]}
    assert len(rows) == len(ablation.VARIANTS)
    assert all(row["validation_psnr_db"] > 10 for row in rows.values())
    steps = {
        (variant.name, variant.role): sum(
            load_checkpoint(Run(tmp_path / "out" / variant.name).weights(variant.role))
            .training["steps"]
            .values()
        )
        for variant in ablation.VARIANTS
    }
    assert set(steps.values()) == {8}
    assert ablation.ablate(case, tmp_path / "out")["rows"] == report["rows"]
    reported = ablation.ablate(case, tmp_path / "out", train=False)
    assert reported["rows"] == report["rows"]
    assert reported["trained_on"] == ["CPU (float32)"]
    nothing = ablation.ablate(case, tmp_path / "none", train=False)
    assert "not trained yet" in ablation.markdown(nothing)
    assert "re-parameterised" in ablation.markdown(report)
    assert "device" not in ablation.markdown(report)  # there was one
    gpu, cpu = "NVIDIA H200 (bf16)", "CPU (float32)"
    mixed = dict(report, trained_on=[gpu, cpu])
    mixed["rows"] = [dict(rows[title], trained_on=[cpu]) for title in rows]
    mixed["rows"][1]["trained_on"] = [gpu, cpu]  # begun on the one, ended on the other
    mixed["rows"][2].update(trained_on=[], validation_psnr_db=None, gap_closed_percent=None)
    lines = ablation.markdown(mixed).splitlines()
    assert [line.rsplit("|", 2)[1].strip() for line in lines[2:5]] == ["2", "1, 2", ""]
    assert f"Trained on 1: {gpu}; 2: {cpu}." in lines[-1]


@pytest.mark.nightly
def test_ablation_side_by_side_gives_the_same_rows(case: CaseSpec, tmp_path: Path) -> None:
    variants = [v for v in ablation.VARIANTS if v.name == "base"]
    threads, engine = torch.get_num_threads(), Engine(threads=1)
    try:
        one, two = (
            ablation.ablate(case, tmp_path / str(n), variants=variants, engine=engine, jobs=n)
            for n in (1, 2)
        )
    finally:
        torch.set_num_threads(threads)
    assert two["rows"] == one["rows"]
    assert all(row["validation_psnr_db"] > 10 for row in two["rows"])
    assert json.loads((tmp_path / "2" / "report.json").read_text()) == two


@pytest.mark.nightly
def test_cold_start_needs_no_pytorch() -> None:
    report = cold_start.measure(samples=1, threads=1, matrix=64)
    rows = {row["backend"]: row for row in report["rows"]}
    assert set(rows) == {"onnxruntime", "openvino", "pytorch"}
    for row in rows.values():
        assert 0 < row["seconds"]["smallest"] <= row["seconds"]["median"]
        assert row["peak_mib"] > 10
    assert "torch" in rows["openvino"]["without"]
    assert "| OpenVINO |" in cold_start.markdown(report)


@pytest.mark.nightly
def test_throughput_times_both_loops() -> None:
    report = throughput.measure(rounds=1, steps=4)
    assert report["kdmri_edge"]["slices_per_s"] > 0
    assert report["ratio"]["smallest"] <= report["ratio"]["median"] <= report["ratio"]["largest"]
    assert "slices of 240 x 240 per second" in throughput.sentence(report)


def test_duration_follows_from_the_rate() -> None:
    report = {
        "network": "dccnn-d3c5",
        "matrix": 240,
        "ran_on": {"device": "CPU", "threads": 2, "precision": "float32"},
        "kdmri_edge": {"slices_per_s": 2.0},
    }
    # 8,000 steps of 8 x 60 columns: two slices of 240 columns, a second each step
    said = throughput.duration(report)
    hours = 8000 / 3600
    assert f"and {hours:.1f} for each student" in said
    assert f"at least {hours * 8.20 / 2.89:.1f} hours for the teacher" in said
