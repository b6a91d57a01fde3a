"""What layers take: of real graphs, in the precision that ran, and refused where nothing tells."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kdmri_edge.errors import BackendError
from kdmri_edge.runtime.bundle import GOLDEN_INPUT
from kdmri_edge.runtime.profile import LayerTime, from_onnxruntime, medians
from kdmri_edge.runtime.session import open_session

BUNDLES = Path(__file__).resolve().parents[1] / "data" / "v0_1" / "bundles"


def _layer(name: str, ms: float) -> LayerTime:
    return LayerTime(layer=name, type="Conv", precision="f32", kernel="", ms=ms)


@pytest.mark.parametrize(
    ("bundle", "library", "arithmetic", "precision"),
    [
        ("onnx-f32", "onnxruntime", {"Conv", "FusedConv"}, "f32"),
        ("onnx-int8", "onnxruntime", {"QLinearConv"}, "u8"),
        ("openvino-f32", "openvino", {"Convolution"}, "f32"),
        ("openvino-int8", "openvino", {"Convolution"}, "u8"),
    ],
)
def test_layers_are_told_with_what_they_computed_in(
    bundle: str, library: str, arithmetic: set[str], precision: str
) -> None:
    pytest.importorskip(library)
    given = np.load(BUNDLES / bundle / GOLDEN_INPUT)[:1]
    with open_session(BUNDLES / bundle, threads=1, profiling=True) as session:
        layers = session.profile(given, queries=3, warmup=1)
        image = session.run(given)
    assert all(layer.ms >= 0 for layer in layers)
    assert sum(layer.ms for layer in layers) > 0
    assert len({layer.layer for layer in layers}) == len(layers)
    convolutions = [layer for layer in layers if layer.type in arithmetic]
    assert convolutions
    assert {layer.precision for layer in convolutions} == {precision}
    with open_session(BUNDLES / bundle, threads=1) as usual:
        np.testing.assert_array_equal(image, usual.run(given))
        with pytest.raises(BackendError, match="profiling=True"):
            usual.profile(given, queries=1, warmup=0)


def test_a_layer_takes_what_it_takes_in_the_middle_of_several_queries() -> None:
    queries = [[_layer("a", 1.0), _layer("b", 5.0)], [_layer("a", 9.0)], [_layer("a", 2.0)]]
    assert [(one.layer, one.ms) for one in medians(queries)] == [("a", 2.0), ("b", 0.0)]


def test_of_onnx_runtimes_events_nodes_count_and_the_first_queries_do_not(tmp_path: Path) -> None:
    def node(name: str, us: int) -> dict[str, object]:
        args = {"op_name": "QLinearConv", "input_type_shape": [{"uint8": [1]}, {"float": []}]}
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": us, "args": args}

    session = {"cat": "Session", "name": "model_run", "dur": 9}
    events = [node("a", 9000), session, node("a", 1000), node("a", 3000), node("b", 4000)]
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(events))
    found = from_onnxruntime(file, warmup=1)
    assert [(one.layer, one.ms) for one in found] == [("a", 2.0)]
    assert (found[0].type, found[0].precision) == ("QLinearConv", "u8")
