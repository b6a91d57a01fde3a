"""`--builder tensorrt` on a machine with a GPU, stood in for as in core/test_run_engine.py.

What builds the engine writes a file; what runs it is the bundle's script, on a stand-in that moves
real bytes and computes with ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdmri_edge.errors import ExportError
from kdmri_edge.runtime.backends import run_engine
from kdmri_edge.runtime.bundle import Bundle, open_bundle
from kdmri_export.commands.export import _engine_line
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.tensorrt import engines
from kdmri_export.targets.tensorrt.engines import EngineRequest
from tests.core.test_run_engine import Device, tensorrt
from tests.export.networks import write_checkpoint

Export = Callable[..., Bundle]


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Export on a machine whose TensorRT spoils images by `gain`; without cuda-python if so."""

    def make(gain: float = 1.0, *, cuda: bool = True, loose: bool = False) -> Bundle:
        def process(arguments: list[str]) -> subprocess.CompletedProcess[str]:
            script, folder = Path(arguments[0]), Path(arguments[2])
            if script.name == "build_engine.py":
                (folder / "model.tensorrt.engine").write_bytes(b"engine")
                record = {
                    "engine": "model.tensorrt.engine", "builder": "tensorrt",
                    "engine_built": True, "engine_executed": False,
                }  # fmt: skip
                (folder / "model.tensorrt.json").write_text(json.dumps(record))
                return subprocess.CompletedProcess(arguments, 0, json.dumps(record), "")
            assert script == folder / "run_engine.py"
            monkeypatch.setitem(sys.modules, "tensorrt", tensorrt(folder / "model.onnx", gain))
            monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", Device().module())
            if loose:  # so that the comparison with ONNX Runtime has to find it
                manifest = json.loads((folder / "manifest.json").read_text())
                manifest["parity"]["tolerance"]["max_error"] = 1.0
                (folder / "manifest.json").write_text(json.dumps(manifest))
            out, said = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
                code = run_engine.main(arguments[1:])
            return subprocess.CompletedProcess(arguments, code, out.getvalue(), said.getvalue())

        monkeypatch.setattr(engines, "_process", process)
        monkeypatch.setattr(engines, "probe", lambda builder: None)
        monkeypatch.setattr(engines, "available", lambda module: cuda)
        monkeypatch.setattr(engines, "_SAMPLES", 3)
        checkpoint = write_checkpoint(tmp_path / "student.safetensors")
        recipe = ExportRecipe(target="trt", engines=EngineRequest(builder="tensorrt"))
        return export_model(checkpoint, recipe, tmp_path / "bundle")

    return make


def test_engine_is_run_compared_and_recorded(export: Export) -> None:
    bundle = export()
    engine = open_bundle(bundle.path).manifest["engine"]
    assert engine["built"]
    assert engine["executed"]
    (record,) = engine["engines"]
    assert record["engine_executed"]
    assert record["device"] == "Stand-in"
    assert record["device_capability"] == "sm86"
    assert record["cuda_driver"] == "13.1"
    assert record["p50_ms"] > 0
    assert 0 <= record["max_error"]["onnxruntime"] < 1e-6
    assert record["max_error"]["pytorch"] < 1e-5
    beside = json.loads((bundle.path / "model.tensorrt.json").read_text())
    assert beside == record
    assert _engine_line(bundle) == "engine: built and executed (model.tensorrt.engine)"
    assert str(bundle.path.parent) not in json.dumps(engine)


@pytest.mark.parametrize(("loose", "says"), [(False, "than PyTorch"), (True, "than ONNX Runtime")])
def test_engine_of_another_image_leaves_no_bundle(
    loose: bool, says: str, export: Export, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=says + ".*--builder none"):
        export(1.01, loose=loose)
    assert not (tmp_path / "bundle").exists()


def test_without_cuda_python_it_is_built_and_says_that_it_has_not_run(export: Export) -> None:
    bundle = export(cuda=False)
    engine = bundle.manifest["engine"]
    assert engine["built"]
    assert not engine["executed"]
    assert "cuda-python" in _engine_line(bundle)
