from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdmri_edge.errors import MissingExtraError
from kdmri_edge.utils.extras import available, require


def test_require_returns_the_module() -> None:
    import json.decoder

    assert require("json.decoder", extra="train") is json.decoder


@pytest.mark.parametrize("module", ["surely_not_installed", "surely_not_installed.part"])
def test_missing_library_comes_with_the_pip_command(module: str) -> None:
    with pytest.raises(MissingExtraError) as caught:
        require(module, extra="openvino")
    assert "'surely_not_installed'" in caught.value.what
    assert 'pip install "kdmri-edge[openvino]"' in caught.value.remedy
    assert caught.value.exit_code == 1


def test_broken_library_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_library.py").write_text("import something_else_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_else_missing"):
        require("broken_library", extra="train")


def test_available_does_not_import() -> None:
    assert available("xml.dom.minidom")
    assert not available("surely_not_installed")
    assert not available("surely_not_installed.part")
    sys.modules.pop("this", None)
    assert available("this")
    assert "this" not in sys.modules


def test_onnx_runtime_reports_nothing(tmp_path: Path) -> None:
    """Its wheels would write an identifier into the user's home, and send reports."""
    code = (
        "import kdmri_edge.utils.extras as extras\n"
        "extras.require('onnxruntime', extra='onnx').get_available_providers()\n"
    )
    environment = {key: v for key, v in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


def without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Type a command as on a scanner's computer, where only the base is installed."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "sys.argv = ['kdmri-edge', *sys.argv[1:]]\n"
        "from kdmri_edge.cli import run; run()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={"PYTHONPATH": ":".join(p for p in sys.path if p), "PATH": "", "HOME": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )


def test_distill_without_torch_says_what_to_install(tmp_path: Path) -> None:
    done = without_torch("distill", "--out", tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: This needs the package 'torch'")
    assert 'pip install "kdmri-edge[train]"' in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_network_of_the_package_without_torch_is_one_sentence(tmp_path: Path) -> None:
    np.save(tmp_path / "T1w.npy", np.ones((1, 256, 256), np.float32))
    command = ("run", "dccnn-d3c5@brain-4x", tmp_path / "T1w.npy", "-o", tmp_path / "out.npy")
    done = without_torch(*command, "--undersample")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: This needs the package 'torch'")
    assert 'pip install "kdmri-edge[train]" or, without PyTorch, give a bundle' in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("command", [("models",), ("--help",), ("data", "inspect", "T1w.npy")])
def test_what_needs_no_torch_does_without(command: tuple[str, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "T1w.npy", np.ones((1, 16, 16), np.float32))
    place = [tmp_path / word if word.endswith(".npy") else word for word in command]
    done = without_torch(*place)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not available("torch"), reason="torch is not installed")
@pytest.mark.parametrize(("built", "said"), [(None, "built for CPUs alone"), ("13.0", "no CUDA")])
def test_a_gpu_that_pytorch_cannot_use_is_explained(
    monkeypatch: pytest.MonkeyPatch, built: str | None, said: str
) -> None:
    import torch

    from kdmri_edge.utils.cuda import no_cuda

    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.version, "hip", None)
    error = no_cuda("Or use the CPU.")
    assert said in error.what
    assert error.remedy.endswith("Or use the CPU.")
    assert ("Install a build" in error.remedy) == (built is None)
