"""A network of the package exports straight away, under its own name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdmri_edge.cli import main
from kdmri_edge.errors import ModelError
from kdmri_edge.models.shipped import shipped_networks
from kdmri_edge.runtime.bundle import open_bundle

REFERENCE = "dccnn-d3c5@brain-4x"


def test_a_reference_exports_to_onnx_and_passes_parity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["export", REFERENCE, "--target", "onnx", "--json"])
    assert result.exception is None, result.output
    (made,) = json.loads(result.stdout)
    # not beside the weights: the package may be read-only
    assert Path(made["bundle"]) == Path("exports") / f"{REFERENCE}-onnx"
    assert made["parity"]["passed"] is True
    manifest = open_bundle(tmp_path / made["bundle"]).manifest
    assert manifest["checkpoint_sha256"] == shipped_networks()[REFERENCE].entry["sha256"]


def test_an_unknown_reference_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["export", "dccnn-d3c5@brain-9x", "--target", "onnx"])
    assert isinstance(result.exception, ModelError)
    assert REFERENCE in str(result.exception)
    assert list(tmp_path.iterdir()) == []
