"""Tutorials run as scripts, on small phantoms, and open as notebooks."""

from __future__ import annotations

import runpy
from pathlib import Path

import jupytext
import pytest

SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))

# What these run is tested elsewhere for every change, by commands and by the scanner's stream.
_AT_NIGHT = ("at_the_scanner", "export_and_ship_to_a_jetson")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(path, marks=[pytest.mark.nightly] if path.stem in _AT_NIGHT else [])
        for path in SCRIPTS
    ],
    ids=lambda path: path.stem,
)
def test_it_runs(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDMRI_EXAMPLE_SMALL", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runpy.run_path(str(script), run_name="__main__")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["tutorial"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_is_a_notebook_as_well(script: Path, tmp_path: Path) -> None:
    cells = jupytext.read(script).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    assert len({cell.cell_type for cell in cells}) == 2
    jupytext.write(jupytext.read(script), tmp_path / "tutorial.ipynb")
    again = jupytext.read(tmp_path / "tutorial.ipynb").cells
    assert [(cell.cell_type, cell.source) for cell in again] == [
        (cell.cell_type, cell.source) for cell in cells
    ]
