"""`kdmri-edge verify`: intact bundles pass everywhere, others say what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdmri_edge.runtime.backends import registry as backends
from kdmri_edge.runtime.bundle import GOLDEN_OUTPUT
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from tests.export.networks import write_checkpoint
from tests.manifests import edit_manifest, rehash

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    weights = write_checkpoint(folder / "student.safetensors")
    return export_model(weights, ExportRecipe(target="onnx"), folder / "bundle").path


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def test_intact_bundle_passes_on_every_backend(cli: Cli, bundle: Path) -> None:
    done = cli("verify", bundle, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["passed"]
    ran = {(row["backend"], row["precision"]): row for row in found["rows"]}
    assert ran["onnxruntime", "f32"]["max_error"] < 1e-5
    assert ran["openvino", "f32"]["status"] == "passed"
    assert all(row["session"]["version"] for row in ran.values())
    assert "passed" in cli("verify", bundle).out


def test_one_backend_alone(cli: Cli, bundle: Path) -> None:
    found = json.loads(cli("verify", bundle, "--backend", "onnxruntime", "--json").out)
    assert {row["backend"] for row in found["rows"]} == {"onnxruntime"}
    cli("verify", bundle, "--backend", "torch").check_refusal("--target torchscript")


def test_changed_graph_is_refused(cli: Cli, bundle: Path) -> None:
    with (bundle / "model.onnx").open("ab") as graph:
        graph.write(b"\0")
    cli("verify", bundle).check_refusal("model.onnx", "SHA-256")


def test_missing_file_is_refused(cli: Cli, bundle: Path) -> None:
    (bundle / GOLDEN_OUTPUT).unlink()
    cli("verify", bundle).check_refusal(GOLDEN_OUTPUT, "again")


def test_bundle_without_golden_data_is_refused(cli: Cli, bundle: Path) -> None:
    (bundle / GOLDEN_OUTPUT).unlink()
    edit_manifest(bundle, lambda m: m["files"].pop(GOLDEN_OUTPUT))
    cli("verify", bundle).check_refusal(GOLDEN_OUTPUT, "Export")


def test_other_image_fails(cli: Cli, bundle: Path) -> None:
    wrong = np.load(bundle / GOLDEN_OUTPUT)
    np.save(bundle / GOLDEN_OUTPUT, wrong + 0.1 * wrong.max())
    edit_manifest(bundle, lambda m: rehash(m, bundle, GOLDEN_OUTPUT))
    done = cli("verify", bundle)
    assert done.code == 1
    assert "deviates" in done.out
    assert "Failed." in done.out


def test_absent_runtimes_are_named_and_nothing_passes(
    cli: Cli, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnxruntime", "openvino"):
        missing = backends.Backend(
            name=name, title=name,
            session="kdmri_edge.runtime.backends.onnxruntime:OnnxRuntimeSession",
            library="no_such_library", extra="onnx", devices=("cpu",), precisions=("f32",),
        )  # fmt: skip
        monkeypatch.setitem(backends.BACKENDS._rows, name, missing)
    done = cli("verify", bundle)
    assert done.code == 1
    assert 'pip install "kdmri-edge[onnx]"' in done.out
