"""Building engines beside a graph: each in a process of its own, since builders can crash."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import ExportError
from kdmri_edge.runtime.deviation import Tolerance, compare
from kdmri_edge.utils.extras import available
from kdmri_edge.utils.files import write_json
from kdmri_export.targets.tensorrt import build_engine
from kdmri_export.targets.tensorrt.build_engine import BF16_FROM, MODULES

__all__ = [
    "BATCHES",
    "BUILDERS",
    "RTX_DEFAULT",
    "TORCH_TENSORRT",
    "EngineRequest",
    "build_engines",
    "builder_module",
    "faster_in_fp16",
    "known_capabilities",
    "named_capabilities",
    "probe",
    "run_engines",
    "without_bf16",
]

TORCH_TENSORRT: Final = "torch-tensorrt"
BUILDERS: Final = ("auto", "none", *MODULES, TORCH_TENSORRT)
BATCHES: Final = (1, 4, 16)
"""Smallest, usual and largest batch of an engine for a dynamic graph."""

RTX_DEFAULT: Final = ("sm86", "sm89", "sm120")
"""GPUs that TensorRT-RTX builds for unless others are named: Ampere, Ada and Blackwell."""

_SECONDS: Final = 3600
# Queries that an engine is timed with when it is built.
_SAMPLES: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    """Which engines to build.

    Attributes:
        builder: One of `BUILDERS`; "auto" takes TensorRT where it and a GPU are there.
        compute_capabilities: For "rtx": "sm86", ...; empty builds for the GPU that is there.
        required: Refuse the export if no engine can be built.
    """

    builder: str = "none"
    compute_capabilities: tuple[str, ...] = ()
    required: bool = False


def builder_module(builder: str) -> str:
    """Return the Python package of a builder."""
    return "torch_tensorrt" if builder == TORCH_TENSORRT else MODULES[builder]


def probe(builder: str) -> str | None:
    """Try a builder in a process of its own.

    Returns:
        Why it does not work here, or None where it does.
    """
    module = builder_module(builder)
    if not available(module):
        return f"{module} is not installed"
    if builder == TORCH_TENSORRT:
        done = _process(["-c", f"import {module}"])
        return None if done.returncode == 0 else f"{module} does not work here: {_reason(done)}"
    code = f"import {module} as t; assert t.Builder(t.Logger(t.Logger.ERROR)) is not None"
    if builder == "tensorrt":  # TensorRT-RTX builds without a GPU
        code += "; assert t.Runtime(t.Logger(t.Logger.ERROR)) is not None"
    done = _process(["-c", code])
    return None if done.returncode == 0 else f"{module} does not work here: {_reason(done)}"


def known_capabilities() -> list[str]:
    """Return the GPUs that the installed TensorRT-RTX builds for; empty where there is none."""
    if not available(MODULES["rtx"]):
        return []
    done = _process([build_engine.__file__, "--compute-capability", "list"])
    return done.stdout.split() if done.returncode == 0 else []


def named_capabilities(names: Sequence[str]) -> tuple[str, ...]:
    """Return the GPUs that a user names for TensorRT-RTX, before anything is exported for them.

    Args:
        names: "sm86", ...; "all" stands for all that the installed builder knows.

    Raises:
        ExportError: the installed builder knows no such GPU. Where none is installed, the export
            itself says so.
    """
    if not names:
        return ()
    known = known_capabilities()
    wanted = tuple(dict.fromkeys(n for name in names for n in (known if name == "all" else [name])))
    unknown = [name for name in wanted if known and name not in known]
    if unknown:
        raise ExportError(
            f"The installed TensorRT-RTX builds for no {', '.join(unknown)}.",
            f"It builds for {', '.join(known)}; for other GPUs build on the device, with TensorRT.",
        )
    return wanted


def without_bf16(capabilities: Sequence[str]) -> list[str]:
    """Return those of some compute capabilities, "sm86", ..., that have no bf16 arithmetic."""
    numbers = {name: name.removeprefix("sm") for name in capabilities}
    return [name for name, own in numbers.items() if own.isdigit() and int(own) < BF16_FROM]


def faster_in_fp16(engine: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return p50 in ms of an int8 engine and of fp16's, where the former is not the faster.

    Args:
        engine: `engine` of an int8 bundle's manifest.
    """
    for record in engine["engines"]:
        own, other = record.get("p50_ms"), record.get("fp16_p50_ms")
        if own is not None and other is not None and other <= own:
            return float(own), float(other)
    return None


