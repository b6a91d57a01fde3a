"""Instance normalisations taken apart give the same images, in OpenVINO more exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from kdmri_edge.utils.extras import require
from kdmri_export.passes.normalisation import spread_sums

EPSILON = 1e-3


def model(size: tuple[Any, ...], channels: int = 3) -> onnx.ModelProto:
    """Two normalisations, one behind the other."""
    rng = np.random.default_rng(1)
    values = {name: rng.normal(size=channels).astype(np.float32) for name in ("scale", "bias")}
    nodes = [
        helper.make_node("InstanceNormalization", [x, "scale", "bias"], [y], epsilon=EPSILON)
        for x, y in (("x", "y"), ("y", "z"))
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name in "xz"]
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "two", ports[:1], ports[1:], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made)
    return made


def expected(x: NDArray[Any], made: onnx.ModelProto) -> NDArray[np.float64]:
    values = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    image = x.astype(np.float64)
    for _ in range(2):
        centred = image - image.mean((2, 3), keepdims=True)
        deviation = np.sqrt((centred**2).mean((2, 3), keepdims=True) + EPSILON)
        image = centred / deviation * values["scale"][:, None, None]
        image += values["bias"][:, None, None]
    return image


def image(size: tuple[int, ...]) -> NDArray[np.float32]:
    return (5 + np.random.default_rng(2).normal(size=size)).astype(np.float32)


@pytest.mark.parametrize("size", [(1, 3, 8, 8), (2, 3, 5, 12), (1, 3, 1, 7)])
def test_the_sums_are_products_and_the_result_is_the_same(size: tuple[int, ...]) -> None:
    made, x = model(size), image(size)
    wanted = expected(x, made)
    names = spread_sums(made)
    onnx.checker.check_model(made, full_check=True)
    kinds = [node.op_type for node in made.graph.node]
    assert "InstanceNormalization" not in kinds
    assert names == {node.name for node in made.graph.node if node.op_type == "MatMul"}
    assert len(names) == kinds.count("MatMul") == 2 * 2 * 2
    (found,) = onnxruntime.InferenceSession(made.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_openvino_does_not_put_them_together_again(tmp_path: Path) -> None:
    size = (1, 3, 320, 320)
    made, x = model(size), image(size)
    wanted = expected(x, made)
    spread_sums(made)
    openvino = require("openvino", extra="openvino")
    graph = tmp_path / "graph.onnx"
    onnx.save(made, graph)
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(openvino.convert_model(graph), "CPU", exact)
    layers = compiled.get_runtime_model().get_ops()
    kinds = {str(one.get_rt_info()["layerType"].astype(str)) for one in layers}
    assert "MatMul" in kinds
    assert "MVN" not in kinds
    error = np.sqrt(np.mean((compiled(x)[0] - wanted) ** 2) / np.mean(wanted**2))
    assert error < 1e-6


def test_sizes_that_are_free_and_other_axes_stay() -> None:
    for size in ((1, 3, "h", "w"), (1, 3, 16)):
        made = model(size)
        before = made.SerializeToString()
        assert spread_sums(made) == frozenset()
        assert made.SerializeToString() == before
    made = helper.make_model(helper.make_graph([], "none", [], []))
    assert spread_sums(made) == frozenset()
