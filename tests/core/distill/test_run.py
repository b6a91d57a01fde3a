"""A whole distillation, on phantoms of 32 x 32."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdmri_edge.distillation import run as run_module
from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.distillation.run_folder import Run, open_run
from kdmri_edge.errors import CheckpointError, KdmriError
from kdmri_edge.models.checkpoint import load_checkpoint, load_reconstructor, read_checkpoint_meta
from kdmri_edge.physics.masks import variable_density_2d, variable_density_lines

Make = Callable[..., Settings]
Weights = Callable[[Path], dict[str, dict[str, Tensor]]]


def _rows(run: Run, stage: str) -> list[dict[str, str]]:
    with (run.path / "log.csv").open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["stage"] == stage]


@pytest.fixture(scope="module")
def finished() -> dict[str, Any]:
    """Kept over the tests of this module (filled by the first)."""
    return {}


@pytest.fixture
def run(settings: Make, finished: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    if "run" not in finished:
        wanted = settings(teacher_steps=40, attention_steps=10, imitation_steps=30)
        finished["settings"] = wanted
        finished["run"] = distill(wanted, tmp_path_factory.mktemp("finished") / "run")
    result: Run = finished["run"]
    return result


def test_three_networks_know_what_they_are(run: Run, finished: dict[str, Any]) -> None:
    wanted: Settings = finished["settings"]
    assert open_run(run.path).roles() == ["teacher", "plain", "student"]
    for role in run.roles():
        checkpoint = load_checkpoint(run.weights(role))
        assert checkpoint.role == role
        assert checkpoint.mask == wanted.mask
        assert checkpoint.matrix == 32
        spec = getattr(wanted, f"{role}_spec")
        assert checkpoint.spec == spec
        training = checkpoint.training
        assert training["recipe"] == wanted.recipe.to_dict()
        assert training["validation_psnr_db"] > 20
        assert [len(v["sha256"]) for v in training["data"]] == [64]
        assert set(training["provenance"]) >= {"git", "machine", "versions", "seed"}
    assert load_checkpoint(run.weights("teacher")).training["steps"] == {"teacher": 40}
    assert load_checkpoint(run.weights("plain")).training["steps"] == {"plain": 40}
    assert load_checkpoint(run.weights("student")).training["steps"] == {
        "attention": 10,
        "imitation": 30,
    }


def test_run_json_tells_everything(run: Run, finished: dict[str, Any]) -> None:
    meta = open_run(run.path).meta
    assert meta["status"] == "complete"
    assert Settings.from_dict(meta["settings"]) == finished["settings"]
    assert meta["ran_on"]["processes"] == 1
    assert meta["ran_on"]["precision"] == "float32"
    parts = [[v["subject"] for v in meta["data"][p]] for p in ("train", "validation", "test")]
    assert all(parts)
    assert len({s for part in parts for s in part}) == sum(map(len, parts))
    assert not (run.path / "state").exists()


def test_losses_fall(run: Run) -> None:
    for stage in ("teacher", "plain", "attention"):
        losses = [float(row["loss"]) for row in _rows(run, stage)]
        assert np.mean(losses[-3:]) < np.mean(losses[:3]), stage


def test_networks_beat_zero_filling(run: Run) -> None:
    from kdmri_edge.data.case import make_case
    from kdmri_edge.data.phantom.volumes import phantom_volume

    mask = variable_density_lines(32, 2.0)
    case = make_case(phantom_volume(77, slices=3, matrix=32), mask)
    scale = case.scale[:, None, None]
    before = np.mean((case.zero_filled - case.target) ** 2)
    for role in run.roles():
        network = load_reconstructor(run.weights(role))
        with torch.no_grad():
            output = network(torch.from_numpy(case.zero_filled / scale)[:, None])[:, 0].numpy()
        assert np.mean((output * scale - case.target) ** 2) < before, role


def test_both_students_start_from_the_same_weights(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, dict[str, Tensor]] = {}
    real = run_module.train

    def spy(network: Any, stage: Any, context: Any) -> None:
        started[stage.name] = {k: v.clone() for k, v in network.state_dict().items()}
        real(network, stage, context)

    monkeypatch.setattr(run_module, "train", spy)
    few = {"teacher_steps": 2, "attention_steps": 2, "imitation_steps": 2}
    distill(settings(narrow=False, **few), tmp_path / "run")
    plain, distilled = started["plain"], started["attention"]
    assert all(torch.equal(plain[k], distilled[k]) for k in plain)
    assert any(not torch.equal(distilled[k], started["imitation"][k]) for k in plain)


def test_no_attention_and_alpha_one_is_the_plain_student(
    settings: Make, tmp_path: Path, weights: Weights
) -> None:
    """Without attention and imitation nothing of the teacher is left but other batches."""
    same = {"teacher_steps": 0, "attention_steps": 0, "imitation_steps": 4}
    one = distill(settings(**same, alpha=1.0, seed=2), tmp_path / "one")
    other = distill(settings(**{**same, "teacher_steps": 6}, alpha=1.0, seed=2), tmp_path / "two")
    third = distill(settings(**{**same, "teacher_steps": 6}, alpha=0.5, seed=2), tmp_path / "three")
    alone, imitation, imitating = (weights(r.path)["student"] for r in (one, other, third))
    assert all(torch.equal(alone[k], imitation[k]) for k in alone)
    assert any(not torch.equal(alone[k], imitating[k]) for k in alone)


def test_without_baseline(settings: Make, tmp_path: Path, weights: Weights, run: Run) -> None:
    few = {"teacher_steps": 2, "attention_steps": 2, "imitation_steps": 2}
    bare = distill(settings(**few, baseline=False), tmp_path / "bare")
    full = distill(settings(**few), tmp_path / "full")
    assert bare.roles() == ["teacher", "student"]
    one, other = weights(bare.path)["student"], weights(full.path)["student"]
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_teacher_from_a_checkpoint(
    settings: Make, tmp_path: Path, weights: Weights, run: Run
) -> None:
    teacher = str(run.weights("teacher"))
    made = distill(
        settings(teacher=teacher, seed=9, imitation_steps=2, baseline=False), tmp_path / "run"
    )
    given, kept = weights(run.path)["teacher"], weights(made.path)["teacher"]
    assert all(torch.equal(given[k], kept[k]) for k in given)
    # How it was trained goes along: a benchmark has to know which volumes it has seen.
    before, after = (read_checkpoint_meta(r.weights("teacher"))["training"] for r in (run, made))
    for key in ("recipe", "steps", "data", "provenance"):
        assert before[key] == after[key]
    student = read_checkpoint_meta(made.weights("student"))["training"]
    hashes = {v["sha256"] for v in student["data"]}
    own = {v["sha256"] for v in made.meta["data"]["train"]}
    assert hashes == own | {v["sha256"] for v in before["data"]}
    assert len(hashes) == 2
    assert not _rows(made, "teacher")


@pytest.mark.parametrize("what", ["mask", "matrix"])
def test_teacher_of_another_mask_is_refused(
    settings: Make, tmp_path: Path, run: Run, what: str
) -> None:
    changes: dict[str, Any] = {"mask": variable_density_lines(32, 2.0, seed=5)}
    if what == "matrix":
        changes = {"mask": variable_density_lines(36, 2.0), "matrix": 36}
    with pytest.raises(CheckpointError, match="was trained for mask"):
        distill(settings(teacher=str(run.weights("teacher")), **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_loss_that_is_not_finite_stops_the_run(settings: Make, tmp_path: Path) -> None:
    wild = settings(learning_rate=1.0, clip=1e30, warmup=0, loss="mse", teacher_steps=300)
    with pytest.raises(KdmriError, match="loss of stage 'teacher' became") as caught:
        distill(wild, tmp_path / "run")
    assert "learning_rate" in caught.value.remedy
    assert not Run(tmp_path / "run").roles()
    state = tmp_path / "run" / "state" / "teacher.safetensors"
    if state.exists():
        from safetensors.torch import load_file

        assert all(torch.isfinite(v).all() for v in load_file(state).values())


def test_mask_of_single_samples_trains_on_whole_slices(settings: Make, tmp_path: Path) -> None:
    mask = variable_density_2d((32, 32), 2.0, centre=6)
    few = {"teacher_steps": 2, "attention_steps": 2, "imitation_steps": 2, "baseline": False}
    made = distill(settings(mask=mask, **few), tmp_path / "run")
    assert load_checkpoint(made.weights("student")).mask == mask


def test_super_resolution_pair(settings: Make, tmp_path: Path) -> None:
    few = {"teacher_steps": 1, "attention_steps": 1, "imitation_steps": 1, "baseline": False}
    made = distill(settings(teacher="vdsr-11", student="vdsr-7", **few), tmp_path / "run")
    assert made.roles() == ["teacher", "student"]


def test_no_path_of_this_machine_in_a_checkpoint(run: Run, tmp_path: Path) -> None:
    for role in run.roles():
        text = json.dumps(read_checkpoint_meta(run.weights(role)))
        assert str(run.path.parent) not in text
        assert str(Path.home()) not in text
        assert str(Path(__file__).resolve().parents[3]) not in text
