"""Instance normalisation for OpenVINO, with sums of many parts."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from kdmri_edge.utils.extras import require
from kdmri_export.passes.onnx_graph import replace_messages

__all__ = ["spread_sums"]

_NODE: Final = "InstanceNormalization"


def spread_sums(model: Any) -> frozenset[str]:
    """Take instance normalisations apart, in place: means over H and W become matrix products.

    OpenVINO's kernel adds the squares of a whole image one after the other in float32. With 320 x
    320 pixels the deviation that it divides by is off by some millionths, and networks with dozens
    of normalisations, such as VarNets, magnify that beyond the parity gate's limit. A product adds
    along one axis and then along the other; a mean over one axis after another would be put
    together again by OpenVINO. It costs a few percent of an inference.

    Args:
        model: An `onnx.ModelProto`. Normalisations of images [B, C, H, W] of known H and W are
            taken apart, others stay.

    Returns:
        The names of the products, which lower precisions must leave in float32.
    """
    onnx = require("onnx", extra="onnx")
    graph = model.graph
    if all(node.op_type != _NODE for node in graph.node):
        return frozenset()
    inferred = onnx.shape_inference.infer_shapes(model).graph
    sizes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input)
    }
    nodes: list[Any] = []
    products: set[str] = set()
    shared: set[str] = set()

    def constant(name: str, value: Any) -> str:
        if name not in shared:
            shared.add(name)
            graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        return name

    for number, node in enumerate(graph.node):
        size = sizes.get(node.input[0], [])
        if node.op_type != _NODE or len(size) != 4 or not all(size[2:]):
            nodes.append(node)
            continue
        _take_apart(onnx, node, f"instance_norm.{number}", size[2:], constant, nodes, products)
    replace_messages(graph.node, nodes)
    return frozenset(products)


def _take_apart(
    onnx: Any,
    node: Any,
    name: str,
    size: list[int],
    constant: Any,
    nodes: list[Any],
    products: set[str],
) -> None:
    """Append the nodes that compute one normalisation."""
    height, width = size
    image, scale, bias = node.input
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    along_w = constant(f"means.{width}", np.full((width, 1), 1 / width, np.float32))
    along_h = constant(f"means_of_rows.{height}", np.full((1, height), 1 / height, np.float32))
    shape = constant("means.channels", np.array([1, -1, 1, 1], np.int64))

    def add(kind: str, inputs: list[str], part: str, output: str | None = None) -> str:
        made = f"{name}.{part}"
        nodes.append(onnx.helper.make_node(kind, inputs, [output or made], name=made))
        return output or made

    def mean(of: str, part: str) -> str:
        rows = add("MatMul", [of, along_w], f"{part}_of_rows")
        products.update((f"{name}.{part}_of_rows", f"{name}.{part}"))
        return add("MatMul", [along_h, rows], part)

    centred = add("Sub", [image, mean(image, "mean")], "centred")
    variance = mean(add("Mul", [centred, centred], "squared"), "variance")
    least = constant(f"means.epsilon.{epsilon!r}", np.array(epsilon, np.float32))
    deviation = add("Sqrt", [add("Add", [variance, least], "positive")], "deviation")
    normal = add("Div", [centred, deviation], "normal")
    scaled = add("Mul", [normal, add("Reshape", [scale, shape], "scale")], "scaled")
    add("Add", [scaled, add("Reshape", [bias, shape], "bias")], "shifted", node.output[0])
