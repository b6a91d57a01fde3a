"""The shape of the project itself."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "kdmri_edge": ROOT / "kdmri_edge",
    "kdmri_export": ROOT / "export" / "kdmri_export",
    "kdmri_bench": ROOT / "bench" / "kdmri_bench",
}


def test_modules_are_documented() -> None:
    sources = [file for folder in PACKAGES.values() for file in sorted(folder.rglob("*.py"))]
    assert len(sources) > 200
    silent = [
        str(file.relative_to(ROOT))
        for file in sources
        if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not silent


def test_wheel_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {name.split("/", 1)[1] for name in archive.namelist() if ".dist-info/" in name}
    expected = {
        f"{package}/{file.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert names == expected
    kinds = {Path(name).suffix for name in names} - {".py"}
    assert kinds <= {".toml", ".typed", ".safetensors", ".json", ".md", ".css", ".js"}
    assert {"kdmri_edge/distillation/recipes/kd-mri.toml", "kdmri_edge/py.typed"} <= names
    assert "kdmri_edge/weights/brain-4x/dccnn-d3c5.safetensors" in names
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert metadata == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
