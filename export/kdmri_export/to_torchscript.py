"""Writing TorchScript."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdmri_edge.reconstructor import Reconstructor
from kdmri_export.lowerings.aten import lower
from kdmri_export.lowerings.cast import cast_convolutions

__all__ = ["write"]

_DEBUG = ".debug_pkl"


def write(
    reconstructor: Reconstructor,
    example: Tensor,
    graph: Path,
    *,
    dynamic: bool,
    precision: str = "f32",
    mask_input: bool = False,
) -> None:
    """Trace a network and save it for libtorch.

    Args:
        reconstructor: The network.
        example: Input of the size that the graph is for, [1, C, H, W].
        graph: Destination.
        dynamic: Whether any batch is to be taken; a trace of it follows the batch by itself.
        precision: Of the convolutions: "f32", or one of `lowerings.cast.DTYPES`.
        mask_input: Whether the operator of data consistency is a second input.
    """
    lowered = lower(reconstructor)
    if precision != "f32":
        cast_convolutions(lowered, precision)
    shown = (example, reconstructor.operator) if mask_input else (example,)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # torch announces TorchScript's retirement at each use; C++ users still need it.
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        # The tracer points at the formulas' choices by shape: they are fixed for a graph.
        tracer_warning: type[Warning] = torch.jit.TracerWarning  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", category=tracer_warning)
        traced: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
            lowered, shown, check_trace=False
        )
        torch.jit.save(torch.jit.freeze(traced.eval()), buffer)
    graph.write_bytes(_without_debug(buffer.getvalue()))


def _without_debug(archive: bytes) -> bytes:
    """Drop the call stacks that torch stores for each operation: they hold paths of a machine."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(result, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(_DEBUG):
                # Made anew: the writer's own dates are not valid ones.
                clean = zipfile.ZipInfo(entry.filename)
                new.writestr(clean, old.read(entry), compress_type=zipfile.ZIP_STORED)
    return result.getvalue()
