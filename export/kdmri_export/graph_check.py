"""Which operators a graph holds, and which of them a target's exports must not hold.

A table of this project's own, of what its exports use and its tests cover: what an export must keep
to, since runtimes say it late, at the device, and in their own words. Of graphs of other origin it
tells what nobody here has tried; whether a runtime takes these is for the runtime to say
(`runtime_check`), except where it is known to compute something else without a word.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from kdmri_edge.errors import ExportError, KdmriError
from kdmri_edge.models.foreign import file_kind
from kdmri_edge.utils.extras import require
from kdmri_edge.utils.reading import check_claim, file_bytes, reading

__all__ = ["CHECKED", "WHOLE", "Finding", "check_graph", "checked_graph", "external_files",
           "load_graph"]  # fmt: skip

WHOLE: Final = "(the graph)"
"""What a finding about no single node has for its name."""

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Neg", "Relu", "Cast", "Identity"}
_SHAPES = {"Concat", "Constant", "Expand", "Gather", "Reshape", "Shape", "Slice", "Split",
           "Squeeze", "Transpose", "Unsqueeze"}  # fmt: skip
# Of networks that users bring: run by ONNX Runtime and OpenVINO, and built by TensorRT-RTX.
_BROUGHT = {"AveragePool", "BatchNormalization", "Clip", "ConvTranspose", "DepthToSpace", "Elu",
            "Erf", "Exp", "Flatten", "GlobalAveragePool", "HardSigmoid", "HardSwish",
            "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Log", "Max", "MaxPool",
            "Min", "PRelu", "Pad", "Pow", "Reciprocal", "ReduceMax", "ReduceMean", "Resize",
            "Sigmoid", "Softmax", "Softplus", "SpaceToDepth", "Sqrt", "Tanh", "Tile",
            "Where"}  # fmt: skip
_COMMON = {"Conv", "MatMul", "Gemm", "ReduceSum", "QuantizeLinear", "DequantizeLinear"}
_TAKEN = _COMMON | _ELEMENTWISE | _SHAPES | _BROUGHT
# target -> operators of the standard domain that it takes.
CHECKED: Final[dict[str, frozenset[str]]] = {
    # ConvInteger is what int8 for ONNX Runtime sums with; OpenVINO runs such bundles, too.
    "onnx": frozenset(_TAKEN | {"DFT", "ConvInteger"}),
    "openvino": frozenset(_TAKEN | {"DFT", "ConvInteger"}),
    "trt": frozenset(_TAKEN),
}
_WHY: Final = {
    ("trt", "ConvInteger"): (
        "TensorRT has integers between QuantizeLinear and DequantizeLinear alone",
        "Quantise for TensorRT: `kdmri-edge export --target trt --precision int8`.",
    ),
    ("trt", "DFT"): (
        "TensorRT has it from 11.2 on only, and TensorRT-RTX not at all",
        "Export with `kdmri-edge export --dc auto`: data consistency is then a matrix product;"
        " `kdmri-edge rewrite` does that to graphs of other origin.",
    ),
}
# From this opset on a DFT takes its axis as an input, which OpenVINO 2026.4 ignores.
_DFT_AXIS_INPUT = 20
# Before it there is no quantisation per channel, and axes are attributes.
_OLDEST = 13


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A node that exports for a target do not hold.

    Attributes:
        node: Its name in the graph.
        operator: Its type, with the domain where that is not the standard one.
        why: What is wrong with it.
        remedy: What helps.
        fault: The target is known to lack it, or to compute something else; where false, no
            export of this project has it, and no test has seen it work.
        silent: The target is known to compute something else without a word.
    """

    node: str
    operator: str
    why: str
    remedy: str
    fault: bool = False
    silent: bool = False

    def __str__(self) -> str:
        """Say it in one sentence."""
        return f"node {self.node!r} ({self.operator}): {self.why}"


