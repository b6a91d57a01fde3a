"""Copies that were tuned for int8: beside the network that they stem from, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdmri_edge.distillation.run_folder import Run, tuned_for, tuned_path
from kdmri_edge.errors import BenchError, CheckpointError
from kdmri_edge.models.checkpoint import RANGES, load_checkpoint, save_checkpoint
from kdmri_edge.models.shipped import WEIGHTS, resolve, shipped_networks
from kdmri_edge.utils.files import sha256_file
from maintainer import ship_tuned as module
from maintainer.ship_tuned import main, ship_tuned

NAME = "dccnn-d3c5@brain-4x"
FLOAT = resolve(NAME)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A package with one float network."""
    folder = tmp_path / "weights"
    copy = folder / "brain-4x" / FLOAT.name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(FLOAT.read_bytes())
    index = json.loads((WEIGHTS / "index.json").read_text())
    entry = {key: value for key, value in index["networks"][NAME].items() if key != "tuned"}
    (folder / "index.json").write_text(json.dumps({**index, "networks": {NAME: entry}}))
    return folder


@pytest.fixture
def tuned(tmp_path: Path) -> Callable[..., Path]:
    """Make the folder of a run that tuned a network."""

    def make(kind: str = "int8", **changes: object) -> Path:
        run = Run(tmp_path / f"run-{kind}")
        run.path.mkdir(exist_ok=True)
        meta = {"format": 1, "status": "complete", "provenance": {"git": {"revision": "abc"}}}
        (run.path / "run.json").write_text(json.dumps(meta))
        held = load_checkpoint(FLOAT)
        training = {
            **held.training,
            RANGES: {"cascades.0.convs.0": 1.0},
            "recipe": {"name": "edge", "quantise": kind},
            "steps": {**held.training["steps"], kind: 7},
            "quantised": {"float": 2.0, "untuned": 1.0, "tuned": 1.5},
            **changes,
        }
        save_checkpoint(run.tuned(kind), replace(held, role="student", training=training))
        return run.path

    return make


def test_copies_lie_where_exports_look(root: Path, tuned: Callable[..., Path]) -> None:
    copies = ship_tuned([tuned("int8"), tuned("int8-signed")], "brain-4x", root)
    path = resolve(NAME, root)
    assert copies == [tuned_path(path, "int8"), tuned_path(path, "int8-signed")]
    assert tuned_for(path, "int8", signed=False) == copies[0]
    assert tuned_for(path, "int8", signed=True) == copies[1]
    assert tuned_for(path, "f32", signed=False) == path
    entry = shipped_networks(root)[NAME].entry["tuned"]
    assert list(entry) == ["int8", "int8-signed"]
    assert entry["int8"]["sha256"] == sha256_file(copies[0])
    assert (entry["int8"]["steps"], entry["int8"]["provenance"]["git"]["revision"]) == (7, "abc")
    copies[1].unlink()
    with pytest.raises(CheckpointError, match="missing or altered"):
        resolve(NAME, root)


@pytest.mark.parametrize(
    "changes", [{"steps": {"plain": 1, "int8": 7}}, {"data": [{"sha256": "0", "name": "x"}]}]
)
def test_another_networks_copy_is_refused(
    root: Path, tuned: Callable[..., Path], changes: dict[str, object]
) -> None:
    before = {file: file.read_bytes() for file in root.rglob("*.*")}
    with pytest.raises(BenchError, match=f"--student {NAME} --quantize int8"):
        ship_tuned([tuned("int8-signed"), tuned("int8", **changes)], "brain-4x", root)
    assert {file: file.read_bytes() for file in root.rglob("*.*")} == before


def test_a_run_without_copies_is_a_sentence(
    root: Path, tuned: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tuned())
    run.tuned("int8").unlink()
    monkeypatch.setattr(module, "WEIGHTS", root)
    result = CliRunner().invoke(main, [str(run.path), "--as", "brain-4x"])
    assert result.exit_code == 1
    assert "tuned nothing for int8. Use distill --quantize." in result.output
