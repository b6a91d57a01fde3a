"""Writing ONNX."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from kdmri_edge.errors import ExportError
from kdmri_edge.models.layers import Weighted
from kdmri_edge.models.protocol import InputKind, holds_mask
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.physics.operators import Form
from kdmri_edge.quantisation.calibration import layer_of, of_layers
from kdmri_edge.quantisation.scheme import image_channels, writes_blocks
from kdmri_edge.runtime.backends.onnxruntime import PRECISION_KEY
from kdmri_edge.utils.extras import require
from kdmri_export.passes.any_matrix import Sides, example_transforms, take_transforms
from kdmri_export.passes.cast import DTYPES, cast_layers
from kdmri_export.passes.complex_numbers import meets_complex, without_complex
from kdmri_export.passes.data_consistency import Lowering
from kdmri_export.passes.divide import divide_outputs
from kdmri_export.passes.fold import fold_batch_normalisations
from kdmri_export.passes.integer_forms import to_integer_forms
from kdmri_export.passes.joined_channels import split_joined
from kdmri_export.passes.narrow import decompose_narrow_convs
from kdmri_export.passes.onnx_function import INPUTS as FUNCTION_INPUTS
from kdmri_export.passes.onnx_function import Formula, add_function
from kdmri_export.passes.quantise import (
    choose_quantised,
    name_shared_layers,
    quantise_graph,
    ranges_of,
    round_outputs,
    share_ranges,
    sum_integers,
)
from kdmri_export.passes.small_images import copied_to_lower
from kdmri_export.passes.tracing import trace
from kdmri_export.passes.user_code import silence, source_line
from kdmri_export.recipe import ExportRecipe
from kdmri_export.transformed import Transformed
from kdmri_export.written import Written

__all__ = [
    "INPUT",
    "KSPACE",
    "MAPS",
    "OPERATOR",
    "OPSET",
    "OUTPUT",
    "bound",
    "example_maps",
    "free_axes",
    "free_shapes",
    "lowered_transforms",
    "quiet",
    "to_model",
    "write",
]

# From opset 20 on a DFT takes its axis as an input, which OpenVINO 2026.4 ignores without a word:
# it then transforms phase encode instead of readout. In 18 the axis is an attribute, read by all.
OPSET = 18
_OPSET_BF16: Final = 22
"""The first whose convolutions and poolings may be bfloat16."""
INPUT = "zero_filled"
KSPACE = "kspace"
_MISSING: Final = re.compile(r"No ONNX function found for <OpOverload\(op='(?P<name>[\w.:]+)'")
OPERATOR = "operator"
MAPS = "maps"
OUTPUT = "reconstruction"


def quiet() -> AbstractContextManager[None]:
    """Keep the exporter's chatter, and its warnings about itself, from the user.

    Its errors are raised all the same, and the parity gate judges its result.
    """
    return silence(
        ("torch.onnx",),
        level=logging.ERROR,
        redirect=contextlib.redirect_stdout,
        modules=r"(torch|onnxscript|onnx_ir)\b",
    )


def lowered_transforms(reconstructor: Reconstructor) -> bool:
    """Return whether Fourier transforms of a network become products with DFT matrices.

    The FFT form of the library's own data consistency keeps its DFT nodes, for comparisons.
    """
    return reconstructor.form is not Form.FFT or not reconstructor.spec.has_data_consistency


def bound(reconstructor: Reconstructor) -> dict[str, Tensor]:
    """Return the arguments of a network that are the same for every image, and looked at by value.

    Networks of k-space find the centre of their mask by its values, or walk over it. For those that
    do not hold their mask the operator is a weight like any.
    """
    return {OPERATOR: reconstructor.operator} if holds_mask(reconstructor.spec) else {}


def _exported(
    module: nn.Module,
    shown: tuple[Tensor, ...],
    inputs: list[str],
    output: str,
    shapes: Any,
    named: dict[str, Tensor] | None = None,
    *,
    constants: dict[str, Tensor] | None = None,
    real: bool = True,
    opset: int = OPSET,
) -> tuple[Any, int]:
    """Return a module as an `onnx.ModelProto` that holds no path of this machine.

    Args:
        module: What is written.
        shown: Example inputs, by position.
        inputs: Names of the graph's inputs.
        output: Name of its output.
        shapes: Which axes are free, see `trace`.
        named: Example inputs by name.
        constants: Arguments that are bound, see `trace`.
        real: Take complex numbers and Fourier transforms apart, if there are any.
        opset: Version of ONNX's operators.

    Returns:
        The graph, and how many Fourier transforms became products.
    """
    transforms = 0
    with quiet(), torch.no_grad():
        # makes the DFT matrices now: made while exporting, they would be symbolic
        complex_too = meets_complex(module, *shown, **(named or {}))
        program = trace(module, shown, named, constants=constants, dynamic_shapes=shapes)
        if real and complex_too:
            lowered = without_complex(program)
            program, transforms = lowered.program, lowered.transforms
        try:
            exported = torch.onnx.export(
                program,
                input_names=inputs,
                output_names=[output],
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # an exporter may raise anything
            raise _unwritten(error, program) from error
    assert exported is not None
    model = exported.model_proto
    _strip_traces(model)
    return model, transforms


def _unwritten(error: BaseException, program: torch.export.ExportedProgram) -> ExportError:
    """Return the error for a program that PyTorch's exporter does not write as ONNX."""
    while error.__cause__ is not None:  # it wraps what went wrong in advice
        error = error.__cause__
    said = str(error).strip().splitlines() or [type(error).__name__]
    remedy = "Write it with other operators, or export it for a target that takes it: pt2."
    if (found := _MISSING.search(said[0])) is None:
        return ExportError(f"PyTorch cannot write the network as ONNX: {said[0][:300]}", remedy)
    operator = found["name"].removeprefix("aten.").lstrip("_")  # part of a composite one, perhaps
    nodes = (node for node in program.graph.nodes if operator in str(node.target))
    node = next(nodes, None)
    place = "" if node is None else f", of {source_line(node)}"
    return ExportError(f"ONNX has no operator for {operator}{place}.", remedy)


