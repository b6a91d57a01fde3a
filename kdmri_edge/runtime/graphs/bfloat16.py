"""A graph of bfloat16 for a runtime that has no such arithmetic: the same values in float32.

Each tensor that the graph has in bfloat16 is computed in float32 and passed through a cast to
bfloat16 and back. That is what a GPU does with it: products of bfloat16 are exact in float32, their
sums are float32, and what is stored is rounded once. What differs is the order of the sums.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdmri_edge.errors import BackendError
from kdmri_edge.utils.extras import require

__all__ = ["in_float32"]

_REMEDY = "Run its engine on a GPU, or export the network in fp16."


def in_float32(graph: Path) -> bytes:
    """Return a graph that holds no arithmetic in bfloat16, and rounds where the given one does.

    Args:
        graph: An .onnx file whose inputs and outputs are float32.

    Raises:
        BackendError: It holds functions or branches, or a tensor whose type cannot be told.
        MissingExtraError: onnx is not installed.
    """
    onnx = require("onnx", extra="onnx")
    model = onnx.load_model(graph)
    kinds = _kinds(onnx, model, graph)
    half, single = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    for tensor in model.graph.initializer:
        _widen(onnx, tensor)
    nodes = []
    for node in model.graph.node:
        for held in node.attribute:
            _widen(onnx, held.t)
            if node.op_type == "Cast" and held.name == "to" and held.i == half:
                held.i = single
        nodes.append(node)
        for place, name in enumerate(node.output):
            if kinds.get(name) == half:
                exact, rounded = f"{name}.float32", f"{name}.bfloat16"
                node.output[place] = exact
                nodes += [
                    onnx.helper.make_node("Cast", [given], [made], name=made, to=kind)
                    for given, made, kind in ((exact, rounded, half), (rounded, name, single))
                ]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    content: bytes = model.SerializeToString()
    return content


def _kinds(onnx: Any, model: Any, graph: Path) -> dict[str, int]:
    """Return the type of each tensor of a graph by its name."""
    inner = any(held.HasField("g") or held.graphs for n in model.graph.node for held in n.attribute)
    if inner or model.functions:
        raise BackendError(
            f"{graph} has branches or functions, whose bfloat16 cannot be followed.", _REMEDY
        )
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    ports = [*inferred.input, *inferred.output, *inferred.value_info]
    kinds = {port.name: int(port.type.tensor_type.elem_type) for port in ports}
    made = [name for node in model.graph.node for name in node.output if name]
    unknown = next((name for name in made if name not in kinds), None)
    if unknown is not None:
        raise BackendError(f"{graph} has a tensor of unknown type, {unknown!r}.", _REMEDY)
    return kinds


def _widen(onnx: Any, tensor: Any) -> None:
    """Turn a constant of bfloat16 into float32, in place; the values stay the same."""
    if tensor.data_type == onnx.TensorProto.BFLOAT16:
        values = onnx.numpy_helper.to_array(tensor).astype("float32")
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
