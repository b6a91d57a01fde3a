"""An ONNX graph in ONNX Runtime: on the CPU, or on an NVIDIA GPU by one of two providers."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from kdmri_edge.errors import BackendError, BundleError
from kdmri_edge.runtime.graphs.bfloat16 import in_float32
from kdmri_edge.runtime.graphs.onnx import metadata
from kdmri_edge.runtime.profile import LayerTime, from_onnxruntime
from kdmri_edge.runtime.session import (
    Array,
    Session,
    SessionInfo,
    check_graph_precision,
    check_precision,
    no_profile,
)
from kdmri_edge.utils.extras import available, require

__all__ = ["PRECISION_KEY", "OnnxRuntimeSession"]

PRECISION_KEY = "kdmri_edge.precision"
"""Where a graph says in which precision its convolutions are written."""

# What it says of a graph whose operators (opset) or whose format are newer than itself.
_NEWER: Final = re.compile(r"Opset \d+ is under development|Unsupported model IR version")

# What ONNX Runtime makes of them: its CPU provider has no float16 kernels, and casts. Nor has it
# kernels of bfloat16, so that it is given the same graph in float32, with the same rounding.
_EXECUTED = {
    "f16": "f16 weights, f32 arithmetic",
    "bf16": "bf16 weights and activations by casts, f32 arithmetic",
}
_PROVIDER = "CPUExecutionProvider"

# Data consistency is float32 on purpose: TF32 would round it to ten bits.
_CUDA: Final = ("CUDAExecutionProvider", {"use_tf32": "0"})
_RTX: Final = "NvTensorRTRTXExecutionProvider"
_RTX_PACKAGE: Final = "onnxruntime_ep_nv_tensorrt_rtx"
_PROVIDERS = ("cpu", "cuda", "tensorrt-rtx")


# Its operators for what layers compute, in integers and in float.
_INTEGER_CONVOLUTIONS = ("QLinearConv", "ConvInteger")
_FLOAT_CONVOLUTIONS = ("Conv", "FusedConv", "ConvTranspose")
_INTEGER_PRODUCTS = ("MatMulIntegerToFloat", "QLinearMatMul", "MatMulInteger", "QGemm")


def _integers(graph: bytes) -> str:
    """Count what ONNX Runtime computes in integers, in its optimised graph.

    Each node holds its operator's name behind a tag and its length; to decode the whole graph would
    take the onnx package.
    """

    def count(names: Sequence[str]) -> int:
        return sum(graph.count(b'"' + bytes([len(name)]) + name.encode()) for name in names)

    integers, products = count(_INTEGER_CONVOLUTIONS), count(_INTEGER_PRODUCTS)
    convolutions = integers + count(_FLOAT_CONVOLUTIONS)
    # Of products those in float are not counted: data consistency's are meant to be.
    parts = [f"int8 in {integers}/{convolutions} convolutions"] if convolutions else []
    parts += [f"int8 in {products} products"] if products else []
    return ", ".join(parts) or "f32"


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A folder for a moment.

    Raises:
        BackendError: There is no place for one.
    """
    try:
        folder = tempfile.TemporaryDirectory()
    except OSError as error:
        raise BackendError(
            "There is no folder for temporary files, and what ONNX Runtime makes of an int8 graph"
            f" is read back from one ({error.strerror}).",
            "Set TMPDIR to a folder that can be written, e.g. a tmpfs of some MiB.",
        ) from None
    with folder as name:
        yield name


def _on_gpu(written: str) -> str:
    return f"{written} convolutions, else f32" if written in _EXECUTED else written


def _cuda(ort: Any) -> tuple[str, dict[str, str]]:
    """Return the provider for CUDA.

    Raises:
        BackendError: This build of ONNX Runtime has none.
    """
    if _CUDA[0] in ort.get_available_providers():
        return _CUDA
    raise BackendError(
        f"The installed ONNX Runtime ({ort.__version__}) is built without CUDA.",
        "Install the package onnxruntime-gpu in its place.",
    )


