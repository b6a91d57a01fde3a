"""Given networks are known by their weights, not by where their files lie."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.errors import RunError
from kdmri_edge.utils.files import read_json, write_json

Make = Callable[..., Settings]


@pytest.fixture
def teachers(settings: Make, tmp_path: Path) -> list[Path]:
    """Two teachers of the same settings, one of them of another seed."""
    few: dict[str, Any] = {"baseline": False, "distilled": False, "teacher_steps": 2}
    runs = [distill(settings(seed=n, **few), tmp_path / f"teacher-{n}") for n in range(2)]
    return [run.weights("teacher") for run in runs]


def _taught(settings: Make, teacher: Path) -> Settings:
    return settings(teacher=str(teacher), baseline=False)


def test_a_run_and_its_teacher_may_move(
    settings: Make,
    teachers: list[Path],
    distill_until: Callable[[Settings, Path, tuple[str, int]], None],
    weights: Callable[[Path], dict[str, dict[str, Any]]],
    tmp_path: Path,
) -> None:
    whole = distill(_taught(settings, teachers[0]), tmp_path / "whole")
    distill_until(_taught(settings, teachers[0]), tmp_path / "begun", ("imitation", 4))
    shutil.move(tmp_path / "begun", tmp_path / "moved")
    shutil.move(teachers[0], tmp_path / "elsewhere.safetensors")
    moved = distill(_taught(settings, tmp_path / "elsewhere.safetensors"), tmp_path / "moved")
    expected, found = weights(whole.path)["student"], weights(moved.path)["student"]
    assert all(bool((found[name] == value).all()) for name, value in expected.items())


def test_another_teacher_at_the_same_place_is_noticed(
    settings: Make, teachers: list[Path], tmp_path: Path
) -> None:
    distill(_taught(settings, teachers[0]), tmp_path / "run")
    shutil.copy(teachers[1], teachers[0])
    with pytest.raises(RunError, match="another teacher"):
        distill(_taught(settings, teachers[0]), tmp_path / "run")
    teachers[0].unlink()  # the run has its own copy
    distill(_taught(settings, teachers[0]), tmp_path / "run")


def test_runs_that_knew_their_teacher_by_its_place_go_on(
    settings: Make, teachers: list[Path], tmp_path: Path
) -> None:
    wanted = _taught(settings, teachers[0])
    run = distill(wanted, tmp_path / "run")
    meta = dict(read_json(run.path / "run.json", RunError))
    hashes = [v["sha256"] for part in ("train", "validation") for v in meta["data"][part]]
    older = wanted.fingerprint(hashes)
    assert older != meta["key"]
    write_json(run.path / "run.json", {**meta, "key": older})
    distill(wanted, run.path)
    write_json(run.path / "run.json", {**meta, "key": "another"})
    with pytest.raises(RunError, match="other settings"):
        distill(wanted, run.path)
