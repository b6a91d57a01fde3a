"""An ONNX graph of any origin without its DFT nodes, compared with the original before it is kept.

The counterpart of an export's parity gate: both graphs run on the same random numbers in ONNX
Runtime, or where that does not take the original, that one in ONNX's reference implementation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import ExportError, OutputError, ParityError
from kdmri_edge.runtime.deviation import TOLERANCES, Figures, compare
from kdmri_edge.utils.extras import require
from kdmri_edge.utils.files import atomic_path
from kdmri_export.graph_check import external_files, load_graph
from kdmri_export.passes.onnx_fourier import LARGEST_FILE, fix_shapes, replace_transforms
from kdmri_export.runtime_check import (
    SECONDS,
    ask,
    check_shapes,
    precision_of,
    random_inputs,
    sentence,
)

__all__ = ["Rewritten", "rewrite_graph"]

_TIMED_S: Final = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewritten:
    """What came of it.

    Attributes:
        transforms: DFT nodes that became products.
        shifts: Shifts around them that their matrices do now.
        matrix_bytes: Of these matrices.
        file_bytes: Of the file that was written.
        max_error: Largest deviation over all outputs, as a share of their range.
        nrmse: Root-mean-square deviation, relative.
        tolerance: What they may be.
        against: What computed the original, with its version.
        before_ms: Median of the original in ONNX Runtime; None where it was not timed.
        after_ms: That of what was written, measured in turn with it.
    """

    transforms: int
    shifts: int
    matrix_bytes: int
    file_bytes: int
    max_error: float
    nrmse: float
    tolerance: Mapping[str, float]
    against: str
    before_ms: float | None = None
    after_ms: float | None = None


def rewrite_graph(
    source: Path,
    out: Path,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    timed: bool = False,
    limit_s: float = SECONDS,
) -> Rewritten:
    """Write an ONNX graph with products in place of its DFT nodes.

    Args:
        source: An .onnx file, which may keep its weights in files beside it.
        out: Destination; its weights lie inside.
        shapes: Sizes of inputs that the graph leaves free, by their names.
        timed: Time both graphs.
        limit_s: How long a runtime may work on a graph.

    Raises:
        ExportError: No ONNX graph, one without DFT nodes, one of whose transforms cannot be a
            product (see `passes.onnx_fourier`), one that would be larger than 2 GB, or one that no
            runtime computes.
        ParityError: What was made computes something else; nothing is written.
        OutputError: `out` is the source, or cannot be written.
        MissingExtraError: onnx, onnxruntime or torch is not installed.
    """
    require("onnxruntime", extra="onnx")
    if out.resolve() == source.resolve():
        raise OutputError(f"{out} is the graph to be rewritten.", "Choose another name.")
    model = _whole(source)
    shapes = dict(shapes or {})
    held = {constant.name for constant in model.graph.initializer}
    check_shapes([port for port in model.graph.input if port.name not in held], shapes)
    fix_shapes(model, shapes)
    replaced = replace_transforms(model)
    if model.ByteSize() > LARGEST_FILE:
        raise _too_large(source)
    inputs = random_inputs(_with_float_ports(model))
    if isinstance(inputs, str):
        raise ExportError(
            f"{source} cannot be compared with what is made of it: {inputs}.",
            "Leave that graph as it is."
            if "type" in inputs
            else "Fix the sizes of its inputs with --shape NAME=SIZES.",
        )
    with atomic_path(out) as temporary, tempfile.TemporaryDirectory() as place:
        content = model.SerializeToString()
        temporary.write_bytes(content)
        graphs = _as_compared(source, temporary, model, Path(place))
        rounded = precision_of(model) == "bf16"
        against, figures = _compared(source, graphs, inputs, limit_s, rounded=rounded)
        if figures is None:  # a root or a logarithm of negative numbers, say
            inputs = {name: np.abs(given) for name, given in inputs.items()}
            against, figures = _compared(source, graphs, inputs, limit_s, rounded=rounded)
        if figures is None:
            raise ExportError(
                f"What {source} makes of random numbers holds no finite number, so that nothing can"
                " be compared.",
                "Nothing was written; leave that graph as it is.",
            )
        tolerance = TOLERANCES[precision_of(model)]
        limits = {"max_error": tolerance.max_error, "nrmse": tolerance.nrmse}
        exceeded = figures.exceeded(tolerance)
        if exceeded:
            told = ", ".join(
                f"{key} {getattr(figures, key):.2g} (limit {limits[key]:.2g})" for key in exceeded
            )
            raise ParityError(
                f"What was made of {source} does not compute what it does: {told}.",
                "Nothing was written; `kdmri-edge check` compares runtimes on the graph as it is.",
            )
        times = None
        if timed:
            times = _times(*graphs, inputs, limit_s)
    before, after = times or (None, None)
    return Rewritten(
        transforms=replaced.transforms,
        shifts=replaced.shifts,
        matrix_bytes=replaced.matrix_bytes,
        file_bytes=len(content),
        max_error=figures.max_error,
        nrmse=figures.nrmse,
        tolerance=limits,
        against=against,
        before_ms=before,
        after_ms=after,
    )


def _too_large(source: Path) -> ExportError:
    return ExportError(
        f"{source} would not fit into one ONNX file of 2 GB once it is rewritten.",
        "Leave that graph as it is.",
    )


def _whole(source: Path) -> Any:
    """Read a graph with all its weights."""
    onnx = require("onnx", extra="onnx")
    model = load_graph(source)
    beside = external_files(model)
    sizes = [file.stat().st_size for file in (source, *(source.parent / name for name in beside))]
    if sum(sizes) > LARGEST_FILE:
        raise _too_large(source)
    if beside:
        try:
            onnx.load_external_data_for_model(model, str(source.parent))
        except Exception as error:  # a path that leads elsewhere, or fewer bytes than it says
            raise ExportError(
                f"The weights beside {source} cannot be read ({sentence(str(error))}).",
                "Copy them again.",
            ) from error
    return model


def _with_float_ports(model: Any) -> Any:
    """Return a graph that is given, and gives, float32 where it has bfloat16: NumPy has none.

    Args:
        model: An `onnx.ModelProto`; it is returned itself where it has no such ports.
    """
    onnx = require("onnx", extra="onnx")
    types, make = onnx.TensorProto, onnx.helper.make_node
    held = {constant.name for constant in model.graph.initializer}
    typed = onnx.shape_inference.infer_shapes(model).graph.output
    outputs = {port.name for port in typed if port.type.tensor_type.elem_type == types.BFLOAT16}
    inputs = {
        port.name for port in model.graph.input
        if port.type.tensor_type.elem_type == types.BFLOAT16 and port.name not in held
    }  # fmt: skip
    if not inputs | outputs:
        return model
    wide = type(model)()
    wide.CopyFrom(model)
    for port in (*wide.graph.input, *wide.graph.output):
        if port.name not in inputs | outputs:
            continue
        own, other = port.name, f"{port.name} as float32"
        port.name, port.type.tensor_type.elem_type = other, types.FLOAT
        if own in inputs:
            wide.graph.node.insert(0, make("Cast", [other], [own], to=types.BFLOAT16))
        else:
            wide.graph.node.append(make("Cast", [own], [other], to=types.FLOAT))
    return wide


def _as_compared(source: Path, made: Path, model: Any, place: Path) -> tuple[Path, Path]:
    """Return files of both graphs that can be given numbers, see `_with_float_ports`.

    Args:
        source: The original.
        made: What was made of it.
        model: The same, loaded.
        place: An empty folder.
    """
    if (wide := _with_float_ports(model)) is model:
        return source, made
    files = place / "original.onnx", place / "made.onnx"
    for file, graph in zip(files, (_with_float_ports(_whole(source)), wide), strict=True):
        file.write_bytes(graph.SerializeToString())
    return files


def _compared(
    source: Path,
    graphs: tuple[Path, Path],
    inputs: Mapping[str, NDArray[Any]],
    limit_s: float,
    *,
    rounded: bool,
) -> tuple[str, Figures | None]:
    """Run both graphs; return what computed the original, and the deviation (`_deviation`).

    Args:
        source: What to call the original.
        graphs: The original and what was made of it, see `_as_compared`.
        inputs: What both are given.
        limit_s: How long a runtime may work on either.
        rounded: They compute in bfloat16, which ONNX Runtime has few operators for on CPUs: its
            reference implementation may run what was made, too.
    """
    original, made = graphs
    with tempfile.TemporaryDirectory() as place:
        theirs, ours = Path(place) / "original.npz", Path(place) / "made.npz"
        found = ask("onnxruntime", [made], inputs, outputs=[ours], limit_s=limit_s)
        if not found["ran"] and rounded:
            found = ask("reference", [made], inputs, outputs=[ours], limit_s=limit_s)
        if not found["ran"]:
            raise ExportError(
                f"ONNX Runtime does not run what was made of {source}"
                f" ({sentence(found['crashed'] or found['reason'] or '')}).",
                "Nothing was written; `kdmri-edge check` says which runtime takes the original.",
            )
        if not ours.is_file():
            raise ExportError(
                f"What {source} gives for inputs of these sizes is too large to be compared.",
                "Fix smaller ones with --shape NAME=SIZES, where the graph leaves them free.",
            )
        reasons = []
        for runtime, title in (
            ("onnxruntime", "ONNX Runtime"),
            ("reference", "ONNX's reference implementation"),
        ):
            found = ask(runtime, [original], inputs, outputs=[theirs], limit_s=limit_s)
            if found["ran"]:
                return f"{title} {found['version']}", _deviation(ours, theirs)
            reason = found["crashed"] or found["reason"] or ""
            reasons.append(f"{title} says: {sentence(reason)}")
        raise ExportError(
            f"Nothing here computes {source} to compare with: {'; '.join(reasons)}.",
            "Nothing was written; write the graph again with its exporter.",
        )


def _deviation(ours: Path, theirs: Path) -> Figures | None:
    """Return the worst figures over all outputs; not-a-number where they are of other shapes.

    None where no number of the original is finite: equal emptiness proves nothing.
    """
    nothing = Figures(max_error=0.0, nrmse=0.0, psnr_db=0.0, ssim=0.0)
    broken = Figures(max_error=np.nan, nrmse=np.nan, psnr_db=0.0, ssim=0.0)
    with np.load(ours) as a, np.load(theirs) as b:
        if len(a.files) != len(b.files):
            return broken
        worst = None
        for name in a.files:
            one, other = (
                made.astype(np.uint8) if made.dtype.kind == "b" else made
                for made in (a[name], b[name])
            )
            if one.shape != other.shape:
                return broken
            finite = np.isfinite(other)
            if not np.array_equal(finite, np.isfinite(one)):
                return broken
            if finite.any():
                worst = (worst or nothing).worst(compare(one[finite], other[finite]))
        return worst


def _times(
    source: Path, made: Path, inputs: Mapping[str, NDArray[Any]], limit_s: float
) -> tuple[float, float] | None:
    """Time both in one process, in turn; None where ONNX Runtime does not run the original."""
    found = ask("onnxruntime", [source, made], inputs, seconds=_TIMED_S, limit_s=limit_s)
    return (found["ms"][0], found["ms"][1]) if found["ms"] else None
