from __future__ import annotations

import sys
from pathlib import Path

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


def test_distill_without_torch_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a scanner's computer, where only the base is installed."""
    import subprocess

    code = (
        "import sys; sys.modules['torch'] = None\n"
        "sys.argv = ['kdmri-edge', 'distill', '--out', sys.argv[1]]\n"
        "from kdmri_edge.cli import run; run()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        env={"PYTHONPATH": ":".join(p for p in sys.path if p), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: This needs the package 'torch'")
    assert 'pip install "kdmri-edge[train]"' in done.stderr
    assert not (tmp_path / "run").exists()
