from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kdmri_edge.distillation.run_folder import Run, newest_run, open_run
from kdmri_edge.errors import RunError


def _make(path: Path, *roles: str, age: float = 0, meta: object = None) -> Run:
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(meta or {"format": 1}))
    for role in roles:
        file = path / f"{role}.safetensors"
        file.write_bytes(b"")
        os.utime(file, (1_000_000 - age, 1_000_000 - age))
    return Run(path)


def test_newest_run_goes_by_its_weights(tmp_path: Path) -> None:
    _make(tmp_path / "z-old", "teacher", "plain", "student", age=500)
    newest = _make(tmp_path / "a-new", "student", age=1)
    _make(tmp_path / "just-started")
    (tmp_path / "not-a-run").mkdir()
    assert newest_run(tmp_path) == newest


def test_no_run(tmp_path: Path) -> None:
    _make(tmp_path / "just-started")
    for root in (tmp_path, tmp_path / "none"):
        with pytest.raises(RunError, match="no finished run") as caught:
            newest_run(root)
        assert "kdmri-edge distill" in caught.value.remedy


def test_roles_come_in_order(tmp_path: Path) -> None:
    run = _make(tmp_path / "run", "student", "teacher")
    assert open_run(run.path).roles() == ["teacher", "student"]
    assert run.weights("student") == tmp_path / "run" / "student.safetensors"
    with pytest.raises(RunError, match="no finished plain student") as caught:
        run.weights("plain")
    assert f"--resume --out {run.path}" in caught.value.remedy


@pytest.mark.parametrize(
    "meta", [{"format": 0}, [1], {"format": "one"}, {"status": "complete"}, {"format": None}]
)
def test_unknown_formats(tmp_path: Path, meta: object) -> None:
    _make(tmp_path / "run", meta=meta)
    with pytest.raises(RunError, match=r"is damaged: it names no format") as caught:
        open_run(tmp_path / "run")
    assert "Update" not in caught.value.remedy


def test_a_newer_format(tmp_path: Path) -> None:
    _make(tmp_path / "run", meta={"format": 2})
    with pytest.raises(RunError, match="format 2, which a newer kdmri-edge wrote") as caught:
        open_run(tmp_path / "run")
    assert caught.value.remedy == "Update kdmri-edge."


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        open_run(tmp_path / "none")
    with pytest.raises(RunError, match=r"no run\.json"):
        open_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match="not readable JSON"):
        open_run(tmp_path)
