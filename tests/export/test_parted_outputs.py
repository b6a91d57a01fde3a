"""Images and feature maps that one convolution writes, taken apart for OpenVINO."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from kdmri_edge.runtime.backends.onnxruntime import OnnxRuntimeSession
from kdmri_export.passes.parted_outputs import part_outputs
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.onnx import to_model
from tests.export.networks import lines, network, spec
from tests.export.parity_cases import images

SIZE = (32, 24)


@pytest.mark.parametrize(
    ("shuffle", "carried", "apart", "precision", "batch"),
    [
        (1, 3, False, "f32", "1"),
        (2, 12, False, "int8", "dynamic"),
        (2, 13, True, "f32", "dynamic"),
        (2, 16, True, "int8", "1"),
    ],
)
def test_the_result_is_the_same(
    shuffle: int, carried: int, apart: bool, precision: str, batch: str, tmp_path: Path
) -> None:
    """4 and 13 channels fill two blocks of 16 together, and one each."""
    made = network(spec(carried=carried, shuffle=shuffle, cascades=3), lines(), size=SIZE)
    recipe = ExportRecipe(target="openvino", precision=precision, batch=batch)
    whole, _ = to_model(made, torch.rand(1, 1, *SIZE), recipe)
    parted = copy.deepcopy(whole)
    assert part_outputs(parted) == 2  # the last cascade carries nothing on
    onnx.checker.check_model(parted, full_check=True)
    before, after = (Counter(node.op_type for node in m.graph.node) for m in (whole, parted))
    assert after["Conv"] - before["Conv"] == (2 if apart else 0)
    assert after["Slice"] - before["Slice"] == (-4 if apart else 0)
    assert after["Reshape"] - before["Reshape"] == (0 if apart else 6)
    x_u = images(2 if batch == "dynamic" else 1, 1, SIZE)
    found, wanted = (_computed(model, x_u, tmp_path, precision) for model in (parted, whole))
    # a sum in another order may round to the other side
    assert np.abs(found - wanted).mean() < (1e-6 if precision == "f32" else 1e-3)


def _computed(model: Any, x_u: NDArray[np.float32], folder: Path, precision: str) -> Any:
    pytest.importorskip("onnxruntime")
    onnx.save(model, folder / "model.onnx")
    return OnnxRuntimeSession(folder / "model.onnx", precision=precision, threads=1).run(x_u)


def test_convolutions_of_one_weight_are_parted_each_for_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ports = [
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 6, 5])
        for name, channels in (("read", 3), ("made", 48))
    ]
    constants = {
        "weight": rng.standard_normal((48, 3, 3, 3)).astype(np.float32),
        **{f"{n}": np.array([n], np.int64) for n in (0, 1, 3, 16, 32, 48)},
    }

    def parts(number: int, given: str, first: int) -> list[Any]:
        conv = onnx.helper.make_node(
            "Conv", [given, "weight"], [f"y{number}"], f"conv{number}", pads=[1] * 4
        )
        taken = [
            onnx.helper.make_node("Slice", [f"y{number}", *bound, "1", "1"], [f"{part}{number}"])
            for part, bound in (("image", ("0", str(first))), ("maps", (str(first), "48")))
        ]
        return [conv, *taken]

    nodes = [
        *parts(0, "read", 16),
        onnx.helper.make_node("Slice", ["image0", "0", "3", "1", "1"], ["again"]),
        *parts(1, "again", 32),
        onnx.helper.make_node("Concat", ["maps1", "image1"], ["made"], axis=1),
    ]
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "g", ports[:1], ports[1:], held)
    whole = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    whole.ir_version = 10
    x = rng.standard_normal((1, 3, 6, 5)).astype(np.float32)
    (wanted,) = ReferenceEvaluator(whole).run(None, {"read": x})
    assert part_outputs(whole) == 2
    onnx.checker.check_model(whole, full_check=True)
    (found,) = ReferenceEvaluator(whole).run(None, {"read": x})
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_graph_of_any_matrix_has_no_planes() -> None:
    made = network(spec(carried=3), lines(), size=SIZE)
    recipe = ExportRecipe(target="openvino", mask_input=True, any_matrix=True)
    model, _ = to_model(made, torch.rand(1, 1, *SIZE), recipe)
    assert part_outputs(model) == 0


def test_networks_without_carried_maps_stay_as_they_are() -> None:
    made = network(spec(), lines(), size=SIZE)
    model, _ = to_model(made, torch.rand(1, 1, *SIZE), ExportRecipe(target="openvino"))
    before = model.SerializeToString()
    assert part_outputs(model) == 0
    assert model.SerializeToString() == before
