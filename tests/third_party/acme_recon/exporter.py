"""Writing a program of torch.export that needs no operator of kdmri-edge."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from kdmri_edge.errors import ExportError
from kdmri_edge.models import Reconstructor
from kdmri_export import ExportRecipe, Lowering, cast_convolutions


def write(reconstructor: Reconstructor, example: Tensor, graph: Path, recipe: ExportRecipe) -> int:
    """Write the graph; return how many convolutions are not in float32.

    Raises:
        ExportError: The network takes more than images.
    """
    if recipe.mask_input or recipe.dynamic or reconstructor.spec.coils:
        raise ExportError(
            "Acme's programs take one slice of one mask, without coils.",
            "Export with --batch 1 and a mask of its own, or for another target.",
        )
    lowered = copy.deepcopy(reconstructor)
    transformed = cast_convolutions(lowered, "f16") if recipe.precision == "f16" else 0
    with torch.no_grad(), Lowering():
        program = torch.export.export(lowered, (example,), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders of this machine
    torch.export.save(program, graph)
    return transformed
