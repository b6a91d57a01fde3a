"""Writing TorchScript."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdmri_edge.physics.forms import Form
from kdmri_edge.reconstructor import Reconstructor
from kdmri_edge.runtime.torchscript import no_farewell
from kdmri_export.lowerings.aten import lower
from kdmri_export.lowerings.cast import DTYPES, cast_convolutions
from kdmri_export.lowerings.integer import quantise_convolutions
from kdmri_export.lowerings.narrow import widen
from kdmri_export.lowerings.ranges import ranges_of
from kdmri_export.recipe import ExportRecipe
from kdmri_export.to_onnx import shown_maps

__all__ = ["write"]

_DEBUG = ".debug_pkl"


def write(reconstructor: Reconstructor, example: Tensor, graph: Path, recipe: ExportRecipe) -> None:
    """Trace a network and save it for libtorch.

    Args:
        reconstructor: The network.
        example: Input of the size that the graph is for, [1, C, H, W].
        graph: Destination.
        recipe: Gives precision and whether the mask is an input; a trace follows the batch and
            the number of coils by itself. For int8 the network needs its activation maxima.
    """
    lowered = lower(reconstructor)
    if recipe.precision in DTYPES:
        cast_convolutions(lowered, recipe.precision)
    if recipe.quantised:
        with no_farewell():
            quantise_convolutions(lowered, ranges_of(lowered))
    # The FFT form is the export that one gets without us.
    if reconstructor.form is not Form.FFT:
        widen(lowered)
        lowered.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    shown = {"x_u": example}
    if recipe.mask_input:
        shown["operator"] = reconstructor.operator
    if reconstructor.spec.coils:
        shown["maps"] = shown_maps(example, recipe)
    buffer = io.BytesIO()
    with no_farewell(), torch.no_grad():
        # The tracer points at the formulas' choices by shape: they are fixed for a graph.
        tracer_warning: type[Warning] = torch.jit.TracerWarning  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", category=tracer_warning)
        traced: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
            lowered, example_kwarg_inputs=shown, check_trace=False
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
