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
HEAVY = (
    "torch",
    "lightning_fabric",
    "safetensors",
    "openvino",
    "onnx",
    "onnxruntime",
    "skimage",
    "scipy",
    "matplotlib",
    "nibabel",
)
# Modules whose whole purpose is PyTorch.
WITH_TORCH = {
    "kdmri_edge.reconstructor",
    "kdmri_edge.physics.consistency",
    "kdmri_edge.models.branches",
    "kdmri_edge.models.build",
    "kdmri_edge.models.dccnn",
    "kdmri_edge.models.features",
    "kdmri_edge.models.inherit",
    "kdmri_edge.models.stack",
    "kdmri_edge.models.vdsr",
    "kdmri_edge.distill.batches",
    "kdmri_edge.distill.engine",
    "kdmri_edge.distill.losses",
    "kdmri_edge.distill.run",
    "kdmri_edge.distill.shares",
    "kdmri_edge.distill.stage",
    "kdmri_edge.distill.state",
    "kdmri_edge.distill.validation",
    "kdmri_edge.runtime.eager",
    "kdmri_edge.runtime.torchscript",
}


def _sources() -> list[Path]:
    return sorted(file for folder in PACKAGES.values() for file in folder.rglob("*.py"))


def _module(file: Path) -> str:
    package = next(name for name, folder in PACKAGES.items() if file.is_relative_to(folder))
    parts = [package, *file.relative_to(PACKAGES[package]).with_suffix("").parts]
    return ".".join(part for part in parts if part != "__init__")


CORE = [m for m in map(_module, _sources()) if m.startswith("kdmri_edge") and "__main__" not in m]


def test_the_core_is_torch_free_where_it_says_so() -> None:
    """One interpreter imports all light modules one by one and says which one pulled what in."""
    light = [module for module in CORE if module not in WITH_TORCH]
    assert len(light) > 40
    code = (
        "import importlib, sys\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = [h for h in {HEAVY!r} if h in sys.modules]\n"
        "    assert not loaded, f'{name} imports {loaded}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_module_of_the_list_has_gone() -> None:
    assert set(CORE) >= WITH_TORCH


@pytest.mark.parametrize("file", _sources(), ids=_module)
def test_modules_are_documented_and_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)), "no docstring"


def test_core_does_not_import_what_builds_on_it() -> None:
    below = {
        "kdmri_edge": ("kdmri_export", "kdmri_bench"),
        "kdmri_export": ("kdmri_bench",),
        "kdmri_bench": (),
    }
    for file in _sources():
        forbidden = below[_module(file).partition(".")[0]]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in names:
                assert not name.startswith(forbidden or ("?",)), f"{file} imports {name}"


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
    assert kinds <= {".toml", ".typed", ".safetensors", ".json"}
    assert {"kdmri_edge/distill/recipes/kd-mri.toml", "kdmri_edge/py.typed"} <= names
    assert "kdmri_edge/weights/brain-4x/dccnn-d3c5.safetensors" in names
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert metadata == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
