"""Convolutions of joined channels are sums of two where that is less work for ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from kdmri_export.passes.joined_channels import split_joined  # noqa: E402

SIDE = 6


def joined(first: int, second: int, outputs: int, *, twice: bool = False, bias: bool = True) -> Any:
    """Return a graph that joins two images and convolves them."""
    helper, rng = onnx.helper, np.random.default_rng(0)
    held = {"weight": rng.normal(size=(outputs, first + second, 3, 3)).astype(np.float32)}
    if bias:
        held["bias"] = rng.normal(size=outputs).astype(np.float32)
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["ab"], axis=1),
        helper.make_node("Conv", ["ab", *held], ["made"], name="conv", pads=[1, 1, 1, 1]),
    ]
    sizes = {"a": first, "b": second, "made": outputs}
    if twice:
        nodes.append(helper.make_node("Relu", ["ab"], ["also"]))
        sizes["also"] = first + second
    ports = {
        name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, SIDE, SIDE])
        for name, channels in sizes.items()
    }
    graph = helper.make_graph(
        nodes,
        "joined",
        [ports.pop("a"), ports.pop("b")],
        list(ports.values()),
        [onnx.numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def run(model: Any) -> Any:
    given = {
        port.name: np.random.default_rng(1)
        .normal(size=[axis.dim_value for axis in port.type.tensor_type.shape.dim])
        .astype(np.float32)
        for port in model.graph.input
    }
    return onnx.reference.ReferenceEvaluator(model).run(["made"], given)[0]


@pytest.mark.parametrize(("first", "second", "outputs"), [(18, 18, 18), (8, 8, 8), (16, 32, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_sum_of_two_gives_the_same(first: int, second: int, outputs: int, bias: bool) -> None:
    model = joined(first, second, outputs, bias=bias)
    expected = run(model)
    assert split_joined(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Conv", "Add"]
    assert "weight" not in [one.name for one in model.graph.initializer]
    np.testing.assert_allclose(run(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        joined(36, 36, 36),  # both would be filled up to 48
        joined(2, 32, 32),
        joined(18, 18, 18, twice=True),
    ],
)
def test_what_would_be_more_work_stays_as_it_is(model: Any) -> None:
    before = model.SerializeToString()
    assert split_joined(model) == 0
    assert model.SerializeToString() == before
