"""A TorchScript graph in libtorch, driven from Python."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from kdmri_edge.errors import BackendError, BundleError
from kdmri_edge.runtime.session import Array, Session, SessionInfo, check_precision

__all__ = ["TorchScriptSession"]


class TorchScriptSession(Session):
    """TorchScript on the CPU.

    Args:
        graph: The .pt file.
        precision: "f32".
        threads: CPU threads.

    Raises:
        BackendError: Another precision.
        BundleError: The file cannot be loaded.
    """

    def __init__(self, graph: Path, *, precision: str = "f32", threads: int | None = None) -> None:
        check_precision(precision, ("f32",), "TorchScript")
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            with warnings.catch_warnings():
                # torch announces TorchScript's retirement at each use; C++ users still need it.
                warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
                model: Any = torch.jit.load(  # type: ignore[no-untyped-call]
                    str(graph), map_location="cpu"
                )
        except RuntimeError as error:
            raise BundleError(f"{graph} cannot be loaded ({error}).", "Export it again.") from error
        self._model = model.eval()

    @property
    def info(self) -> SessionInfo:
        """What really runs."""
        return SessionInfo(
            backend="TorchScript",
            version=torch.__version__,
            device="CPU",
            provider="libtorch",
            threads=torch.get_num_threads(),
            precision_requested="f32",
            precision_executed="f32" if self.written == "f32" else "f16 convolutions, else f32",
        )

    @torch.inference_mode()
    def run(self, x_u: Array) -> Array:
        """Reconstruct; see `Session.run`."""
        try:
            given = [torch.from_numpy(array) for array in self.inputs(x_u)]
            result: Array = self._model(*given).numpy()
        except RuntimeError as error:
            raise BackendError(
                f"The graph does not take an input of shape {list(x_u.shape)}.",
                "Use its own matrix and number of channels.",
            ) from error
        return result
