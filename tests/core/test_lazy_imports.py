"""What is imported when: help loads nothing heavy, and the core is torch-free where it says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdmri_edge import cli as command_line

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch",
    "triton",
    "lightning_fabric",
    "safetensors",
    "openvino",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "skimage",
    "scipy",
    "matplotlib",
    "nibabel",
    "pydicom",
    "pynetdicom",
    "twixtools",
    "cryptography",
)
# Part of the base install; the readers may import it, help may not.
NOT_FOR_HELP = (*HEAVY, "h5py")
# Modules whose whole purpose is PyTorch.
WITH_TORCH = {
    "kdmri_edge.models.reconstructor",
    "kdmri_edge.bring.trial",
    "kdmri_edge.models.adapter",
    "kdmri_edge.models.foreign_weights",
    "kdmri_edge.physics.consistency",
    "kdmri_edge.models.reparameterisation",
    "kdmri_edge.models.initialisation",
    "kdmri_edge.models.build",
    "kdmri_edge.quantisation.calibration",
    "kdmri_edge.models.dccnn",
    "kdmri_edge.models.deepinv",
    "kdmri_edge.quantisation.equalisation",
    "kdmri_edge.models.blocks",
    "kdmri_edge.models.layers",
    "kdmri_edge.models.network",
    "kdmri_edge.quantisation.fake_quantisation",
    "kdmri_edge.models.vdsr",
    "kdmri_edge.distillation.state",
    "kdmri_edge.distillation.batches",
    "kdmri_edge.quantisation.tuning",
    "kdmri_edge.distillation.request",
    "kdmri_edge.distillation.engine",
    "kdmri_edge.distillation.initial_weights",
    "kdmri_edge.distillation.losses",
    "kdmri_edge.distillation.stage_builders",
    "kdmri_edge.distillation.replay",
    "kdmri_edge.distillation.run",
    "kdmri_edge.distillation.loop",
    "kdmri_edge.distillation.optimizers",
    "kdmri_edge.distillation.stages",
    "kdmri_edge.distillation.taps",
    "kdmri_edge.runtime.backends.fused",
    "kdmri_edge.runtime.backends.pytorch",
    "kdmri_edge.runtime.backends.pt2",
    "kdmri_edge.runtime.backends.torchscript",
}
CORE = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in sorted((ROOT / "kdmri_edge").rglob("*.py"))
    if file.name != "__main__.py"
]


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


def _imported(*arguments: str) -> set[str]:
    """Run the command line in an interpreter of its own; return the heavy modules it loaded."""
    code = (
        "import sys\n"
        f"sys.argv = ['kdmri-edge', *{arguments!r}]\n"
        "from kdmri_edge.cli import run\n"
        "try:\n"
        "    run()\n"
        "except SystemExit as stopped:\n"
        "    assert stopped.code == 0, stopped.code\n"
        f"print('LOADED', *(m for m in {NOT_FOR_HELP!r} if m in sys.modules))\n"
    )
    paths = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage:" in done.stdout
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_help_imports_nothing_heavy() -> None:
    assert _imported("--help") == set()


@pytest.mark.parametrize("command", list(command_line.COMMANDS))
def test_help_of_each_command_imports_nothing_heavy(command: str) -> None:
    assert _imported(command, "--help") == set()
