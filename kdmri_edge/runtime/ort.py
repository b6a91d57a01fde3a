"""An ONNX graph in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdmri_edge.errors import BackendError, BundleError
from kdmri_edge.extras import require
from kdmri_edge.runtime.session import Array, Session, SessionInfo, check_precision

__all__ = ["PRECISION_KEY", "OnnxRuntimeSession"]

PRECISION_KEY = "kdmri_edge.precision"
"""Where a graph says in which precision its convolutions are written."""

# What ONNX Runtime makes of them: its CPU provider has no float16 kernels, and casts.
_EXECUTED = {"f16": "f16 weights, f32 arithmetic"}
_PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeSession(Session):
    """ONNX Runtime on the CPU.

    Args:
        graph: The .onnx file.
        precision: "f32".
        threads: CPU threads within an operator; None leaves the runtime's choice.

    Raises:
        BackendError: Another precision, or another provider took over.
        BundleError: The graph cannot be loaded.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, graph: Path, *, precision: str = "f32", threads: int | None = None) -> None:
        check_precision(precision, ("f32",), "ONNX Runtime")
        self._ort = require("onnxruntime", extra="onnx")
        options = self._ort.SessionOptions()
        options.log_severity_level = 3  # errors: its warnings are about its own optimiser
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = self._ort.InferenceSession(str(graph), options, providers=[_PROVIDER])
        except Exception as error:  # the library's own exception types share no base class
            raise BundleError(f"{graph} cannot be loaded ({error}).", "Export it again.") from error
        self._providers = self._session.get_providers()
        if self._providers != [_PROVIDER]:
            raise BackendError(
                f"ONNX Runtime runs on {self._providers[0]} instead of the CPU.",
                "Install the plain onnxruntime package.",
            )
        self._threads = threads
        metadata = self._session.get_modelmeta().custom_metadata_map
        self._written = metadata.get(PRECISION_KEY, "f32")
        self._input = self._session.get_inputs()[0].name

    @property
    def info(self) -> SessionInfo:
        """What really runs."""
        import os

        return SessionInfo(
            backend="ONNX Runtime",
            version=self._ort.__version__,
            device="CPU",
            provider=self._providers[0],
            threads=self._threads or os.cpu_count() or 1,
            precision_requested="f32",
            precision_executed=_EXECUTED.get(self._written, "f32"),
        )

    def run(self, x_u: Array) -> Array:
        """Reconstruct; see `Session.run`."""
        try:
            result: Array = self._session.run(None, {self._input: np.ascontiguousarray(x_u)})[0]
        except self._ort.capi.onnxruntime_pybind11_state.InvalidArgument as error:
            raise BackendError(
                f"The graph does not take an input of shape {list(x_u.shape)}.",
                "Use its own matrix; export with --batch dynamic for other batches.",
            ) from error
        return result