def to_model(
    reconstructor: Reconstructor,
    example: Tensor,
    recipe: ExportRecipe,
    *,
    narrow: bool = True,
    unsigned: bool = True,
    outputs: bool = False,
) -> tuple[Any, Written]:
    """Return the network as an `onnx.ModelProto`, and what became of it.

    Args:
        reconstructor: The network.
        example: Input of the size that the graph is for, [1, C, H, W], or of k-space
            [1, coils, 2, H, W].
        recipe: Gives batch, precision, whether the mask is an input, whether data consistency
            stays one node, and for networks that combine coils their number, where the target has
            a fixed one. For int8 the network needs its activation maxima.
        unsigned: With int8, whether activations may be unsigned.
        outputs: With int8, whether what convolutions put out is rounded as well, as ONNX Runtime
            wants it; other runtimes lose by that.
        narrow: Take narrow convolutions apart (`passes.narrow`), which helps CPUs.

    Raises:
        ExportError: Data consistency of coils is to stay one node; see `trace` and
            `without_complex`.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    onnx = require("onnx", extra="onnx")
    require("onnxscript", extra="onnx")
    # torch.export takes a batch of one for a constant, so a dynamic one is shown as two.
    images = torch.cat((example, example)) if recipe.dynamic else example
    operator = reconstructor.operator
    if recipe.any_matrix:  # a square would hide that an axis was taken for the other
        images = pad(images, (0, recipe.multiple))
        if operator.shape[-1] == example.shape[-1] and reconstructor.form is Form.DFT:
            operator = pad(operator, (0, recipe.multiple))
    shapes: Any = free_axes(recipe, sense=reconstructor.spec.coils)
    shown: tuple[Tensor, ...] = (images, operator) if recipe.mask_input else (images,)
    names = [KSPACE if reconstructor.spec.reads is InputKind.KSPACE else INPUT]
    names += [OPERATOR] if recipe.mask_input else []
    made = example_transforms(reconstructor, images) if recipe.any_matrix else {}
    shown += tuple(made.values())
    names += made
    further: dict[str, Tensor] = {}
    if reconstructor.spec.coils:
        names.append(MAPS)
        further = {MAPS: example_maps(images, recipe)}
    if recipe.any_matrix:
        shapes = free_shapes(reconstructor, recipe, list(made))
    with torch.no_grad():
        lowered = copied_to_lower(reconstructor, recipe)
        ranges: dict[str, float] = {}
        image_parts: dict[str, int] = {}
        transformed = Transformed()
        if recipe.quantised:
            refuses = _without_kernel if outputs else lambda layer: None
            ranges, image_parts, transformed = _integers(
                lowered, recipe, refuses, unsigned=unsigned
            )
        if recipe.written in DTYPES:
            transformed = cast_layers(lowered, recipe.written, recipe.floats)
        # The FFT form is the export that one gets without us.
        if narrow and reconstructor.form is not Form.FFT:
            decompose_narrow_convs(lowered)
    lowering = Lowering(keep=recipe.keep_op)
    if made:
        take_transforms(lowered, lowering, list(made))
    with lowering:
        model, transforms = _exported(
            lowered,
            shown,
            names,
            OUTPUT,
            shapes,
            further,
            constants=bound(lowered),
            real=lowered_transforms(reconstructor),
            opset=_OPSET_BF16 if recipe.written == "bf16" else OPSET,
        )
    model.producer_name = "kdmri-edge"
    if lowering.keep and lowering.calls:  # a network may have no data consistency
        formula = Formula(*lowering.only_call())
        # Two tensors: given the same one twice, the exporter would read one for both.
        parts = (images, images.clone(), reconstructor.operator)
        batch = _free_batch(recipe)
        wide = (batch, batch, None) if recipe.dynamic else None
        inputs = list(FUNCTION_INPUTS)
        body, _ = _exported(formula, parts, inputs, OUTPUT, wide, real=False)
        add_function(model, body)
    if recipe.quantised:
        name_shared_layers(model, lowered)
        named = {f"model.{name}": value for name, value in ranges.items()}
        weights = {layer_of(key): lowered.get_submodule(layer_of(key)).weight for key in named}
        named, same = share_ranges(named, cast(dict[str, Tensor], weights))
        parted = {f"model.{name}": count for name, count in image_parts.items()}
        quantise_graph(model, named, unsigned=unsigned, images=parted, same=same)
        if outputs:
            round_outputs(model, named)
            divide_outputs(model)
            sum_integers(model)
    model.metadata_props.add(key=PRECISION_KEY, value=recipe.written)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # of types and shapes that ONNX's operators do not take
        said = " ".join(str(error).split())[:300].rstrip(".")
        raise ExportError(
            f"The network is no ONNX graph: {said}.",
            "Let it compute in float32, without casts or autocast of its own.",
        ) from error
    return model, Written(convolutions=transformed.total, transforms=transforms, layers=transformed)


def _without_kernel(layer: Weighted) -> str | None:
    """Say why ONNX Runtime has no integer kernel for a layer."""
    if isinstance(layer, nn.ConvTranspose2d) and not writes_blocks(layer):
        return "ONNX Runtime has no integer kernel for overlapping transposed convolutions"
    return None


def _integers(
    lowered: Reconstructor,
    recipe: ExportRecipe,
    refuses: Callable[[Weighted], str | None],
    *,
    unsigned: bool,
) -> tuple[dict[str, float], dict[str, int], Transformed]:
    """Prepare the layers that will be rounded, in place.

    Returns:
        The ranges of what they read, by their names; how many of the channels that each reads are
        an image's; and which layers they are.
    """
    fold_batch_normalisations(lowered.model)
    known = lowered.ranges or lowered.maxima
    choice = choose_quantised(lowered.model, known, recipe.floats, refuses)
    transformed, chosen = choice.transformed(), choice.names
    ranges = of_layers(ranges_of(lowered, unsigned=unsigned), chosen)
    image_parts = {
        one.name: image_channels(one, lowered.model.get_submodule(one.name))
        for one in choice.layers
    }
    to_integer_forms(lowered, chosen)
    return ranges, image_parts, transformed


def example_maps(images: Tensor, recipe: ExportRecipe) -> Tensor:
    """Return sensitivities of the shape that a graph is shown, [B, coils, 2, H, W]."""
    # torch.export takes one coil for a constant, so a free number is shown as two or more.
    coils = max(recipe.coils, 2) if recipe.row.any_coils else recipe.coils
    return images.new_full((len(images), coils, 2, *images.shape[-2:]), 0.1)


def _free_batch(recipe: ExportRecipe) -> dict[int, Any] | None:
    return {0: torch.export.Dim("batch", min=1)} if recipe.dynamic else None


def free_axes(recipe: ExportRecipe, *, sense: bool) -> Any:
    """Return which axes of the inputs are free, as torch.export takes it; None for none.

    Args:
        recipe: What is asked for.
        sense: The network combines coils: axes go by the names of its arguments then.
    """
    batch = _free_batch(recipe)
    if not sense:
        shapes = (batch, None) if recipe.mask_input else (batch,)
        return shapes if recipe.dynamic else None
    free = dict(batch or {})
    if recipe.row.any_coils:
        free[1] = torch.export.Dim("coils", min=1)
    operator = {OPERATOR: None} if recipe.mask_input else {}
    return {"x_u": batch, **operator, MAPS: free or None}


def free_shapes(
    reconstructor: Reconstructor, recipe: ExportRecipe, transforms: list[str]
) -> dict[str, Any]:
    """Return which axes of a graph of any matrix are free, by the names of its arguments."""
    sides, own = Sides(recipe.multiple), reconstructor.operator.shape
    high, wide = sides.height(), sides.width()
    shapes: dict[str, Any] = {"x_u": {**(_free_batch(recipe) or {}), 2: high, 3: wide}}
    if recipe.mask_input and reconstructor.form is Form.PROJECTION:
        square = sides.height(reconstructor.spec.channels)
        shapes[OPERATOR] = {0: square, 1: square}
    elif recipe.mask_input:
        shapes[OPERATOR] = {0: high} if own[1] == 1 else {0: high, 1: wide}
    for name, side in zip(transforms, (high, wide), strict=False):
        shapes[name] = {1: side, 2: side}
    if reconstructor.spec.coils:
        shapes[MAPS] = {**(free_axes(recipe, sense=True)[MAPS] or {}), 3: high, 4: wide}
    return shapes


def _strip_traces(model: Any) -> None:
    """Drop the stack traces that the exporter stores at each node: they hold paths of a machine."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]


def write(
    reconstructor: Reconstructor, example: Tensor, graph: Path, recipe: ExportRecipe
) -> Written:
    """Write the network as one .onnx file with its weights inside; see `to_model`."""
    model, written = to_model(reconstructor, example, recipe, outputs=True)
    split_joined(model)
    graph.write_bytes(model.SerializeToString())
    return written
