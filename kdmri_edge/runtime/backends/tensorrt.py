"""A TensorRT engine on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from kdmri_edge.errors import BackendError
from kdmri_edge.runtime.backends import run_engine
from kdmri_edge.runtime.session import Array, Session, SessionInfo, check_precision
from kdmri_edge.utils.extras import require

__all__ = ["TensorRTRtxSession", "TensorRTSession"]

_PRECISIONS = ("f32", "f16", "int8")
_EXECUTED = {name: f"{name} convolutions, else f32" for name in ("f16", "bf16", "int8")}


class TensorRTSession(Session):
    """TensorRT on the GPU: the newest of its engines beside the bundle's graph.

    Args:
        graph: The bundle's .onnx file; its engines lie beside it.
        precision: That of the graph, which is strongly typed.
        threads: Without effect.

    Raises:
        BackendError: There is no engine, or it does not load or run on this machine.
        MissingExtraError: TensorRT is not installed.
    """

    builder: ClassVar[str] = "tensorrt"
    extra: ClassVar[str] = "trt"

    def __init__(self, graph: Path, *, precision: str = "f32", threads: int | None = None) -> None:
        title = run_engine.TITLES[self.builder]
        if precision == "bf16":  # an engine of bf16 is asked for float32, as one of float16 is
            raise BackendError(
                f"{title} cannot be asked for bf16: its engines compute what their graph says.",
                "Export the network with `kdmri-edge export --target trt --precision bf16`.",
            )
        check_precision(precision, _PRECISIONS, title)
        require(run_engine.MODULES[self.builder], extra=self.extra)
        try:
            engine = run_engine.find_engine(graph.parent, self.builder)
            self._engine = run_engine.Engine(engine, self.builder)
        except (run_engine.Refused, OSError, ValueError, KeyError) as error:
            raise BackendError(str(error), "`kdmri-edge doctor` says what runs here.") from error
        self._precision = precision

    @property
    def info(self) -> SessionInfo:
        """What really runs."""
        name, capability = self._engine.device()
        return SessionInfo(
            backend=run_engine.TITLES[self.builder],
            version=self._engine.trt.__version__,
            device=name,
            provider=capability,
            threads=1,
            precision_requested=self._precision,
            precision_executed=f"{_EXECUTED.get(self.written, self.written)}, strongly typed",
        )

    def _release(self) -> None:
        del self._engine

    def run(self, x_u: Array, *, operator: Array | None = None, maps: Array | None = None) -> Array:
        """Reconstruct; see `Session.run`."""
        given = self.inputs(x_u, operator=operator, maps=maps)
        try:
            result: Array = self._engine.run(*given)
        except run_engine.Refused as error:
            raise BackendError(
                f"The graph does not take an input of shape {list(x_u.shape)} ({error}).",
                "Use its own matrix; for other batches export it with"
                " `kdmri-edge export --batch dynamic`.",
            ) from error
        return result

    def resident(self, x_u: Array, *, maps: Array | None = None) -> Callable[[], object]:
        """Return a query without copies; see `Session.resident`."""
        try:
            query: Callable[[], object] = self._engine.resident(*self.inputs(x_u, maps=maps))
        except run_engine.Refused as error:
            raise BackendError(str(error), "Use the graph's own matrix and batch.") from error
        return query


class TensorRTRtxSession(TensorRTSession):
    """TensorRT-RTX on the GPU: the same with its engines."""

    builder = "rtx"
    extra = "trt-rtx"
