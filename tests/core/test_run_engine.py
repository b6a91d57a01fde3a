"""The script that runs an engine on a device, with the device's libraries stood in for.

`tensorrt` and `cuda-python` are absent on most machines. The stand-ins here move real bytes between
"device" buffers and compute with ONNX Runtime through the addresses that the script set, so that a
wrong address, size, direction or order of calls gives a wrong image.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from kdmri_edge.errors import BackendError, BundleError
from kdmri_edge.runtime.backends import run_engine
from kdmri_edge.runtime.backends.run_engine import main
from kdmri_edge.runtime.bundle import (
    GOLDEN_INPUT,
    GOLDEN_OUTPUT,
    MANIFEST,
    open_bundle,
    write_manifest,
)
from kdmri_edge.runtime.session import open_session
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.tensorrt import build_engine
from tests.export.networks import write_checkpoint
from tests.manifests import edit_manifest


class Mode(Enum):
    INPUT = 0
    OUTPUT = 1


class Device:
    """Host memory that plays the device's."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}

    def module(self) -> ModuleType:
        cuda = ModuleType("cuda.bindings.runtime")
        kinds = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

        def malloc(size: int) -> tuple[int, int]:
            buffer = ctypes.create_string_buffer(size)
            self.memory[ctypes.addressof(buffer)] = buffer
            return 0, ctypes.addressof(buffer)

        def copy(there: int, here: int, size: int, kind: int, stream: int) -> tuple[int]:
            on_device = there if kind == 1 else here
            if on_device not in self.memory or size > len(self.memory[on_device]):
                return (1,)
            ctypes.memmove(there, here, size)
            return (0,)

        def free(address: int) -> tuple[int]:
            del self.memory[address]
            return (0,)

        properties = SimpleNamespace(name=b"Stand-in", major=8, minor=6)
        for name, value in {
            "cudaMemcpyKind": kinds,
            "cudaMalloc": malloc,
            "cudaFree": free,
            "cudaMemcpyAsync": copy,
            "cudaStreamCreate": lambda: (0, 7),
            "cudaStreamSynchronize": lambda stream: (0,),
            "cudaDriverGetVersion": lambda: (0, 13010),
            "cudaRuntimeGetVersion": lambda: (0, 12060),
            "cudaGetDeviceProperties": lambda number: (0, properties),
        }.items():
            setattr(cuda, name, value)
        return cuda


class Context:
    def __init__(self, session: Any, gain: float, pause: float) -> None:
        self.session, self.gain, self.pause = session, gain, pause
        self.address: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return list(shape) == self.session.get_inputs()[0].shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.address[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        time.sleep(self.pause)
        size = int(np.prod(self.shape)) * 4
        given = ctypes.string_at(self.address["zero_filled"], size)
        x = np.frombuffer(given, np.float32).reshape(self.shape)
        image = self.session.run(None, {"zero_filled": x})[0] * np.float32(self.gain)
        ctypes.memmove(self.address["reconstruction"], image.tobytes(), size)
        return True


def tensorrt(graph: Path, gain: float, pause: float = 0.0) -> ModuleType:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    names = ["zero_filled", "reconstruction"]
    engine = SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=names.__getitem__,
        get_tensor_mode=lambda name: Mode.INPUT if name == names[0] else Mode.OUTPUT,
        create_execution_context=lambda: Context(session, gain, pause),
    )

    class Logger:
        ERROR = 1

        def __init__(self, level: int) -> None:
            pass

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Logger) -> None:
            pass

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            trt.host_code = self.engine_host_code_allowed  # type: ignore[attr-defined]
            return engine if content == b"engine" else None

    trt = ModuleType("tensorrt")
    for name, value in {
        "__version__": "10.3.0", "Logger": Logger, "Runtime": Runtime, "TensorIOMode": Mode,
        "__spec__": SimpleNamespace(name="tensorrt"),
    }.items():  # fmt: skip
        setattr(trt, name, value)
    return trt


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    weights = write_checkpoint(folder / "student.safetensors")
    return export_model(weights, ExportRecipe(target="trt"), folder / "bundle").path


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(exported, tmp_path / "bundle"))
    (path / "model.tensorrt.engine").write_bytes(b"engine")
    (path / "model.tensorrt.json").write_text(json.dumps({"builder": "tensorrt"}))
    return path


@pytest.fixture
def machine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Device]:
    """Make a machine with a GPU; `gain` spoils its images."""

    def make(gain: float = 1.0) -> Device:
        device = Device()
        monkeypatch.setitem(sys.modules, "tensorrt", tensorrt(bundle / "model.onnx", gain))
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", device.module())
        return device

    return make


