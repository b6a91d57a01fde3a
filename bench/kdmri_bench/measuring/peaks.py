"""What a machine can do at most: matrix products through each runtime, and memory bandwidth.

Each runtime has a process of its own, as the rows have: `main` runs in it and prints one JSON
object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from kdmri_edge.utils.extras import available, require

__all__ = ["PROBES", "best", "main", "measure_peaks"]

_BYTES: Final = 128 * 2**20
"""Of each of the three arrays of the bandwidth's triad (STREAM, McCalpin 1995)."""

_GPU_MEMORY: Final = "memory CUDA"

_PATIENCE_S: Final = 120.0
"""For importing a runtime and its untimed products; a probe that hangs must not hold up a night."""

Query = Callable[[], object]


def best(query: Query, seconds: float) -> float:
    """Return the shortest duration of `query` within so many seconds, after one that is untimed."""
    query()
    shortest, ending = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < ending:
        began = time.perf_counter()
        query()
        shortest = min(shortest, time.perf_counter() - began)
    return shortest if shortest < float("inf") else best(query, 2 * seconds + 1.0)


def _torch(device: str, threads: int, side: int) -> dict[str, Query]:
    torch = require("torch", extra="train")
    torch.set_num_threads(threads)
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    kinds = {"f32": torch.float32}
    # A CPU without bf16 emulates it: seconds per product, and no limit of anything.
    if device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        kinds["bf16"] = torch.bfloat16
    if device == "cuda":
        kinds["f16"] = torch.float16

    def product(kind: Any) -> Query:
        a = torch.ones(side, side, dtype=kind, device=device)
        out = torch.empty_like(a)

        def run() -> None:
            torch.mm(a, a, out=out)
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    return {name: product(kind) for name, kind in kinds.items()}


def _onnxruntime(threads: int, side: int) -> dict[str, Query]:
    onnx, ort = require("onnx", extra="onnx"), require("onnxruntime", extra="onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3

    def product(name: str, left: Any, right: Any, given: Any, result: int) -> Query:
        weights = onnx.numpy_helper.from_array(right, "b")
        node = helper.make_node(name, ["a", "b"], ["c"])
        ports = [
            helper.make_tensor_value_info("a", given, [side, side]),
            helper.make_tensor_value_info("c", result, [side, side]),
        ]
        graph = helper.make_graph([node], "peak", ports[:1], ports[1:], [weights])
        opset = [helper.make_opsetid("", 18)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=9)
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return lambda: session.run(None, {"a": left})

    f32, i8 = np.ones((side, side), np.float32), np.ones((side, side), np.int8)
    return {
        "f32": product("MatMul", f32, f32, kinds.FLOAT, kinds.FLOAT),
        "int8": product("MatMulInteger", i8.view(np.uint8), i8, kinds.UINT8, kinds.INT32),
    }


def _openvino(threads: int, side: int) -> dict[str, Query]:
    ov = require("openvino", extra="openvino")
    ops = require("openvino.opset13", extra="openvino")
    core = ov.Core()
    image = np.ones((side, side), np.float32)

    def product(hint: str, *, integers: bool = False) -> Query:
        given = ops.parameter([side, side], np.float32)
        left, right = given, ops.constant(image)
        if integers:  # OpenVINO computes in integers between quantisers, as in an exported graph
            ends = [np.float32(-1.28), np.float32(1.27)] * 2
            left, right = (ops.fake_quantize(x, *ends, 256) for x in (left, right))
        model = ov.Model([ops.matmul(left, right, False, False)], [given])
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        return lambda: request.infer([image])

    probes = {"f32": product("f32"), "int8": product("f32", integers=True)}
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        probes["bf16"] = product("bf16")
    return probes


def _triad(threads: int, device: str = "cpu") -> float:
    """Return bytes a second of a = b + s c."""
    count = _BYTES // 4
    if available("torch"):
        torch = require("torch", extra="train")
        torch.set_num_threads(threads)
        a, b, c = (torch.ones(count, device=device) for _ in range(3))

        def triad() -> None:
            torch.add(b, c, alpha=3.0, out=a)
            if device == "cuda":
                torch.cuda.synchronize()

        seconds = best(triad, 0.3)
    else:
        x, y, z = (np.ones(count, np.float32) for _ in range(3))
        seconds = best(lambda: np.add(y, z, out=x), 0.3)
    return 3 * _BYTES / seconds


PROBES: Final[dict[str, tuple[str, Callable[[int, int], dict[str, Query]]]]] = {
    "PyTorch": ("torch", lambda threads, side: _torch("cpu", threads, side)),
    "ONNX Runtime": ("onnxruntime", _onnxruntime),
    "OpenVINO": ("openvino", _openvino),
    "PyTorch CUDA": ("torch", lambda threads, side: _torch("cuda", threads, side)),
}
"""Runtime -> the package that it needs, and what makes its matrix products."""


def measure_peaks(
    runtimes: list[str],
    *,
    threads: int,
    seconds: float,
    side: int = 1536,
    patience_s: float = _PATIENCE_S,
) -> dict[str, Any]:
    """Measure the limits of this machine.

    Args:
        runtimes: which of `PROBES` to measure.
        threads: as for the rows.
        seconds: for each product.
        side: of the square matrices.
        patience_s: a process is ended after so many seconds on top of what it measures.

    Returns:
        Runtime -> {precision: 1e9 multiply-accumulates a second}, or {"reason": ...}; "memory" ->
        {"gb_per_s": ...}; and "side". A precision that the machine has no arithmetic for is left
        out.
    """
    found: dict[str, Any] = {"side": side}
    probed = [name for name in runtimes if name in PROBES]
    on_gpu = [_GPU_MEMORY] if any("CUDA" in name for name in probed) else []
    for name in [*probed, "memory", *on_gpu]:
        words = [name, str(threads), str(seconds), str(side)]
        command = [sys.executable, "-P", "-c", _code(), *words]
        limit = patience_s + 5 * seconds
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=limit
            )
        except subprocess.TimeoutExpired:
            found[name] = {"reason": f"no result after {limit:g} s; the process was ended"}
            continue
        try:
            found[name] = json.loads(done.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            found[name] = {"reason": lines[-1][:300] if lines else f"status {done.returncode}"}
    return found


def _code() -> str:
    paths = [entry for entry in sys.path if entry]
    return (
        f"import sys; sys.path[:] = {paths!r}; from kdmri_bench.measuring.peaks import main; main()"
    )


def main() -> None:
    """Measure one runtime in this process and print what was found as JSON."""
    name, threads, seconds, side = sys.argv[1:]
    if name in ("memory", _GPU_MEMORY):
        rate = _triad(int(threads), "cuda" if name == _GPU_MEMORY else "cpu")
        print(json.dumps({"gb_per_s": rate * 1e-9, "array_mib": _BYTES >> 20}))
        return
    probes = PROBES[name][1](int(threads), int(side))
    rates = {
        precision: int(side) ** 3 / best(query, float(seconds)) * 1e-9
        for precision, query in probes.items()
    }
    print(json.dumps(rates))
