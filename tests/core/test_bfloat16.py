"""A graph of bfloat16 in float32, with the rounding that a device does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from kdmri_edge.errors import BackendError, BundleError
from kdmri_edge.runtime.backends.onnxruntime import PRECISION_KEY, OnnxRuntimeSession
from kdmri_edge.runtime.graphs.bfloat16 import in_float32
from kdmri_edge.runtime.graphs.onnx import metadata

HALF, SINGLE = TensorProto.BFLOAT16, TensorProto.FLOAT
Change = Callable[[onnx.ModelProto], object]


def weights(*shape: int) -> torch.Tensor:
    drawn = np.random.default_rng(len(shape)).standard_normal(shape)
    return torch.from_numpy(drawn.astype(np.float32)).bfloat16()


def written(place: Path, change: Change = lambda model: None) -> Path:
    """A residual network of two convolutions, the inside in bfloat16."""
    constants = {"w": weights(8, 1, 3, 3), "b": weights(8), "v": weights(1, 8, 3, 3)}
    nodes = [
        helper.make_node("Cast", ["zero_filled"], ["x"], to=HALF),
        helper.make_node("Conv", ["x", "w", "b"], ["h"], pads=[1] * 4),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["y"], pads=[1] * 4),
        helper.make_node("Cast", ["y"], ["back"], to=SINGLE),
        helper.make_node("Add", ["zero_filled", "back"], ["reconstruction"]),
    ]
    held = [
        helper.make_tensor(name, HALF, value.shape, value.float().flatten().tolist())
        for name, value in constants.items()
    ]
    ports = [
        helper.make_tensor_value_info(name, SINGLE, [1, 1, 16, 12])
        for name in ("zero_filled", "reconstruction")
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    model.metadata_props.add(key=PRECISION_KEY, value="bf16")
    change(model)
    place.write_bytes(model.SerializeToString())
    return place


def on_a_device(x: NDArray[np.float32], *, rounds: bool = True) -> NDArray[np.float32]:
    """Products of bfloat16 with sums in float32; each tensor rounded once, where it is stored."""

    def stored(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.bfloat16().float() if rounds else tensor

    conv = torch.nn.functional.conv2d
    w, b, v = (one.float() for one in (weights(8, 1, 3, 3), weights(8), weights(1, 8, 3, 3)))
    given = torch.from_numpy(x)
    inner = torch.relu(stored(conv(stored(given), w, b, padding=1)))
    return (given + stored(conv(inner, v, padding=1))).numpy()


def test_each_tensor_is_rounded_as_it_is_stored(tmp_path: Path) -> None:
    graph = written(tmp_path / "model.onnx")
    assert metadata(graph) == {PRECISION_KEY: "bf16"}
    session = OnnxRuntimeSession(graph, threads=1)
    assert session.info.precision_executed.startswith("bf16 weights and activations by casts")
    x = np.random.default_rng(0).standard_normal((1, 1, 16, 12)).astype(np.float32)
    made = session.run(x)
    # sums of another order may fall on the other side of a rounding now and then
    assert (np.abs(made - on_a_device(x)) < 1e-6).mean() > 0.95
    assert np.abs(made - on_a_device(x)).max() < 0.1
    assert (np.abs(made - on_a_device(x, rounds=False)) < 1e-6).mean() < 0.1


def test_nothing_is_left_in_bfloat16_but_the_casts(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(in_float32(written(tmp_path / "model.onnx")))
    onnx.checker.check_model(model, full_check=True)
    found = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info
    halves = {one.name for one in found if one.type.tensor_type.elem_type == HALF}
    makers = [node for node in model.graph.node if node.output[0] in halves]
    assert [node.op_type for node in makers] == ["Cast"] * 4
    for tensor in model.graph.initializer:
        assert tensor.data_type == SINGLE
        values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        assert torch.equal(values, values.bfloat16().float())  # the very weights


def with_branch(model: onnx.ModelProto) -> None:
    port = helper.make_tensor_value_info("inner", SINGLE, [1])
    one = helper.make_node("Constant", [], ["inner"], value_floats=[1.0])
    body = helper.make_graph([one], "body", [], [port])
    model.graph.node.append(
        helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body)
    )


def with_stranger(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("other", 1))
    model.graph.node.append(helper.make_node("Odd", ["y"], ["odd"], domain="other"))


@pytest.mark.parametrize(
    ("change", "says"), [(with_branch, "branches or functions"), (with_stranger, "type, 'odd'")]
)
def test_what_cannot_be_followed_is_refused(change: Change, says: str, tmp_path: Path) -> None:
    graph = written(tmp_path / "model.onnx", change)
    with pytest.raises(BackendError, match=f"{says}.*fp16"):
        OnnxRuntimeSession(graph)


@pytest.mark.parametrize("newer", ["operators", "format"])
def test_a_graph_that_is_newer_than_the_runtime_is_not_called_damaged(
    newer: str, tmp_path: Path
) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.metadata_props.clear()  # as it is written: not for ONNX Runtime's CPU to compute
        if newer == "operators":
            model.opset_import[0].version = 99
        else:
            model.ir_version = 99

    with pytest.raises(BackendError, match=r"is too old for .*99") as caught:
        OnnxRuntimeSession(written(tmp_path / "model.onnx", change))
    assert "--upgrade onnxruntime" in caught.value.remedy


def test_a_file_that_is_cut_off_is_no_graph(tmp_path: Path) -> None:
    graph = written(tmp_path / "model.onnx")
    graph.write_bytes(graph.read_bytes()[:-3])
    with pytest.raises(BundleError, match="no ONNX graph"):
        OnnxRuntimeSession(graph)
