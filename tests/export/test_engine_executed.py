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
from typing import Any

import pytest

from kdmri_edge.errors import ExportError, ParityError
from kdmri_edge.runtime.backends import run_engine
from kdmri_edge.runtime.bundle import Bundle, open_bundle
from kdmri_export import export as export_module
from kdmri_export import jobs
from kdmri_export.commands.export import _engine_line
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.tensorrt import engines
from tests.core.test_run_engine import Device, tensorrt
from tests.export.networks import write_checkpoint

Export = Callable[..., Bundle]


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Export on a machine whose TensorRT spoils images by `gain`; without cuda-python if so."""

    def make(
        gain: float = 1.0,
        *,
        cuda: bool = True,
        loose: bool = False,
        slow: str | None = None,
        precision: str = "fp32",
        out: Path | None = tmp_path / "bundle",
    ) -> Bundle:
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
            written = json.loads((folder / "manifest.json").read_text())["precision"]
            trt = tensorrt(folder / "model.onnx", gain, 0.03 if written == slow else 0.0)
            monkeypatch.setitem(sys.modules, "tensorrt", trt)
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
        for module in (engines, jobs):
            monkeypatch.setattr(module, "probe", lambda builder: None)
            monkeypatch.setattr(module, "available", lambda module: cuda)
        monkeypatch.setattr(engines, "_SAMPLES", 3)
        checkpoint = write_checkpoint(tmp_path / "student.safetensors")
        (job,) = jobs.plan_exports(
            checkpoint, targets=["trt"], builder="tensorrt", precision=precision, out=out
        )
        return job.run()

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


@pytest.mark.nightly
@pytest.mark.parametrize("slow", ["int8", "f16"])
def test_integers_that_are_no_faster_than_halves_are_reported(export: Export, slow: str) -> None:
    bundle = export(precision="int8", slow=slow)
    (record,) = bundle.manifest["engine"]["engines"]
    assert bundle.manifest["precision"] == "int8"  # what was asked for is what is there
    assert record["p50_ms"] > 0
    assert record["fp16_p50_ms"] > 0
    assert ("int8 is no faster here" in _engine_line(bundle)) is (slow == "int8")


@pytest.mark.nightly
def test_the_faster_precision_is_kept(export: Export, tmp_path: Path) -> None:
    bundle = export(precision="auto", slow="int8", out=None)
    assert bundle.manifest["precision"] == "f16"
    assert bundle.path.name == "student-trt-fp16"
    assert [path.name for path in (tmp_path / "exports").iterdir()] == ["student-trt-fp16"]


@pytest.mark.nightly
def test_integers_are_kept_where_they_are_faster(export: Export, tmp_path: Path) -> None:
    bundle = export(precision="auto", slow="f16", out=None)
    assert bundle.path.name == "student-trt-int8"
    assert [path.name for path in (tmp_path / "exports").iterdir()] == ["student-trt-int8"]


def test_integers_that_fail_their_gate_are_not_kept(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = export_module.export_model

    def fail(checkpoint: Path, recipe: ExportRecipe, out: Path, **more: Any) -> Bundle:
        if recipe.quantised:
            raise ParityError("The graph deviates.", "Tune it.")
        return usual(checkpoint, recipe, out, **more)

    monkeypatch.setattr(export_module, "export_model", fail)
    assert export(precision="auto").manifest["precision"] == "f16"


@pytest.mark.parametrize(
    ("targets", "builder", "says"),
    [
        (["openvino"], None, "target trt"),
        (["trt"], "rtx", "--builder rtx"),
        (["trt"], None, "tensorrt"),
    ],
)
def test_without_timing_no_precision_is_chosen(
    targets: list[str], builder: str | None, says: str, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "student.safetensors")
    with pytest.raises(ExportError, match=f"found out here: .*{says}.*--precision fp16"):
        jobs.plan_exports(checkpoint, targets=targets, builder=builder, precision="auto")