def _rtx(ort: Any) -> list[Any]:
    """Return the GPUs that TensorRT-RTX's provider runs on; its package is loaded for it.

    Raises:
        BackendError: The package is not installed, or finds no GPU that it has kernels for.
    """
    if not available(_RTX_PACKAGE):
        raise BackendError(
            "ONNX Runtime has no provider for TensorRT-RTX here.",
            "Install the package onnxruntime-ep-nv-tensorrt-rtx.",
        )
    package = require(_RTX_PACKAGE, extra="onnx")
    if not any(one.ep_name == _RTX for one in ort.get_ep_devices()):
        ort.register_execution_provider_library(_RTX, package.get_library_path())
    found = [one for one in ort.get_ep_devices() if one.ep_name == _RTX]
    if not found:
        raise BackendError(
            "TensorRT-RTX's provider finds no GPU that it has kernels for.",
            "`kdmri-edge doctor` says what runs here.",
        )
    return found


class OnnxRuntimeSession(Session):
    """ONNX Runtime on the CPU or on an NVIDIA GPU.

    Args:
        graph: The .onnx file.
        precision: "f32", or "int8" for a quantised graph, which has no other.
        threads: CPU threads within an operator; None leaves the runtime's choice.
        spin: Let threads that wait for work burn their CPUs, which is quicker by itself and slower
            where others want these CPUs.
        profiling: Note what each layer takes, see `Session.profile`; slower.
        device: "cpu", or "cuda" for an NVIDIA GPU.
        provider: What computes there: "cuda", or "tensorrt-rtx", a package of its own; None takes
            the device's usual one.

    Raises:
        BackendError: Another precision than the graph's, a provider that is not installed or finds
            no GPU, or another provider took over.
        BundleError: The graph cannot be loaded.
        MissingExtraError: onnxruntime is not installed.
    """

    concurrent = True

    def __init__(
        self,
        graph: Path,
        *,
        precision: str = "f32",
        threads: int | None = None,
        spin: bool = True,
        profiling: bool = False,
        device: str = "cpu",
        provider: str | None = None,
    ) -> None:
        provider = provider or device
        if provider not in _PROVIDERS or (device == "cpu") != (provider == "cpu"):
            raise BackendError(
                f"ONNX Runtime has no provider {provider!r} for {device!r}.",
                "Use cuda or tensorrt-rtx on cuda, cpu on cpu.",
            )
        self._provider = provider
        check_precision(precision, self.precisions_here(), "ONNX Runtime")
        self._ort = require("onnxruntime", extra="onnx")
        options = self._ort.SessionOptions()
        options.log_severity_level = 3  # errors: its warnings are about its own optimiser
        if threads is not None:
            options.intra_op_num_threads = threads
        if not spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # the profile is written there from now on, and read when the queries are done
        self._profiles = tempfile.TemporaryDirectory() if profiling else None
        if self._profiles is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._profiles.name) / "queries")
        # only int8 needs a place for files: a container may have none that can be written
        with _scratch() if precision == "int8" else contextlib.nullcontext() as folder:
            optimised = None if folder is None else Path(folder) / "optimised.onnx"
            if optimised is not None:  # to read back what became of the integers
                options.optimized_model_filepath = str(optimised)
            self._session = self._load(graph, options)
            metadata = self._session.get_modelmeta().custom_metadata_map
            written = metadata.get(PRECISION_KEY, "f32")
            check_graph_precision(precision, written, graph)
            on_cpu = provider == "cpu"
            self._executed = _EXECUTED.get(written, "f32") if on_cpu else _on_gpu(written)
            if optimised is not None:
                self._executed = _integers(optimised.read_bytes())
        self._providers = self._session.get_providers()
        wanted = {"cpu": _PROVIDER, "cuda": _CUDA[0], "tensorrt-rtx": _RTX}[provider]
        if self._providers[0] != wanted or (on_cpu and len(self._providers) > 1):
            raise BackendError(
                f"ONNX Runtime runs on {self._providers[0]} instead of {wanted}.",
                "Install the plain onnxruntime package."
                if on_cpu
                else "`kdmri-edge doctor` says what runs here.",
            )
        self._threads, self._precision = threads, precision
        self._names = [port.name for port in self._session.get_inputs()]

    def _load(self, graph: Path, options: Any) -> Any:
        providers: list[Any] | None = [_PROVIDER]
        if self._provider != "cpu":  # what it does not take must not run on the CPU unsaid
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if self._provider == "cuda":
            providers = [_cuda(self._ort)]
        elif self._provider == "tensorrt-rtx":
            providers = None
            options.add_provider_for_devices(_rtx(self._ort), {})
        written = metadata(graph).get(PRECISION_KEY) if graph.is_file() else None
        on_cpu = self._provider == "cpu"
        given = in_float32(graph) if on_cpu and written == "bf16" else str(graph)
        try:
            return self._ort.InferenceSession(given, options, providers=providers)
        except Exception as error:  # the library's own exception types share no base class
            if _NEWER.search(str(error)):
                raise BackendError(
                    f"onnxruntime {self._ort.__version__} is too old for {graph} ({error}).",
                    "Update it: python -m pip install --upgrade onnxruntime.",
                ) from error
            raise BundleError(f"{graph} cannot be loaded ({error}).", "Export it again.") from error

    @classmethod
    def devices_here(cls) -> tuple[str, ...]:
        """Return "cpu", and "cuda" where the installed build has CUDA."""
        providers = require("onnxruntime", extra="onnx").get_available_providers()
        return ("cpu", "cuda") if _CUDA[0] in providers else ("cpu",)

    @classmethod
    def precisions_here(cls) -> tuple[str, ...]:
        """Return "f32" and "int8"; see `Session.precisions_here`."""
        return ("f32", "int8")

    @property
    def info(self) -> SessionInfo:
        """What really runs."""
        import os

        return SessionInfo(
            backend="ONNX Runtime",
            version=self._ort.__version__,
            device="CPU" if self._provider == "cpu" else "CUDA",
            provider=self._providers[0],
            threads=self._threads or os.cpu_count() or 1,
            precision_requested=self._precision,
            precision_executed=self._executed,
        )

    def _release(self) -> None:
        self._session = None
        if self._profiles is not None:
            self._profiles.cleanup()

    def profile(
        self, x_u: Array, *, maps: Array | None = None, queries: int, warmup: int
    ) -> list[LayerTime]:
        """Say what each layer takes, once in a session; see `Session.profile`."""
        if self._profiles is None:
            raise no_profile("ONNX Runtime")
        for _ in range(warmup + queries):
            self.run(x_u, maps=maps)
        found = from_onnxruntime(Path(self._session.end_profiling()), warmup=warmup)
        self._profiles.cleanup()
        self._profiles = None
        return found

    def run(self, x_u: Array, *, operator: Array | None = None, maps: Array | None = None) -> Array:
        """Reconstruct; see `Session.run`."""
        arrays = self.inputs(x_u, operator=operator, maps=maps)
        if len(arrays) != len(self._names):
            raise BackendError(
                f"The graph takes {len(self._names)} input(s), by its manifest {len(arrays)}.",
                "Export the network again.",
            )
        given = dict(zip(self._names, arrays, strict=True))
        try:
            result: Array = self._session.run(None, given)[0]
        except self._ort.capi.onnxruntime_pybind11_state.InvalidArgument as error:
            raise BackendError(
                f"The graph does not take an input of shape {list(x_u.shape)}.",
                "Use its own matrix; for other batches export it with"
                " `kdmri-edge export --batch dynamic`.",
            ) from error
        except Exception as error:  # of a graph whose manifest says something else
            lines = str(error).strip().splitlines()
            said = lines[0][:200].rstrip(".") if lines else type(error).__name__
            raise BackendError(
                f"ONNX Runtime cannot compute the graph ({said}).", "Export the network again."
            ) from error
        return result