def check_graph(graph: Path | bytes | Any, target: str) -> tuple[dict[str, int], list[Finding]]:
    """List the operators of an ONNX graph, and the nodes that exports for a target do not hold.

    Args:
        graph: A .onnx file, its bytes, or an `onnx.ModelProto`.
        target: Key of `CHECKED`.

    Returns:
        How often each operator occurs, by name, and the findings in the order of the graph; calls
        of model-local functions are spelled out.

    Raises:
        ExportError: There is no table for the target, or the file is no ONNX graph.
        MissingExtraError: onnx is not installed.
    """
    if target not in CHECKED:
        raise ExportError(
            f"There is no table of operators for {target!r}.", f"Use {', '.join(CHECKED)}."
        )
    model = load_graph(graph)
    opset = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
    constants = {i.name: i for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = next(
                (held.t for held in node.attribute if held.name == "value"), None
            )
    counts: Counter[str] = Counter()
    findings = []
    if opset < _OLDEST:
        why = f"it is written in opset {opset}, and nothing before {_OLDEST} has been tried"
        remedy = "Export it with a newer opset, e.g. 18."
        findings.append(Finding(node=WHOLE, operator="opset", why=why, remedy=remedy))
    for number, node in enumerate(_spelled_out(model)):
        operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        counts[operator] += 1
        problem = _problem(node, operator, target, opset, constants)
        if problem is not None:
            name = node.name or f"#{number}"
            findings.append(Finding(node=name, operator=operator, **problem))
    return dict(sorted(counts.items())), findings


def checked_graph(graph: Path | bytes | Any, target: str) -> dict[str, int]:
    """Return the operators of a graph that a target takes as a whole.

    Raises:
        ExportError: It does not; the message names the first offending node.
    """
    counts, findings = check_graph(graph, target)
    if findings:
        first = findings[0]
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise ExportError(f"Target {target!r} does not take {first}{more}.", first.remedy)
    return counts


def _spelled_out(model: Any) -> Iterator[Any]:
    """Yield the nodes of a graph and of the graphs that they hold, such as the branches of an If.

    For each call of a model-local function come the nodes of its body.
    """
    functions = {(function.domain, function.name): function for function in model.functions}

    def within(nodes: Iterable[Any], calls: tuple[tuple[str, str], ...]) -> Iterator[Any]:
        for node in nodes:
            key = node.domain, node.op_type
            if key in functions and key not in calls:  # one that calls itself is no valid graph
                yield from within(functions[key].node, (*calls, key))
                continue
            yield node
            for held in node.attribute:
                for graph in (held.g, *held.graphs) if held.HasField("g") else held.graphs:
                    yield from within(graph.node, calls)

    yield from within(model.graph.node, ())


def _not_onnx(graph: Path | bytes) -> ExportError:
    if isinstance(graph, Path):
        kind = file_kind(graph)
        what = "damaged" if kind == "an ONNX graph" else f"{kind}, not an ONNX graph"
        return ExportError(f"{graph} is {what}.", "Give an .onnx file, or a bundle that holds one.")
    return ExportError("The graph is no ONNX graph.", "Export it again.")


_WRITTEN_OUT: Final = "ai.onnx"
"""The standard domain's name, which the empty text stands for, too: files have both."""


def _name_standard_domain(model: Any) -> None:
    """Call the standard domain by the empty text throughout a graph, in place.

    A file may mix both spellings, which the shape inference of onnx does not take for one.
    """

    def name(nodes: Iterable[Any]) -> None:
        for node in nodes:
            if node.domain == _WRITTEN_OUT:
                node.domain = ""
            for held in node.attribute:
                for graph in (held.g, *held.graphs) if held.HasField("g") else held.graphs:
                    name(graph.node)

    name(model.graph.node)
    for function in model.functions:
        name(function.node)
    for owner in (model, *model.functions):
        empty = any(entry.domain == "" for entry in owner.opset_import)
        for at in reversed(range(len(owner.opset_import))):
            if owner.opset_import[at].domain == _WRITTEN_OUT:
                if empty:  # it is there twice
                    del owner.opset_import[at]
                else:
                    owner.opset_import[at].domain, empty = "", True


def load_graph(graph: Path | bytes | Any) -> Any:
    """Read an ONNX graph; weights that lie in files beside it are left there.

    Args:
        graph: A .onnx file, its bytes, or an `onnx.ModelProto`, which is returned. Of what is read
            the standard domain is the empty text, as most files write it.

    Raises:
        ExportError: It is missing, no ONNX graph, or lacks a file of weights.
        MissingExtraError: onnx is not installed.
    """
    onnx = require("onnx", extra="onnx")
    if not isinstance(graph, Path | bytes):
        return graph
    if isinstance(graph, Path) and not graph.is_file():
        raise ExportError(f"{graph} does not exist.", "Give an .onnx file, or a bundle.")
    try:
        if isinstance(graph, Path):
            check_claim(file_bytes(graph), graph, error=ExportError)
        content = graph.read_bytes() if isinstance(graph, Path) else graph
        model = onnx.load_model_from_string(content)
    except KdmriError:
        raise
    except Exception as error:  # protobuf's own exception types differ between its versions
        raise _not_onnx(graph) from error
    _name_standard_domain(model)
    if not model.graph.node:
        raise _not_onnx(graph)
    if isinstance(graph, Path):
        for name in external_files(model):
            if not (graph.parent / name).is_file():
                raise ExportError(
                    f"{graph} keeps weights in {name}, which does not lie beside it.",
                    "Copy both files, or write the graph with its weights inside.",
                )
        _check_external(graph, model)
    return model


def _check_external(graph: Path, model: Any) -> None:
    """Compare what a graph says of weights in other files with what lies there.

    Raises:
        ExportError: They lie elsewhere than beside it, or end before the graph says.
    """
    onnx = require("onnx", extra="onnx")
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        told = {held.key: held.value for held in tensor.external_data}
        inside = PurePosixPath(told.get("location", "").replace("\\", "/"))
        if inside.is_absolute() or ".." in inside.parts:
            raise ExportError(
                f"{graph} keeps weights in {told.get('location')}, outside its folder.",
                "Write the graph with its weights inside, or beside it.",
            )
        with reading(graph, "an ONNX graph", error=ExportError, remedy="Export it again."):
            size = file_bytes(graph.parent / inside)
            begin, length = int(told.get("offset") or 0), int(told.get("length") or 0)
            item = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            claim = max(length, math.prod(tensor.dims) * item // 2)  # two values of four bits
        if begin < 0 or length < 0 or begin + claim > size:
            raise ExportError(
                f"{graph} says that {told.get('location')} holds {tensor.name} beyond its end.",
                "Copy both files again.",
            )


def external_files(model: Any) -> list[str]:
    """Name the files that hold a graph's weights, as the graph names them, relative to its own."""
    onnx = require("onnx", extra="onnx")
    found: dict[str, None] = {}
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            found.update(
                {held.value: None for held in tensor.external_data if held.key == "location"}
            )
    return list(found)


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield the constants of a graph, and those of its nodes and of the graphs that they hold."""
    yield from graph.initializer
    for node in graph.node:
        for held in node.attribute:
            if held.HasField("t"):
                yield held.t
            for inner in (held.g, *held.graphs) if held.HasField("g") else held.graphs:
                yield from _tensors(inner)


def _problem(
    node: Any, operator: str, target: str, opset: int, constants: dict[str, Any]
) -> dict[str, Any] | None:
    """Return what a finding says of a node that exports for the target do not hold."""
    if operator not in CHECKED[target]:
        if (target, operator) in _WHY:
            why, remedy = _WHY[target, operator]
            return {"why": why, "remedy": remedy, "fault": True}
        return {
            "why": "the operator is not among those that the target is known to take",
            "remedy": "Write it in standard operators, or choose another target.",
        }
    rule = _RULES.get((target, operator))
    found = None if rule is None else rule(node, opset, constants)
    return found and {"why": found[0], "remedy": found[1], "fault": True, "silent": True}


def _transform(node: Any, opset: int, constants: dict[str, Any]) -> tuple[str, str] | None:
    """OpenVINO: the axis of a DFT as an attribute."""
    if opset < _DFT_AXIS_INPUT:
        return None
    return (
        f"from opset {_DFT_AXIS_INPUT} on its axis is an input, which OpenVINO ignores",
        "Export with opset 18.",
    )


def _quantisation(node: Any, opset: int, constants: dict[str, Any]) -> tuple[str, str] | None:
    """TensorRT: signed int8 with zero point 0, given in the graph.

    TensorRT-RTX reads unsigned values as signed ones without a word, and builds a wrong engine.
    """
    onnx = require("onnx", extra="onnx")
    remedy = "Quantise for TensorRT: `kdmri-edge export --target trt --precision int8`."
    given = node.input[2] if len(node.input) > 2 else ""
    point = constants.get(given)
    if point is None and not given and node.op_type == "DequantizeLinear":
        # without one its zero point is 0, of the type of its integers
        integers = constants.get(node.input[0])
        if integers is not None and integers.data_type == onnx.TensorProto.INT8:
            return None
    if point is None:
        return "its zero point is not a constant of the graph, so it counts as unsigned", remedy
    if point.data_type != onnx.TensorProto.INT8:
        return "it is not signed int8, which TensorRT-RTX misreads without a word", remedy
    if onnx.numpy_helper.to_array(point).any():
        return "its zero point is not 0", remedy
    return None


# (target, operator) -> what the target asks of such a node, beside taking the operator.
_RULES: Final[dict[tuple[str, str], Callable[..., tuple[str, str] | None]]] = {
    ("openvino", "DFT"): _transform,
    ("trt", "QuantizeLinear"): _quantisation,
    ("trt", "DequantizeLinear"): _quantisation,
}
