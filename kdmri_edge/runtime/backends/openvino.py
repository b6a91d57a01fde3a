"""An OpenVINO graph on the CPU, or on a GPU or NPU that OpenVINO finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdmri_edge.errors import BackendError, BundleError
from kdmri_edge.runtime.backends.openvino_extension import NODE, onnx_extension
from kdmri_edge.runtime.profile import LayerTime, medians
from kdmri_edge.runtime.session import (
    Array,
    Session,
    SessionInfo,
    check_graph_precision,
    check_precision,
    no_profile,
)
from kdmri_edge.utils.extras import require

__all__ = ["OpenVinoSession"]

_CAPABILITY = {"f32": "FP32", "bf16": "BF16"}
_HINTS = ("LATENCY", "THROUGHPUT")
# Layers that do the arithmetic; the rest moves data.
_INTEGERS = {"u8", "i8"}
_ARITHMETIC = {"Convolution", "Deconvolution", "MatMul", "FullyConnected", "DFT", "IDFT"}


def _precisions(core: Any) -> tuple[str, ...]:
    has = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name, capability in _CAPABILITY.items() if capability in has)


def _device(core: Any, device: str) -> str:
    """Return what OpenVINO calls a device; it is among those that are there.

    Raises:
        BackendError: It is not.
    """
    wanted, here = device.upper(), list(core.available_devices)
    if any(name.partition(".")[0] == wanted for name in here):
        return wanted
    raise BackendError(
        f"OpenVINO finds no {device!r} here, only {', '.join(here).lower()}.",
        "Install that device's driver, or leave the device out.",
    )


class OpenVinoSession(Session):
    """OpenVINO on the CPU, or on another of its devices.

    Args:
        graph: The .xml file (its .bin lies beside it).
        precision: "f32", "bf16", or "int8" for a quantised graph, which has no other.
        threads: CPU threads; None leaves the runtime's choice.
        hint: "LATENCY" for single queries, or "THROUGHPUT" for `run_all`, which then has
            several requests under way.
        profiling: Note what each layer takes, see `Session.profile`; slower.
        device: "cpu", "gpu" or "npu"; the latter computes in float16, whatever is asked for.

    Raises:
        BackendError: An unknown hint, a device that is not there, or a precision that this CPU
            does not have.
        BundleError: The graph cannot be loaded.
        MissingExtraError: openvino is not installed.
    """

    def __init__(
        self,
        graph: Path,
        *,
        precision: str = "f32",
        threads: int | None = None,
        hint: str = "LATENCY",
        profiling: bool = False,
        device: str = "cpu",
    ) -> None:
        check_precision(precision, (*_CAPABILITY, "int8"), "OpenVINO")
        if hint not in _HINTS:
            raise BackendError(f"There is no hint {hint!r}.", f"Use {' or '.join(_HINTS)}.")
        self._ov = require("openvino", extra="openvino")
        core = self._ov.Core()
        if graph.suffix == ".onnx" and NODE[1].encode() in graph.read_bytes():
            core.add_extension(onnx_extension())
        self._device = _device(core, device)
        on_cpu = self._device == "CPU"
        if on_cpu and precision not in self.precisions_here():
            raise BackendError(f"This CPU has no {precision} arithmetic.", "Run it in fp32.")
        settings: dict[str, Any] = {"PERFORMANCE_HINT": hint, "PERF_COUNT": profiling}
        if not self._device.startswith("NPU"):  # which has no other than float16
            # Without it OpenVINO picks bf16 by itself wherever the CPU has it, and f16 on GPUs.
            settings["INFERENCE_PRECISION_HINT"] = "f32" if precision == "int8" else precision
        if threads is not None and on_cpu:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = core.compile_model(str(graph), self._device, settings)
        except RuntimeError as error:
            raise BundleError(f"{graph} cannot be loaded ({error}).", "Export it again.") from error
        self._request = self._compiled.create_infer_request()
        self._many = hint == "THROUGHPUT"
        self._precision, self._profiling = precision, profiling
        if on_cpu:
            check_graph_precision(precision, "int8" if self._integers() else "f32", graph)

    @classmethod
    def devices_here(cls) -> tuple[str, ...]:
        """Return "cpu", and "gpu" or "npu" where OpenVINO finds one."""
        core = require("openvino", extra="openvino").Core()
        found = (name.partition(".")[0].lower() for name in core.available_devices)
        return tuple(dict.fromkeys(found))

    @classmethod
    def precisions_here(cls) -> tuple[str, ...]:
        """Return "f32", "bf16" where the CPU has it, and "int8"; see `Session.precisions_here`."""
        return (*_precisions(require("openvino", extra="openvino").Core()), "int8")

    def _kinds(self) -> Counter[str]:
        """Count the arithmetic layers of the compiled graph by the precision that they run in."""
        kinds: Counter[str] = Counter()
        for node in self._compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            if str(info["layerType"].astype(str)) in _ARITHMETIC:
                name = str(info["runtimePrecision"].astype(str))
                kinds["int8" if name in _INTEGERS else name] += 1
        return kinds

    def _integers(self) -> bool:
        return "int8" in self._kinds()

    def executed(self) -> str:
        """Read back in which precision the arithmetic layers of the compiled graph run."""
        if self._device != "CPU":  # its layers are not listed as a CPU's are
            hint = self._compiled.get_property("INFERENCE_PRECISION_HINT")
            return str(getattr(hint, "to_string", lambda: hint)())
        kinds = self._kinds()
        total = sum(kinds.values())
        executed = ", ".join(f"{name} in {n}/{total} layers" for name, n in kinds.most_common())
        halves = self.written in ("f16", "bf16")
        return f"{self.written} weights, {executed}" if halves else executed

    @property
    def info(self) -> SessionInfo:
        """What really runs."""
        return SessionInfo(
            backend="OpenVINO",
            version=self._ov.__version__.split("-")[0],
            device=self._device,
            provider=", ".join(self._compiled.get_property("EXECUTION_DEVICES")),
            threads=1
            if self._device != "CPU"
            else int(self._compiled.get_property("INFERENCE_NUM_THREADS")),
            precision_requested=self._precision,
            precision_executed=self.executed(),
        )

    def _release(self) -> None:
        self._request = self._compiled = None

    def run(self, x_u: Array, *, operator: Array | None = None, maps: Array | None = None) -> Array:
        """Reconstruct; see `Session.run`."""
        given = self.inputs(x_u, operator=operator, maps=maps)
        try:
            results = self._request.infer(given)
        except RuntimeError as error:
            raise BackendError(
                f"The graph does not take an input of shape {list(x_u.shape)}.",
                "Use its own matrix; for other batches export it with"
                " `kdmri-edge export --batch dynamic`.",
            ) from error
        # copied: the next call writes into the same memory
        result: Array = np.array(results[0], dtype=np.float32)
        return result

    def profile(
        self, x_u: Array, *, maps: Array | None = None, queries: int, warmup: int
    ) -> list[LayerTime]:
        """Say what each layer takes; see `Session.profile`."""
        if not self._profiling:
            raise no_profile("OpenVINO")
        precisions = {
            node.get_friendly_name(): str(node.get_rt_info()["runtimePrecision"].astype(str))
            for node in self._compiled.get_runtime_model().get_ops()
        }
        taken = []
        for number in range(warmup + queries):
            self.run(x_u, maps=maps)
            if number >= warmup:
                taken.append(
                    [
                        LayerTime(
                            layer=one.node_name,
                            type=one.node_type,
                            precision=precisions.get(one.node_name, ""),
                            kernel=one.exec_type,
                            ms=one.real_time.total_seconds() * 1e3,
                        )
                        for one in self._request.profiling_info
                        if one.status == one.Status.EXECUTED
                    ]
                )
        return medians(taken)

    def run_all(
        self,
        batches: Sequence[Array],
        *,
        operator: Array | None = None,
        maps: Sequence[Array] | None = None,
    ) -> list[Array]:
        """Reconstruct several batches; see `Session.run_all`."""
        if not self._many:
            return super().run_all(batches, operator=operator, maps=maps)
        many: Sequence[Array | None] = [None] * len(batches) if maps is None else maps
        results: list[Array | None] = [None] * len(batches)

        def keep(request: Any, index: int) -> None:
            results[index] = np.array(request.get_output_tensor(0).data, dtype=np.float32)

        queue = self._ov.AsyncInferQueue(self._compiled)
        queue.set_callback(keep)
        try:
            for index, (batch, own) in enumerate(zip(batches, many, strict=True)):
                queue.start_async(self.inputs(batch, operator=operator, maps=own), index)
            queue.wait_all()
        except RuntimeError as error:
            raise BackendError(
                "The graph does not take inputs of these shapes.",
                "Use its own matrix; for other batches export it with"
                " `kdmri-edge export --batch dynamic`.",
            ) from error
        return [result for result in results if result is not None]