def _process(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run Python; a process that hangs ends like one that failed."""
    command = [sys.executable, *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        said = f"the process was still busy after {_SECONDS} s"
        return subprocess.CompletedProcess(command, 1, "", said)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"the process was ended by signal {-done.returncode}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("Error: ") if lines else f"exit status {done.returncode}"


def build_engines(
    folder: Path,
    request: EngineRequest,
    *,
    dynamic: bool,
    checkpoint: Path,
    dc: str,
    precision: str,
) -> dict[str, Any]:
    """Build what is asked for, with the bundle's own build_engine.py.

    Args:
        folder: The bundle in the making.
        request: Which engines.
        dynamic: Whether the graph takes any batch.
        checkpoint: The network, for Torch-TensorRT, which does not read the graph.
        dc: Form of data consistency, for the same.
        precision: Of the convolutions, for the same.

    Returns:
        For the manifest: `built`; `executed`, which is false until the engine has run on its
        device; `reason`, why none was built; and `engines`, a record of each.

    Raises:
        ExportError: An engine is required or was asked for by name, and cannot be built.
    """
    builder = "tensorrt" if request.builder == "auto" else request.builder
    if request.compute_capabilities and builder != "rtx":
        raise ExportError(
            "Engines for other GPUs are built by TensorRT-RTX alone.", "Add --builder rtx."
        )
    reason = "none was asked for" if builder == "none" else probe(builder)
    if reason is not None:
        if request.required or request.builder not in ("auto", "none"):
            raise ExportError(
                f"No engine can be built: {reason}.",
                "Build it on the device with the bundle's build_engine.py, or choose another"
                " --builder.",
            )
        return {"built": False, "executed": False, "reason": reason, "engines": []}
    if builder == TORCH_TENSORRT:
        module = "kdmri_export.targets.tensorrt.torch_program"
        engines = [_record(["-m", module, str(checkpoint), str(folder), dc, precision])]
    else:
        engines = [
            _build(folder, builder, capability, dynamic)
            for capability in request.compute_capabilities or (None,)
        ]
    executed = all(engine["engine_executed"] for engine in engines)
    return {"built": True, "executed": executed, "reason": None, "engines": engines}


def run_engines(
    folder: Path, engine: dict[str, Any], wanted: NDArray[np.float32], tolerance: Tolerance
) -> dict[str, Any]:
    """Run what TensorRT built for this machine's GPU, with the bundle's own run_engine.py.

    Args:
        folder: The bundle in the making; its manifest is written already.
        engine: From `build_engines`.
        wanted: What ONNX Runtime makes of the golden input, from the same graph.
        tolerance: How far the engine's image may be from it.

    Returns:
        `engine`, with GPU, driver, versions, latency and deviations in the records of what ran.
        Engines for other GPUs stay as they are.

    Raises:
        ExportError: The engine does not run, or gives another image.
    """
    here = MODULES["tensorrt"]
    if not any(record["builder"] == here for record in engine["engines"]):
        return engine
    if not available("cuda"):
        return {**engine, "reason": "it has not run: cuda-python is not installed"}
    records = [
        _ran(folder, record, wanted, tolerance) if record["builder"] == here else record
        for record in engine["engines"]
    ]
    executed = all(record["engine_executed"] for record in records)
    return {**engine, "executed": executed, "engines": records}


def _ran(
    folder: Path, record: dict[str, Any], wanted: NDArray[np.float32], tolerance: Tolerance
) -> dict[str, Any]:
    """Run one engine; return its record with what came of it, written beside the engine too."""
    remedy = "Export with --builder none, and build and check it on the device."
    file = folder / record["engine"]
    with tempfile.TemporaryDirectory() as place:
        image = Path(place) / "image.npy"
        done = _process(
            [
                str(folder / "run_engine.py"), "--bundle", str(folder), "--engine", str(file),
                "--samples", str(_SAMPLES), "--image", str(image),
            ]
        )  # fmt: skip
        if done.returncode != 0:
            raise ExportError(f"The engine does not run here: {_reason(done)}.", remedy)
        row = json.loads(done.stdout)
        figures = compare(np.load(image), wanted)
    if figures.exceeded(tolerance):
        raise ExportError(
            f"The engine gives another image than ONNX Runtime (max error {figures.max_error:.2g},"
            f" limit {tolerance.max_error:.2g}).",
            remedy,
        )
    ran = {
        **record,
        "engine_executed": True,
        "device": row["session"]["device"],
        "device_capability": row["session"]["provider"],
        **row["machine"],
        "p50_ms": row["latency"]["p50_ms"],
        "max_error": {
            "pytorch": row["difference"]["max_range_normalised"],
            "onnxruntime": figures.max_error,
        },
    }
    write_json(file.with_suffix(".json"), ran)
    return ran


def _build(folder: Path, builder: str, capability: str | None, dynamic: bool) -> dict[str, Any]:
    arguments = [str(folder / "build_engine.py"), "--bundle", str(folder), "--builder", builder]
    if capability is not None:
        arguments += ["--compute-capability", capability]
    if dynamic:
        arguments += ["--batches", ",".join(map(str, BATCHES))]
    return _record(arguments)


def _record(arguments: list[str]) -> dict[str, Any]:
    """Run a builder; return the record that it prints in its last line."""
    done = _process(arguments)
    if done.returncode != 0:
        raise ExportError(
            f"The engine was not built: {_reason(done)}.",
            "Export with --builder none and build it on the device.",
        )
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record
