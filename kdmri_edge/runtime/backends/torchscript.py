"""A TorchScript graph in libtorch, driven from Python."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kdmri_edge.errors import BackendError, BundleError
from kdmri_edge.models.permission import permitted_program
from kdmri_edge.runtime.graphs.torchscript import refused
from kdmri_edge.runtime.session import (
    Array,
    Session,
    SessionInfo,
    check_graph_precision,
    check_precision,
)

__all__ = ["TorchScriptSession", "silence_warnings"]

# Where both are to be had: on a CPU with AVX2 alone oneDNN took half of FBGEMM's time.
_FASTEST = "onednn"


@contextlib.contextmanager
def silence_warnings() -> Iterator[None]:
    """Keep torch's announcements that parts of it will retire from the user.

    TorchScript says so at each use, integer tensors once in a process: C++ users still need both.
    """
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):  # the latter since PyTorch 2.14
            warnings.filterwarnings("ignore", r"`torch\.jit\.", category)
        warnings.filterwarnings("ignore", r"torch\.quantize_per_tensor", UserWarning)
        yield


@contextlib.contextmanager
def _integer_kernels() -> Iterator[str]:
    """Choose whose kernels the weights of a quantised graph are laid out for, as it is loaded."""
    chosen = torch.backends.quantized
    usual = chosen.engine
    try:
        if _FASTEST in chosen.supported_engines:
            chosen.engine = _FASTEST
        yield str(chosen.engine)
    finally:
        chosen.engine = usual


class TorchScriptSession(Session):
    """TorchScript on the CPU.

    An archive is a program, which may do anything when it is loaded. One that holds more than
    exports do is loaded only if it was written or allowed on this machine.

    Args:
        graph: The .pt file.
        precision: "f32", or "int8" for a quantised graph, which has no other.
        threads: CPU threads.

    Raises:
        BackendError: Another precision than the graph's.
        BundleError: The file cannot be loaded.
        ModelError: It is of unknown origin; see `runtime.graphs.torchscript`.
    """

    def __init__(self, graph: Path, *, precision: str = "f32", threads: int | None = None) -> None:
        check_precision(precision, self.precisions_here(), "TorchScript")
        if (why := refused(graph)) is not None:
            permitted_program(graph, why)
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            with silence_warnings(), _integer_kernels() as self._kernels:
                if precision == "int8":
                    # A graph's first integers would say it past Python's warnings, to the console.
                    torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
                model: Any = torch.jit.load(  # type: ignore[no-untyped-call]
                    str(graph), map_location="cpu"
                )
        except RuntimeError as error:
            raise BundleError(f"{graph} cannot be loaded ({error}).", "Export it again.") from error
        self._model = model.eval()
        self._precision = precision
        self._kinds = Counter(node.kind() for node in model.inlined_graph.nodes())
        written = "int8" if self._integers else "f32"
        check_graph_precision(precision, written, graph)

    @classmethod
    def precisions_here(cls) -> tuple[str, ...]:
        """Return "f32" and "int8"; see `Session.precisions_here`."""
        return ("f32", "int8")

    @property
    def _integers(self) -> int:
        return self._kinds["quantized::conv2d_relu"]

    def _executed(self) -> str:
        if self._integers:
            convolutions = self._integers + self._kinds["aten::_convolution"]
            return f"int8 in {self._integers}/{convolutions} convolutions"
        return "f32" if self.written == "f32" else "f16 convolutions, else f32"

    @property
    def info(self) -> SessionInfo:
        """What really runs."""
        return SessionInfo(
            backend="TorchScript",
            version=torch.__version__,
            device="CPU",
            provider=f"libtorch, {self._kernels} integers" if self._integers else "libtorch",
            threads=torch.get_num_threads(),
            precision_requested=self._precision,
            precision_executed=self._executed(),
        )

    def _release(self) -> None:
        del self._model

    @torch.inference_mode()
    def run(self, x_u: Array, *, operator: Array | None = None, maps: Array | None = None) -> Array:
        """Reconstruct; see `Session.run`."""
        given = self.inputs(x_u, operator=operator, maps=maps)
        try:
            made = self._model(*(torch.from_numpy(array) for array in given))
        except RuntimeError as error:
            raise BackendError(
                f"The graph does not take an input of shape {list(x_u.shape)}.",
                "Use its own matrix and number of channels.",
            ) from error
        if not isinstance(made, torch.Tensor):
            raise BackendError(
                f"The program gives a {type(made).__name__}, not an image.",
                "Export the network again.",
            )
        result: Array = made.numpy()
        return result
