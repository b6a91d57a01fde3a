"""The commands of the README's section "Your own network" run as they are written."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from kdmri_bench import benchmark
from kdmri_bench.planning import settings
from kdmri_edge.cli import main
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.models.adapter import call
from kdmri_edge.models.permission import allow_code
from tests.bench.test_readme_commands import README, ROOT, ours

_, _, SECTION = README.partition("\n## Your own network\n")
SECTION = SECTION.partition("\n## ")[0]
COMMANDS = ours(SECTION)
# Steps and a matrix that only show that it works.
SMALL = (
    *("--matrix=48", "--threads=1", "--accelerator=cpu", "--set=teacher_steps=4"),
    *("--set=imitation_steps=4", "--set=batches.size=2", "--set=optim.warmup=1"),
)


def test_the_section_is_short() -> None:
    assert len(SECTION.strip().splitlines()) <= 15
    assert len(README.splitlines()) <= 180
    assert [command.split()[1] for command in COMMANDS] == ["distill", "export", "export", "bench"]


def test_the_module_is_small_and_knows_nothing_of_this_library() -> None:
    (file,) = {ROOT / found for found in re.findall(r"'([\w/]+\.py):", SECTION)}
    source = file.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 40
    assert "import kdmri" not in source


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the example, volumes, and weights of the example's own training."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KDMRI_EDGE_CODE", "")
    place = tmp_path / "desk"
    shutil.copytree(ROOT / "examples", place / "examples")
    (place / "DIR").mkdir()
    for index in range(3):
        image = phantom_volume(5, slices=3, matrix=48, index=index).image
        np.save(place / "DIR" / f"sub-{index:02d}_T1w.npy", image)
    monkeypatch.chdir(place)
    module = call(allow_code("examples/own_network/unet.py:UNet?width=16"))
    torch.save(module.state_dict(), "unet.pt")
    monkeypatch.setenv("KDMRI_EDGE_CODE", "")
    return place


def run(command: str, *more: str) -> str:
    done = CliRunner().invoke(main, [*shlex.split(command)[1:], *more], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_train_distil_and_export(desk: Path) -> None:
    distill, export, load, _ = COMMANDS
    run(distill, *SMALL)
    made = run(export).splitlines()[0]
    manifest = json.loads((desk / made / "manifest.json").read_text())
    assert manifest["precision"] == "int8"
    assert manifest["spec"]["reference"] == "unet.py:UNet?width=4"
    loaded = run(load).splitlines()[0]
    manifest = json.loads((desk / loaded / "manifest.json").read_text())
    assert manifest["spec"]["reference"] == "unet.py:UNet?width=16"
    leaked = [p for p in desk.rglob("*.json") if str(desk) in p.read_text()]
    assert not leaked, "paths of a machine in what may be published"


@pytest.mark.nightly  # a process for each network in each runtime
def test_and_bench(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distill, *_, bench = COMMANDS
    quick = partial(
        settings.BenchSettings, samples=2, warmup=1, rounds=1, end_to_end=0, every_way=False,
        precisions=(settings.Precision.F32,), peaks_s=0,
    )  # fmt: skip
    monkeypatch.setattr(settings, "QUICK", quick())
    monkeypatch.setattr(settings, "USUAL", (settings.Precision.F32,))
    monkeypatch.setattr(benchmark, "load_average", lambda: 0.0)
    run(distill, *SMALL)
    report = json.loads(run(bench, "--json", "--usual-only"))
    measured = {(r["role"], r["runtime"]) for r in report["rows"] if r["status"] == "measured"}
    runtimes = ("PyTorch", "TorchScript", "ONNX Runtime", "OpenVINO")
    assert measured >= {(role, name) for role in ("teacher", "student") for name in runtimes}
