"""Writing programs of torch.export, and what AOTInductor compiles of them."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from kdmri_edge.models.permission import keep_program
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.physics.operators import Form
from kdmri_edge.runtime.backends.pt2 import INPUTS, MADE_FOR, MADE_WITH, package_of
from kdmri_edge.utils.console import say
from kdmri_edge.utils.provenance import cpu
from kdmri_export.passes.cast import DTYPES, cast_layers
from kdmri_export.passes.complex_numbers import meets_complex, without_complex
from kdmri_export.passes.data_consistency import Lowering
from kdmri_export.passes.narrow import decompose_narrow_convs
from kdmri_export.passes.small_images import copied_to_lower
from kdmri_export.passes.tracing import trace
from kdmri_export.passes.user_code import silence
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.onnx import (
    MAPS,
    OPERATOR,
    bound,
    example_maps,
    free_axes,
    lowered_transforms,
)
from kdmri_export.transformed import Transformed
from kdmri_export.written import Written

__all__ = ["write"]


class _Program(nn.Module):
    """A network whose names can stand in C++, where AOTInductor writes them: not `operator`.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, x_u: Tensor, consistency: Tensor | None = None, maps: Tensor | None = None
    ) -> Tensor:
        made: Tensor = self.network(x_u, consistency, maps)
        return made

    @staticmethod
    def renamed(arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Call a network's arguments as they are called here."""
        return {"consistency" if name == OPERATOR else name: arguments[name] for name in arguments}


def write(
    reconstructor: Reconstructor, example: Tensor, graph: Path, recipe: ExportRecipe
) -> Written:
    """Save a network as a program of torch.export, and compile it where there is a C++ compiler.

    Args:
        reconstructor: The network.
        example: Input of the size that the graph is for, see `targets.onnx.to_model`.
        graph: Destination; the compiled package lies beside it.
        recipe: Gives batch, precision, whether the mask is an input, the number of coils that the
            example has, and whether the program is compiled.

    Raises:
        ExportError: See `trace` and `without_complex`.
        OutputError: This machine cannot keep in mind which programs were written here.
    """
    transformed, transforms = Transformed(), 0
    lowered = copied_to_lower(reconstructor, recipe)
    if recipe.precision in DTYPES:
        transformed = cast_layers(lowered, recipe.precision, recipe.floats)
    # The FFT form is the export that one gets without us.
    if reconstructor.form is not Form.FFT:
        decompose_narrow_convs(lowered)
    # torch.export takes a batch of one for a constant, so a free one is shown as two.
    images = torch.cat((example, example)) if recipe.dynamic else example
    shown = (images, reconstructor.operator) if recipe.mask_input else (images,)
    named = {MAPS: example_maps(images, recipe)} if reconstructor.spec.coils else {}
    shapes = free_axes(recipe, sense=bool(named))
    if isinstance(shapes, dict):
        shapes = _Program.renamed(shapes)
    with torch.no_grad(), Lowering():
        # makes the DFT matrices now: while tracing, they would be symbols
        complex_too = meets_complex(lowered, *shown, **named)
        program = trace(
            _Program(lowered),
            shown,
            named,
            constants=_Program.renamed(bound(lowered)),
            dynamic_shapes=shapes,
        )
        if complex_too and lowered_transforms(reconstructor):
            made = without_complex(program)
            program, transforms = made.program, made.transforms
    _strip_traces(program)
    _own_memory(program)
    torch.export.save(program, graph)
    keep_program(graph)
    if recipe.compiled:
        _compile(program, package_of(graph))
    return Written(convolutions=transformed.total, transforms=transforms, layers=transformed)


def _strip_traces(program: ExportedProgram) -> None:
    """Drop the call stacks that are stored for each operation: they hold paths of a machine."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)


def _own_memory(program: ExportedProgram) -> None:
    """Give each constant memory of its own, in PyTorch's usual order, as it is saved best."""
    for held in (program.state_dict, program.constants):
        for name, value in list(held.items()):
            if isinstance(value, Tensor):
                made = value.detach().clone(memory_format=torch.contiguous_format)
                held[name] = nn.Parameter(made, False) if isinstance(value, nn.Parameter) else made


def _shapes(program: ExportedProgram) -> list[list[int | None]]:
    """Return the shapes of a program's inputs, which it does not check itself once it is compiled.

    Returns:
        For each input its sizes, None for one that is free.
    """
    names = set(program.graph_signature.user_inputs)
    return [
        [size if isinstance(size, int) else None for size in node.meta["val"].shape]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names
    ]


def _compile(program: ExportedProgram, package: Path) -> None:
    """Compile a program for this machine's CPU; say so where that cannot be done."""
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.utils import fresh_cache

    metadata = {
        MADE_WITH: str(torch.__version__),
        MADE_FOR: cpu(),
        INPUTS: json.dumps(_shapes(program)),
    }
    try:
        with (
            tempfile.TemporaryDirectory() as place,
            silence(("torch._inductor",), level=logging.ERROR),
            fresh_cache(dir=place),
        ):
            made = Path(place) / package.name
            aoti_compile_and_package(
                program,
                package_path=str(made),
                inductor_configs={"aot_inductor.metadata": metadata},
            )
            _copy_without_paths(made, package, place)
    except Exception as error:  # a compiler that is missing, broken, or without its headers
        package.unlink(missing_ok=True)
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        said = lines[0][:200] if lines else type(error).__name__
        say(
            f"Not compiled by AOTInductor: {said}. The program itself is written; a C++ compiler"
            " is what compiling needs."
        )
        return
    keep_program(package)


def _copy_without_paths(made: Path, package: Path, place: str) -> None:
    """Copy a package, with names of folders of this machine crossed out.

    Machine code holds the names of the files that it was compiled from, for messages. What takes
    their place is of their length, so that nothing else in the code moves.

    Args:
        made: What was compiled.
        package: Destination.
        place: The folder in which it was.
    """
    libraries = str(Path(torch.__file__).parents[2])
    with zipfile.ZipFile(made) as old, zipfile.ZipFile(package, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            for path in (place, libraries, sys.base_prefix, tempfile.gettempdir()):
                content = content.replace(path.encode(), b"/" + b"x" * (len(path.encode()) - 1))
            # Made anew: the writer's own dates are not valid ones.
            new.writestr(zipfile.ZipInfo(entry.filename), content, zipfile.ZIP_STORED)
