"""Running a program of torch.export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kdmri_edge.errors import BackendError, BundleError
from kdmri_edge.runtime import Session, SessionInfo


class ProgramSession(Session):
    """A program in PyTorch, on the CPU."""

    def __init__(self, graph: Path, *, precision: str = "f32", threads: int | None = None) -> None:
        if precision not in self.precisions_here():
            raise BackendError(f"Acme's runtime has no {precision}.", "Use f32 or f16.")
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            program = torch.export.load(graph)
        except Exception as error:
            raise BundleError(f"{graph} cannot be loaded ({error}).", "Export it again.") from error
        self._module: Any = program.module()
        self._precision = precision
        self._halves = any(value.dtype is torch.float16 for value in program.state_dict.values())

    @classmethod
    def precisions_here(cls) -> tuple[str, ...]:
        return ("f32", "f16")

    @property
    def info(self) -> SessionInfo:
        return SessionInfo(
            backend="Acme runtime",
            version=torch.__version__,
            device="CPU",
            provider="torch.export",
            threads=torch.get_num_threads(),
            precision_requested=self._precision,
            precision_executed="f16 convolutions, else f32" if self._halves else "f32",
        )

    @torch.inference_mode()
    def run(self, x_u: Any, *, operator: Any = None, maps: Any = None) -> Any:
        (images,) = self.inputs(x_u, operator=operator, maps=maps)
        try:
            return self._module(torch.from_numpy(images)).numpy()
        except (AssertionError, RuntimeError) as error:
            raise BackendError(
                f"The program does not take an input of shape {list(x_u.shape)}.",
                "Use its own matrix and number of channels.",
            ) from error
