"""Writing TorchScript."""

from __future__ import annotations

import copy
import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

import kdmri_edge
from kdmri_edge.errors import ExportError
from kdmri_edge.models.blocks import channels_last
from kdmri_edge.models.permission import keep_program
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.physics.operators import Form
from kdmri_edge.runtime.backends.torchscript import silence_warnings
from kdmri_edge.runtime.graphs.torchscript import refused
from kdmri_edge.utils.console import say
from kdmri_export.passes.any_matrix import example_transforms, take_transforms
from kdmri_export.passes.cast import DTYPES, cast_layers
from kdmri_export.passes.complex_numbers import meets_complex, without_complex
from kdmri_export.passes.data_consistency import Lowering
from kdmri_export.passes.fold import fold_batch_normalisations
from kdmri_export.passes.integer import RectifiedIntegers, quantise_convolutions
from kdmri_export.passes.narrow import decompose_narrow_convs
from kdmri_export.passes.quantise import ranges_of
from kdmri_export.passes.small_images import copied_to_lower
from kdmri_export.passes.tracing import trace
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.onnx import OPERATOR, bound, example_maps, free_shapes, lowered_transforms
from kdmri_export.transformed import Transformed
from kdmri_export.written import Written

__all__ = ["write"]

_DEBUG = ".debug_pkl"
_TRACER_WARNING: type[Warning] = torch.jit.TracerWarning  # type: ignore[attr-defined]
_NOT_THEIRS = tuple(str(Path(str(one.__file__)).parent) for one in (torch, kdmri_edge))


def write(
    reconstructor: Reconstructor, example: Tensor, graph: Path, recipe: ExportRecipe
) -> Written:
    """Trace a network and save it for libtorch.

    Args:
        reconstructor: The network.
        example: Input of the size that the graph is for, see `targets.onnx.to_model`.
        graph: Destination.
        recipe: Gives precision and whether the mask is an input; a trace follows the batch and
            the number of coils by itself. For int8 the network needs its activation maxima.

    Raises:
        ExportError: Integers are asked for of a network with complex numbers, or the network
            decides by values of its inputs; see `trace` and `without_complex`.
        OutputError: This machine cannot keep in mind that an unusual archive was written here.
    """
    transformed, transforms = Transformed(), 0
    lowered = copied_to_lower(reconstructor, recipe)
    if recipe.precision in DTYPES:
        transformed = cast_layers(lowered, recipe.precision, recipe.floats)
    if recipe.quantised:
        fold_batch_normalisations(lowered.model)
        with silence_warnings():
            ranges = ranges_of(lowered, unsigned=True)
            transformed = quantise_convolutions(lowered, ranges, recipe.floats)
    # The FFT form is the export that one gets without us.
    if reconstructor.form is not Form.FFT:
        decompose_narrow_convs(lowered)
        channels_last(lowered)
    shown = {"x_u": example}
    if recipe.mask_input:
        shown["operator"] = reconstructor.operator
    if reconstructor.spec.coils:
        shown["maps"] = example_maps(example, recipe)
    lowering = Lowering()
    made = example_transforms(reconstructor, example) if recipe.any_matrix else {}
    if made:
        shown |= made
        take_transforms(lowered, lowering, list(made))
    module: nn.Module = lowered
    given: dict[str, Any] = {"example_kwarg_inputs": shown}
    with silence_warnings(), torch.no_grad(), lowering, RectifiedIntegers():
        if lowered_transforms(reconstructor) and meets_complex(lowered, **shown):
            module, transforms = _without_complex(lowered, shown, recipe)
            given = {"example_inputs": tuple(shown.values())}
    buffer = io.BytesIO()
    with silence_warnings(), torch.no_grad(), lowering, RectifiedIntegers():
        with warnings.catch_warnings(record=True) as chosen:
            warnings.simplefilter("always", _TRACER_WARNING)
            traced: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
                module, check_trace=False, **given
            )
        torch.jit.save(torch.jit.freeze(traced.eval()), buffer)
    # The tracer points at choices by shape, which are fixed for a graph, the formulas' among them,
    # and at those by values, which it would fix as well: torch.export tells them apart.
    if module is lowered and any(not one.filename.startswith(_NOT_THEIRS) for one in chosen):
        with torch.no_grad(), Lowering():
            own = {name: value for name, value in shown.items() if name not in made}
            shapes = None
            if recipe.any_matrix and not reconstructor.spec.has_data_consistency:
                own["x_u"] = pad(example, (0, recipe.multiple))  # no square, as for ONNX
                shapes = free_shapes(reconstructor, recipe, [])
            trace(
                copy.deepcopy(reconstructor), (), own,
                constants=bound(reconstructor), dynamic_shapes=shapes,
            )  # fmt: skip
    graph.write_bytes(_without_debug(buffer.getvalue()))
    _keep_unknown(graph)
    return Written(convolutions=transformed.total, transforms=transforms, layers=transformed)


def _keep_unknown(graph: Path) -> None:
    """Allow an archive that other machines will not know by its operators to be loaded here."""
    if (why := refused(graph)) is not None:
        keep_program(graph)
        say(
            f"Note: {graph.name} {why}. It runs on this machine; elsewhere it has to be allowed by"
            " --code, as a program of unknown origin."
        )


def _without_complex(
    lowered: Reconstructor, shown: dict[str, Tensor], recipe: ExportRecipe
) -> tuple[nn.Module, int]:
    """Return a network without complex numbers, and how many transforms became products."""
    if recipe.quantised:
        raise ExportError(
            "TorchScript has no integers for a network with complex numbers or Fourier transforms.",
            "Export it with --precision fp32, or for a target that has, e.g. --target openvino.",
        )
    batch = {0: torch.export.Dim.AUTO} if recipe.dynamic else None
    given = {
        name: torch.cat((one, one)) if recipe.dynamic and name != OPERATOR else one
        for name, one in shown.items()
    }
    program = trace(
        lowered,
        (),
        given,
        constants=bound(lowered),
        dynamic_shapes={name: None if name == OPERATOR else batch for name in given},
    )
    made = without_complex(program)
    return made.program.module(check_guards=False), made.transforms


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
