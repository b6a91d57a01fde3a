"""A program of torch.export in PyTorch: compiled by AOTInductor where that runs here."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch

from kdmri_edge.errors import BackendError, BundleError
from kdmri_edge.models.permission import permitted_program
from kdmri_edge.runtime.session import Array, Session, SessionInfo, check_precision
from kdmri_edge.utils.provenance import cpu

__all__ = ["INPUTS", "MADE_FOR", "MADE_WITH", "Pt2Session", "package_of"]

MADE_WITH: Final = "kdmri_edge.torch"
"""Key of a package's metadata: the version of PyTorch that compiled it."""
MADE_FOR: Final = "kdmri_edge.cpu"
"""Key of a package's metadata: the CPU that it was compiled for, all of whose instructions it may
use."""
INPUTS: Final = "kdmri_edge.inputs"
"""Key of a package's metadata: the shapes of its inputs as JSON, null for free sizes."""
Shapes: TypeAlias = list[list[int | None]]
"""Sizes of each input, None for free ones."""
_MODEL: Final = "model"
_ISA: Final = "AOTI_CPU_ISA"


def package_of(graph: Path) -> Path:
    """Return where the compiled package of a program lies: beside it."""
    return graph.with_name(f"{graph.stem}.aotinductor.pt2")


class Pt2Session(Session):
    """A program of torch.export on the CPU.

    Loading one executes what is in it (pickles, expressions, and in a compiled package machine
    code), so that only programs are loaded that were written or allowed on this machine.

    Args:
        graph: The .pt2 file; what AOTInductor compiled of it may lie beside it.
        precision: "f32".
        threads: CPU threads.

    Raises:
        BackendError: Another precision than the graph's.
        BundleError: The file cannot be loaded.
        ModelError: The program was neither written nor allowed on this machine.
    """

    def __init__(self, graph: Path, *, precision: str = "f32", threads: int | None = None) -> None:
        check_precision(precision, self.precisions_here(), "torch.export")
        permitted_program(graph)
        if threads is not None:
            torch.set_num_threads(threads)
        self._precision = precision
        self._shapes: Shapes | None = None
        package = package_of(graph)
        if not package.is_file():
            self._program(graph, "not compiled")
            return
        permitted_program(package)
        try:
            metadata = _metadata(package)
            obstacle = _obstacle(metadata)
            if obstacle is not None:
                self._program(graph, obstacle)
                return
            self._shapes = _shapes(metadata[INPUTS])
            with _quiet():
                self._model: Any = torch._inductor.aoti_load_package(str(package))
        except (RuntimeError, ValueError, KeyError) as error:
            raise _damaged(package, error) from error
        self._provider = f"AOTInductor, {metadata.get(_ISA, 'unknown')}"

    def _program(self, graph: Path, why: str) -> None:
        """Run the program itself."""
        try:
            with _quiet():
                self._model = torch.export.load(graph).module()
        except Exception as error:  # unpickling and torch.export raise all sorts
            raise _damaged(graph, error) from error
        self._provider = f"exported program ({why})"

    @property
    def info(self) -> SessionInfo:
        """What really runs."""
        executed = "f32" if self.written == "f32" else f"{self.written} convolutions, else f32"
        return SessionInfo(
            backend="torch.export",
            version=torch.__version__,
            device="CPU",
            provider=self._provider,
            threads=torch.get_num_threads(),
            precision_requested=self._precision,
            precision_executed=executed,
        )

    def _release(self) -> None:
        del self._model

    @torch.inference_mode()
    def run(self, x_u: Array, *, operator: Array | None = None, maps: Array | None = None) -> Array:
        """Reconstruct; see `Session.run`."""
        given = [torch.from_numpy(one) for one in self.inputs(x_u, operator=operator, maps=maps)]
        named = {"maps": given.pop()} if self.sense else {}
        # What is compiled reads beyond the end of an input that is too small.
        if self._shapes is not None and not _fit((*given, *named.values()), self._shapes):
            raise _other_shape(x_u)
        try:
            made = self._model(*given, **named)
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            raise _other_shape(x_u) from error
        if not isinstance(made, torch.Tensor):
            raise BackendError(
                f"The program gives a {type(made).__name__}, not an image.",
                "Export the network again.",
            )
        result: Array = made.numpy()
        return result


def _fit(given: Sequence[torch.Tensor], shapes: Shapes) -> bool:
    """Tell whether inputs have the shapes that a program was compiled for."""
    return len(given) == len(shapes) and all(
        len(one.shape) == len(shape)
        and all(size in (None, own) for size, own in zip(shape, one.shape, strict=True))
        for one, shape in zip(given, shapes, strict=True)
    )


def _shapes(text: str) -> Shapes:
    """Read the shapes of a package's inputs.

    Raises:
        ValueError: They are none.
    """
    found = json.loads(text)
    known = isinstance(found, list) and all(
        isinstance(shape, list) and all(one is None or type(one) is int for one in shape)
        for shape in found
    )
    if not known:
        raise ValueError(f"the shapes of its inputs are {text[:60]}")
    shapes: Shapes = found
    return shapes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep tracebacks that PyTorch logs while it raises an error from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._inductor")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def _other_shape(x_u: Array) -> BackendError:
    return BackendError(
        f"The graph does not take an input of shape {list(x_u.shape)}.",
        "Use its own matrix and number of channels.",
    )


def _damaged(file: Path, error: Exception) -> BundleError:
    lines = str(error).strip().splitlines()
    # what PyTorch refers to, a traceback, is not shown
    said = lines[0][:200].partition(" Please check")[0] if lines else type(error).__name__
    return BundleError(f"{file} cannot be loaded ({said.rstrip('.')}).", "Export it again.")


def _metadata(package: Path) -> dict[str, str]:
    """Read what a package says of itself, without loading its code."""
    loader: Any = torch._C._aoti.AOTIModelPackageLoader
    found: dict[str, str] = loader.load_metadata_from_package(str(package), _MODEL)
    return found


def _obstacle(metadata: dict[str, str]) -> str | None:
    """Say why a package's machine code is not for this machine, None where it is."""
    made_with = metadata.get(MADE_WITH)
    if made_with != torch.__version__:
        return f"compiled with PyTorch {made_with}"
    made_for, here = metadata.get(MADE_FOR), cpu()
    return None if made_for == here else f"compiled for {made_for}, this machine has {here}"
