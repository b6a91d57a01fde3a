"""Writing TorchScript."""

from __future__ import annotations

import copy
import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdmri_edge.models.blocks import channels_last
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.physics.operators import Form
from kdmri_edge.runtime.backends.torchscript import silence_warnings
from kdmri_export.passes.cast import DTYPES, cast_convolutions
from kdmri_export.passes.data_consistency import Lowering
from kdmri_export.passes.integer import RectifiedIntegers, quantise_convolutions
from kdmri_export.passes.narrow import decompose_narrow_convs
from kdmri_export.passes.quantise import ranges_of
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.onnx import example_maps

__all__ = ["write"]

_DEBUG = ".debug_pkl"


def write(reconstructor: Reconstructor, example: Tensor, graph: Path, recipe: ExportRecipe) -> int:
    """Trace a network and save it for libtorch.

    Args:
        reconstructor: The network.
        example: Input of the size that the graph is for, [1, C, H, W].
        graph: Destination.
        recipe: Gives precision and whether the mask is an input; a trace follows the batch and
            the number of coils by itself. For int8 the network needs its activation maxima.

    Returns:
        Convolutions that compute in another precision than float32.
    """
    transformed = 0
    lowered = copy.deepcopy(reconstructor)
    if recipe.precision in DTYPES:
        transformed = cast_convolutions(lowered, recipe.precision)
    if recipe.quantised:
        with silence_warnings():
            transformed = quantise_convolutions(lowered, ranges_of(lowered))
    # The FFT form is the export that one gets without us.
    if reconstructor.form is not Form.FFT:
        decompose_narrow_convs(lowered)
        channels_last(lowered)
    shown = {"x_u": example}
    if recipe.mask_input:
        shown["operator"] = reconstructor.operator
    if reconstructor.spec.coils:
        shown["maps"] = example_maps(example, recipe)
    buffer = io.BytesIO()
    with silence_warnings(), torch.no_grad(), Lowering(), RectifiedIntegers():
        # The tracer points at the formulas' choices by shape: they are fixed for a graph.
        tracer_warning: type[Warning] = torch.jit.TracerWarning  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", category=tracer_warning)
        traced: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
            lowered, example_kwarg_inputs=shown, check_trace=False
        )
        torch.jit.save(torch.jit.freeze(traced.eval()), buffer)
    graph.write_bytes(_without_debug(buffer.getvalue()))
    return transformed


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
