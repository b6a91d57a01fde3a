"""Writing what a TensorRT engine is built from: graph, scripts, and how to use them."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

from torch import Tensor

from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.runtime.backends import run_engine
from kdmri_edge.runtime.scope import SMALLEST_SIDE
from kdmri_edge.utils.files import write_json
from kdmri_export.graph_check import checked_graph
from kdmri_export.passes.any_matrix import example_transforms
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.onnx import MAPS, OPERATOR, example_maps, to_model
from kdmri_export.targets.tensorrt import build_engine, jetson
from kdmri_export.targets.tensorrt.build_engine import PROFILE
from kdmri_export.targets.tensorrt.engines import BATCHES
from kdmri_export.written import Written

__all__ = ["trtexec", "write"]

SCRIPTS = {"build_engine.py": build_engine, "run_engine.py": run_engine, "jetson.py": jetson}


Profile = dict[str, list[list[int]]]
"""Smallest, usual and largest shape of each input that has free axes."""


def trtexec(profile: Profile) -> str:
    """Return the trtexec command that builds the same engine.

    Args:
        profile: Of `profile_of`; empty for a graph without free axes.
    """
    line = "trtexec --onnx=model.onnx --stronglyTyped --noTF32 --saveEngine=model.tensorrt.engine"
    if not profile:
        return line
    for number, name in enumerate(("min", "opt", "max")):
        each = [f"{port}:" + "x".join(map(str, shapes[number])) for port, shapes in profile.items()]
        line += f" --{name}Shapes={','.join(each)}"
    return line


def profile_of(
    reconstructor: Reconstructor, example: Tensor, recipe: ExportRecipe, name: str
) -> Profile:
    """Return the shapes that an engine is built for, in the order of the graph's inputs.

    Of any matrix the usual one is the network's own; the smallest has half of its sides, the
    largest twice as long ones.

    Args:
        reconstructor: The network.
        example: Its input, of one slice.
        recipe: Says which axes are free.
        name: Of that input.
    """
    batches = BATCHES if recipe.dynamic else (1, 1, 1)
    side, multiple = example.shape[-1], recipe.multiple
    sides = [side, side, side]
    if recipe.any_matrix:
        sides = [max(SMALLEST_SIDE, side // 2), side, 2 * side]
        sides = [-(-one // multiple) * multiple for one in sides]
    if not (recipe.dynamic or recipe.any_matrix):
        return {}
    between = example.shape[1:-2]
    found = {name: [[b, *between, n, n] for b, n in zip(batches, sides, strict=True)]}
    if recipe.any_matrix and recipe.mask_input:
        own = tuple(reconstructor.operator.shape)
        times = own[0] // side  # twice the lines for two channels
        columns = [1 if own[1] == 1 else times * n for n in sides]
        found[OPERATOR] = [[times * n, c] for n, c in zip(sides, columns, strict=True)]
        names = example_transforms(reconstructor, example)
        found |= {name: [[2, n, n] for n in sides] for name in names}
    if reconstructor.spec.coils:
        coils = int(example_maps(example, recipe).shape[1])
        found[MAPS] = [[b, coils, 2, n, n] for b, n in zip(batches, sides, strict=True)]
    return found


def write(
    reconstructor: Reconstructor, example: Tensor, graph: Path, recipe: ExportRecipe
) -> Written:
    """Write the graph, and beside it the scripts that build, check and time an engine.

    Real tensors, static height and width unless they are asked to be free, data consistency in
    float32, explicit casts where the convolutions are not: TensorRT 11 computes what the graph
    says. Convolutions stay whole, since GPUs have no use for `passes.narrow`.

    Args:
        reconstructor: The network.
        example: Input of the size that the graph is for, see `targets.onnx.to_model`.
        graph: Destination, .onnx.
        recipe: Gives batch and matrix (any of either needs a profile, of which that of matrices is
            written as profile.json), precision (int8 is signed, for TensorRT has no other) and
            whether the mask is an input.

    Raises:
        ExportError: TensorRT does not take a node, such as the DFT of `--dc fft`; it is named.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    model, written = to_model(reconstructor, example, recipe, narrow=False, unsigned=False)
    checked_graph(model, recipe.target)
    graph.write_bytes(model.SerializeToString())
    for name, module in SCRIPTS.items():
        shutil.copyfile(str(module.__file__), graph.parent / name)
    notes = resources.files("kdmri_export.targets.tensorrt") / "README.md"
    profile = profile_of(reconstructor, example, recipe, str(model.graph.input[0].name))
    if recipe.any_matrix:
        write_json(graph.parent / PROFILE, profile)
    command = trtexec(profile)
    text = notes.read_text(encoding="utf-8").replace("{trtexec}", command)
    (graph.parent / "README.md").write_text(text, encoding="utf-8")
    return written
