"""The wheel: what it holds, and what a package of somebody else adds to it.

The package is tests/third_party: a family of networks, a file format, an export target and its
runtime, which kdmri-edge knows by their entry points alone.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kdmri_edge.data.phantom.volumes import phantom_volume
from tests.core.conftest import TINY
from tests.core.test_api import NAMESPACES
from tests.core.test_layout import PACKAGES, ROOT


def build(source: Path, out: Path) -> Path:
    """Build a wheel with what is installed."""
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both wheels, installed into a folder that stands before everything else on the path."""
    folder = tmp_path_factory.mktemp("third-party")
    source = shutil.copytree(ROOT / "tests" / "third_party", folder / "source")
    acme = build(source, folder / "wheel")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "--no-compile", "--target", folder / "site", wheel, acme],
        check=True,
        capture_output=True,
    )
    return folder / "site"


def test_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
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
    assert kinds <= {".pyi", ".toml", ".typed", ".safetensors", ".json", ".md", ".css", ".js"}
    assert {"kdmri_edge/distillation/recipes/kd-mri.toml", "kdmri_edge/py.typed"} <= names
    assert "kdmri_edge/weights/brain-4x/dccnn-d3c5.safetensors" in names
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert metadata == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


# What the third party's users do, in one process, because starting PyTorch takes seconds.
SESSION = """
import json, sys
from pathlib import Path
import numpy as np
import kdmri_edge as ke
from kdmri_edge.cli import main
from kdmri_edge.models import PRESETS
from kdmri_edge.physics import image_to_kspace

def command(line, *words):
    main([*line.split(), *words], standalone_mode=False)

assert "acme-residual-small" in PRESETS
pair = "--teacher acme-residual-large --student acme-residual-small"
command(f"distill {pair} --out run", *sys.argv[1:])
command("export run/student.safetensors --target acme-program --precision fp16 --out program")
command("run program head.acme --undersample -o image.npy")
command("data inspect head.acme")
with ke.load("program") as network:
    volume = ke.read("head.acme")
    mask = network.mask
    kspace = image_to_kspace(volume.image) * mask.samples[:, None]
    np.save("api.npy", network.reconstruct(kspace, mask=mask))
    print(json.dumps({
        "from": ke.__file__,
        "voxel_mm": volume.voxel_mm,
        "backend": network.info.backend,
        "executed": network.info.precision_executed,
    }))
"""

MEASURE = """
import kdmri_edge as ke
from kdmri_bench.planning.settings import BenchSettings, Precision

settings = BenchSettings(precisions=(Precision.F16,), samples=1, rounds=1, warmup=0)
report = ke.benchmark(["program"], [ke.read("head.acme")], settings=settings, threads=1)
print([(row.network, row.runtime, str(row.status)) for row in report.rows])
"""


def python(site: Path, folder: Path, code: str, *arguments: str) -> str:
    """Run code with what is installed in `site`, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_code_imports_public_names_alone() -> None:
    for file in (ROOT / "tests" / "third_party").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not [name.name for name in node.names if name.name.startswith("kdmri")]
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("kdmri"):
                assert node.module in (*NAMESPACES, "kdmri_edge.errors"), file
                public = importlib.import_module(str(node.module)).__all__
                assert {name.name for name in node.names} <= set(public), file


@pytest.mark.parametrize("measured", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_package_brings_a_network_a_target_and_a_reader(
    measured: bool, site: Path, tmp_path: Path
) -> None:
    head = phantom_volume(5, slices=2, matrix=32).image.astype(np.float32)
    header = struct.pack("<4s3I3f", b"ACME", *head.shape, 4.0, 0.5, 0.25)
    (tmp_path / "head.acme").write_bytes(header + head.tobytes())
    options = [*TINY, "--no-baseline", "--set=attention_steps=0"]
    shown = python(site, tmp_path, SESSION, *options)
    assert "format: Acme images" in shown
    said = json.loads(shown.splitlines()[-1])
    assert Path(said["from"]).is_relative_to(site)
    assert said["voxel_mm"] == [4.0, 0.5, 0.25]
    assert said["backend"] == "Acme runtime"
    assert said["executed"] == "f16 convolutions, else f32"
    manifest = json.loads((tmp_path / "program" / "manifest.json").read_text())
    assert manifest["spec"]["kind"] == "acme-residual"
    assert manifest["transformed"] == {"convolutions": 4}
    by_command, by_api = np.load(tmp_path / "image.npy"), np.load(tmp_path / "api.npy")
    # the command makes k-space in another precision, and the convolutions are halves
    assert np.abs(by_command - by_api).max() < 1e-3 * head.max()
    assert np.abs(by_command - head).max() < 0.5 * head.max()
    if measured:
        rows = python(site, tmp_path, MEASURE)
        assert "('distilled student', 'Acme runtime', 'measured')" in rows