def test_golden_output_and_a_row_of_the_benchmark(
    bundle: Path,
    machine: Callable[..., Device],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine()
    (bundle / "driver").write_text("NVRM version: a driver\nGCC version: x\n")
    monkeypatch.setattr(run_engine, "DRIVER", bundle / "driver")
    assert main(["--bundle", str(bundle), "--samples", "5", "--warmup", "1"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["runtime"] == "TensorRT"
    assert row["difference"]["max_range_normalised"] < 1e-6
    assert row["latency"]["samples"] == 5
    assert row["latency"]["p99_ms"] is None
    assert row["latency"]["min_ms"] <= row["latency"]["p50_ms"] <= row["latency"]["p90_ms"]
    assert row["session"]["device"] == "Stand-in"
    assert row["session"]["provider"] == "sm86"
    assert row["machine"]["cuda_driver"] == "13.1"
    assert row["machine"]["cuda_runtime"] == "12.6"
    assert row["machine"]["driver"] == "NVRM version: a driver"


def test_row_joins_the_report(
    bundle: Path, machine: Callable[..., Device], capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import fields

    from kdmri_bench.results.schema import Row, Status

    machine()
    assert main(["--bundle", str(bundle), "--samples", "2", "--warmup", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    known = {item.name for item in fields(Row)}
    row = Row(**{**{k: v for k, v in found.items() if k in known}, "status": Status.MEASURED})
    assert row.key == "student/tensorrt-f32"
    assert set(found) - known == {"about", "engine_sha256", "machine"}


def test_other_image_is_refused(
    bundle: Path, machine: Callable[..., Device], capsys: pytest.CaptureFixture[str]
) -> None:
    machine(gain=1.01)
    assert main(["--bundle", str(bundle), "--samples", "1"]) == 1
    shown = capsys.readouterr()
    assert "another image than PyTorch" in shown.err
    assert shown.out == ""


def test_session_of_a_bundle(bundle: Path, machine: Callable[..., Device]) -> None:
    device = machine()
    # the engine came after the export, so it is not among the manifest's files
    session = open_session(bundle, backend="tensorrt")
    given, wanted = (np.load(bundle / name) for name in (GOLDEN_INPUT, GOLDEN_OUTPUT))
    first = session.run(given)
    np.testing.assert_allclose(first, wanted, atol=1e-5)
    kept = first.copy()
    session.run(2 * given)
    np.testing.assert_array_equal(first, kept)
    assert len(device.memory) == 2  # reused, not allocated anew
    assert session.info.device == "Stand-in"
    with pytest.raises(BackendError, match="matrix"):
        session.run(given[:, :, :16])


def test_a_resident_query_copies_nothing(bundle: Path, machine: Callable[..., Device]) -> None:
    device = machine()
    session = open_session(bundle, backend="tensorrt")
    given, wanted = (np.load(bundle / name) for name in (GOLDEN_INPUT, GOLDEN_OUTPUT))
    query = session.resident(given)
    assert query is not None
    (address,) = (a for a, b in device.memory.items() if a != session._engine.buffers[  # type: ignore[attr-defined]
        "zero_filled"][0])  # fmt: skip
    ctypes.memset(address, 0, wanted.nbytes)
    sys.modules["cuda.bindings.runtime"].cudaMemcpyAsync = None  # type: ignore[attr-defined]
    query()
    image = np.frombuffer(ctypes.string_at(address, wanted.nbytes), np.float32)
    np.testing.assert_allclose(image.reshape(wanted.shape), wanted, atol=1e-5)


@pytest.mark.parametrize("precision", ["f16", "int8"])
def test_a_session_says_what_its_graph_is_written_in(
    bundle: Path, machine: Callable[..., Device], precision: str
) -> None:
    machine()
    edit_manifest(bundle, lambda m: m.update(precision=precision, run_precision=precision))
    executed = open_session(bundle, backend="tensorrt").info.precision_executed
    assert executed == f"{precision} convolutions, else f32, strongly typed"
    with pytest.raises(BackendError, match="written in"):
        open_session(bundle, backend="tensorrt", precision="f32")


def test_a_float_engine_is_not_passed_off_as_integers(
    bundle: Path, machine: Callable[..., Device]
) -> None:
    machine()
    with pytest.raises(BackendError, match="--precision int8"):
        open_session(bundle, backend="tensorrt", precision="int8")


def test_an_engine_that_is_built_anew_belongs_to_the_bundle(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export's own engine has its hash in the manifest; the device's takes its place."""
    (bundle / "model.tensorrt.engine").write_bytes(b"of the workstation")
    write_manifest(bundle, {k: v for k, v in read_manifest(bundle).items() if k != "files"})
    monkeypatch.setattr(build_engine, "build", lambda *_: b"of the device")
    stand_in = ModuleType("tensorrt")
    stand_in.__version__ = "10.3.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in)
    record = build_engine.write_engine(bundle, "tensorrt", None, (1, 1, 1), 64)
    assert record["engine"] == "model.tensorrt.engine"
    assert (bundle / "model.tensorrt.engine").read_bytes() == b"of the device"
    open_bundle(bundle)  # nothing in it counts as altered
    (bundle / "model.tensorrt.engine").write_bytes(b"tampered")
    with pytest.raises(BundleError, match="SHA-256"):
        open_bundle(bundle)


def read_manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return found


def test_engine_that_does_not_load(
    bundle: Path, machine: Callable[..., Device], capsys: pytest.CaptureFixture[str]
) -> None:
    machine()
    (bundle / "model.tensorrt.engine").write_bytes(b"of another machine")
    assert main(["--bundle", str(bundle)]) == 1
    assert "on this device" in capsys.readouterr().err
    with pytest.raises(BackendError, match="does not load"):
        open_session(bundle, backend="tensorrt")


def machine_of_rtx(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built: str
) -> None:
    """A machine with TensorRT-RTX 1.7.1 and a GPU, and an engine in the bundle."""
    trt = tensorrt(bundle / "model.onnx", 1.0)
    trt.__version__ = "1.7.1"  # type: ignore[attr-defined]
    known = ("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
    trt.ComputeCapability = SimpleNamespace(  # type: ignore[attr-defined]
        __members__=dict.fromkeys(known)
    )
    cuda = Device().module()
    own = SimpleNamespace(name=b"NVIDIA H100", major=capability[0], minor=capability[1])
    monkeypatch.setattr(cuda, "cudaGetDeviceProperties", lambda number: (0, own))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    (bundle / f"model.{built}.engine").write_bytes(b"engine")
    record = {"builder": "tensorrt_rtx", "version": "1.7.1", "compute_capability": built}
    (bundle / f"model.{built}.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("capability", "says"),
    [
        ((9, 0), ["NVIDIA H100, sm90", "sm75, sm80, sm86, sm89, sm120, sm121", "TensorRT here"]),
        ((8, 9), ["built for sm86", "is sm89", "--compute-capability sm89"]),
        ((8, 6), []),
    ],
)
def test_a_gpu_that_the_runtime_does_not_know_is_told_so(
    capability: tuple[int, int],
    says: list[str],
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine_of_rtx(bundle, monkeypatch, capability, "sm86")
    code = main(["--bundle", str(bundle), "--builder", "rtx", "--samples", "1", "--warmup", "0"])
    said = capsys.readouterr().err
    assert code == (1 if says else 0)
    for words in says:
        assert words in said
    assert "on this device" not in said  # another build would not help
    if says:
        with pytest.raises(BackendError, match=r"doctor"):
            open_session(bundle, backend="tensorrt-rtx")


def test_an_engine_of_another_version_names_both(
    bundle: Path, machine: Callable[..., Device], capsys: pytest.CaptureFixture[str]
) -> None:
    machine()
    (bundle / "model.tensorrt.engine").write_bytes(b"of TensorRT 10.0")
    record = {"builder": "tensorrt", "version": "10.0.1"}
    (bundle / "model.tensorrt.json").write_text(json.dumps(record))
    assert main(["--bundle", str(bundle)]) == 1
    said = capsys.readouterr().err
    assert "TensorRT 10.0.1 built it, and this is 10.3.0" in said
    assert "--version-compatible" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"version_compatible": False}, "is not version-compatible"),
        ({"sha256": "0" * 64}, "not what its record describes"),
    ],
)
def test_the_lean_runtime_runs_version_compatible_engines_alone(
    change: dict[str, Any],
    says: str,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lean = tensorrt(bundle / "model.onnx", 1.0)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # the full one is not installed
    monkeypatch.setitem(sys.modules, "tensorrt_lean", lean)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", Device().module())
    digest = hashlib.sha256(b"engine").hexdigest()
    record = {"builder": "tensorrt", "version_compatible": True, "sha256": digest, **change}
    (bundle / "model.tensorrt.json").write_text(json.dumps(record))
    arguments = ["--bundle", str(bundle), "--samples", "1", "--warmup", "0"]
    assert main([*arguments, "--lean"]) == (1 if says else 0)
    shown = capsys.readouterr()
    assert says in shown.err
    if not says:
        assert json.loads(shown.out)["session"]["backend"] == "TensorRT lean"
        assert lean.host_code  # the engine's own runtime is code, and may be loaded
        assert main(arguments) == 1
        assert "tensorrt cannot be imported" in capsys.readouterr().err
        assert main([*arguments, "--lean", "--builder", "rtx"]) == 1


def test_code_in_other_engines_is_not_loaded(
    bundle: Path, machine: Callable[..., Device], capsys: pytest.CaptureFixture[str]
) -> None:
    machine()
    assert main(["--bundle", str(bundle), "--samples", "1", "--warmup", "0"]) == 0
    assert sys.modules["tensorrt"].host_code is False


def test_no_engine(
    exported: Path, machine: Callable[..., Device], capsys: pytest.CaptureFixture[str]
) -> None:
    machine()
    assert main(["--bundle", str(exported)]) == 1
    assert "build_engine.py" in capsys.readouterr().err
