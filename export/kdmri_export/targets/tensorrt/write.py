"""Writing what a TensorRT engine is built from: graph, scripts, and how to use them."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

from torch import Tensor

from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.runtime.backends import run_engine
from kdmri_export.graph_check import checked_graph
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.onnx import MAPS, example_maps, to_model
from kdmri_export.targets.tensorrt import build_engine
from kdmri_export.targets.tensorrt.engines import BATCHES
from kdmri_export.written import Written

__all__ = ["trtexec", "write"]

SCRIPTS = {"build_engine.py": build_engine, "run_engine.py": run_engine}


def trtexec(*, dynamic: bool, shapes: dict[str, tuple[int, ...]], batches: tuple[int, ...]) -> str:
    """Return the trtexec command that builds the same engine.

    Args:
        dynamic: Whether the graph takes any batch.
        shapes: Shape of each input for one slice.
        batches: Smallest, usual and largest batch of a dynamic graph.
    """
    line = "trtexec --onnx=model.onnx --stronglyTyped --noTF32 --saveEngine=model.tensorrt.engine"
    if not dynamic:
        return line
    for name, batch in zip(("min", "opt", "max"), batches, strict=True):
        each = [
            f"{port}:" + "x".join(map(str, (batch, *shape[1:]))) for port, shape in shapes.items()
        ]
        line += f" --{name}Shapes={','.join(each)}"
    return line


def write(
    reconstructor: Reconstructor, example: Tensor, graph: Path, recipe: ExportRecipe
) -> Written:
    """Write the graph, and beside it the scripts that build, check and time an engine.

    Real tensors, static height and width, data consistency in float32, explicit casts where the
    convolutions are not: TensorRT 11 computes what the graph says. Convolutions stay whole, since
    GPUs have no use for `passes.narrow`.

    Args:
        reconstructor: The network.
        example: Input of the size that the graph is for, see `targets.onnx.to_model`.
        graph: Destination, .onnx.
        recipe: Gives batch (any batch needs a profile of batches), precision (int8 is signed, for
            TensorRT has no other) and whether the mask is an input.

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
    shapes = {str(model.graph.input[0].name): tuple(example.shape)}
    if reconstructor.spec.coils:
        shapes[MAPS] = tuple(example_maps(example, recipe).shape)
    command = trtexec(dynamic=recipe.dynamic, shapes=shapes, batches=BATCHES)
    text = notes.read_text(encoding="utf-8").replace("{trtexec}", command)
    (graph.parent / "README.md").write_text(text, encoding="utf-8")
    return written
