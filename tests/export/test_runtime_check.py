"""`kdmri-edge check`: what ONNX Runtime, OpenVINO and TensorRT-RTX say to graphs of any origin."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from kdmri_edge.cli import main
from kdmri_edge.errors import ExportError
from kdmri_edge.utils.extras import available
from kdmri_export import runtime_check
from kdmri_export.export import export_model
from kdmri_export.graph_check import check_graph, load_graph
from kdmri_export.recipe import ExportRecipe
from kdmri_export.runtime_check import (
    Verdict,
    ask,
    ask_targets,
    difference,
    random_inputs,
    sentence,
)
from tests.export.networks import write_checkpoint

needs_rtx = pytest.mark.skipif(
    not available("tensorrt_rtx"), reason="TensorRT-RTX is not installed"
)
FLOAT = TensorProto.FLOAT
CPU = ("onnx", "openvino")


def write(
    place: Path,
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str] = (1, 1, 8, 8),
    *,
    constants: dict[str, Any] | None = None,
    opset: int = 18,
    domains: Sequence[str] = (),
    kind: int = FLOAT,
) -> Path:
    held = [numpy_helper.from_array(np.asarray(v), name) for name, v in (constants or {}).items()]
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", kind, list(shape))],
        [helper.make_tensor_value_info("y", kind, None)],
        held,
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), place)
    return place


def answers(file: Path, targets: Sequence[str] = CPU, **options: Any) -> dict[str, Any]:
    model = load_graph(file)
    found = {target: check_graph(model, target)[1] for target in targets}
    return ask_targets(file, model, found, **options)


def call(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


def pool(**attributes: Any) -> list[onnx.NodeProto]:
    return [helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], **attributes)]


def transform(opset: int) -> dict[str, Any]:
    if opset < 20:
        return {"nodes": [helper.make_node("DFT", ["x"], ["y"], name="fourier", axis=2)]}
    node = helper.make_node("DFT", ["x", "", "axis"], ["y"], name="fourier")
    return {"nodes": [node], "constants": {"axis": np.int64(2)}}


def test_operators_of_u_nets_are_loaded_run_and_compared(tmp_path: Path) -> None:
    file = write(tmp_path / "pool.onnx", pool(), ["batch", 1, 8, 8])
    done = call(file, "--target", "onnx", "--target", "openvino")
    assert done.exit_code == 0, done.output
    assert "loaded and run" in done.stdout
    assert "of the range of ONNX Runtime's results" in done.stdout
    assert "never use" not in done.stdout


def test_an_int8_export_holds_nothing_that_exports_never_use(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "student.safetensors")
    bundle = export_model(checkpoint, ExportRecipe(target="onnx", precision="int8"), tmp_path / "b")
    done = call(bundle.path, "--target", "onnx", "--target", "openvino")
    assert done.exit_code == 0, done.output
    assert "ConvInteger x" in done.stdout
    assert "of the range of ONNX Runtime's results" in done.stdout
    assert "never use" not in done.stdout
    # TensorRT's parser has no such node: that is a fault, not merely untried
    findings = check_graph(bundle.graph, "trt")[1]
    assert "ConvInteger" in {one.operator for one in findings}
    assert all(one.fault for one in findings)


def test_what_no_export_uses_is_told_apart_from_what_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "det.onnx", [helper.make_node("Det", ["x"], ["y"])])
    done = call(file, "--target", "onnx", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["targets"]["onnx"]["verdict"] == "taken"
    assert told["targets"]["onnx"]["ran"]
    (finding,) = told["findings"]["onnx"]
    assert finding["operator"] == "Det"
    assert not finding["fault"]
    assert "parity tests therefore do not cover: Det." in call(file, "--target", "onnx").stdout


def test_refusals_have_the_runtimes_reason(tmp_path: Path) -> None:
    node = helper.make_node("MyFFT", ["x"], ["y"], domain="my")
    file = write(tmp_path / "own.onnx", [node], domains=["my"])
    done = call(file, "--target", "onnx", "--target", "openvino")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()[1:3]
    for line, runtime in zip(lines, ("ONNX Runtime", "OpenVINO"), strict=True):
        assert f"{runtime} " in line
        assert "refuses it: " in line
        assert "MyFFT" in line
        assert line.endswith(".")


def test_operators_within_branches_are_counted(tmp_path: Path) -> None:
    def branch(name: str) -> onnx.GraphProto:
        made = helper.make_tensor_value_info(name, FLOAT, None)
        node = helper.make_node("MyFFT", ["x"], [name], domain="my")
        return helper.make_graph([node], name, [], [made])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    file = write(tmp_path / "if.onnx", [node], constants={"c": np.asarray(True)}, domains=["my"])
    operators, findings = check_graph(file, "onnx")
    assert operators == {"If": 1, "my::MyFFT": 2}
    assert {one.operator for one in findings} == {"If", "my::MyFFT"}


@pytest.mark.parametrize("opset", [18, 20])
def test_another_result_is_never_called_taken(opset: int, tmp_path: Path) -> None:
    """OpenVINO 2026.4 ignores the axis that a DFT takes as an input."""
    file = write(tmp_path / "dft.onnx", **transform(opset), shape=(1, 3, 8, 4, 2), opset=opset)
    found = answers(file)
    assert found["onnx"].verdict is Verdict.TAKEN
    assert found["openvino"].difference is not None
    if found["openvino"].verdict is Verdict.TAKEN:
        assert found["openvino"].difference < 1e-3
    else:
        assert opset == 20
        assert "differ" in str(found["openvino"])


@needs_rtx
def test_tensorrt_rtx_is_asked_and_what_it_misreads_is_known(tmp_path: Path) -> None:
    pooled = write(tmp_path / "pool.onnx", pool())
    found = answers(pooled, ["trt"])["trt"]
    assert found.verdict is Verdict.TAKEN
    assert not found.ran
    assert "no engine was built" in str(found)
    fourier = write(tmp_path / "dft.onnx", **transform(18), shape=(1, 3, 8, 4, 2))
    found = answers(fourier, ["trt"])["trt"]
    assert found.verdict is Verdict.REFUSED
    assert "kdmri-edge rewrite" in str(found)
    unsigned = write(
        tmp_path / "unsigned.onnx",
        [
            helper.make_node("QuantizeLinear", ["x", "s", "p"], ["q"], name="quantise"),
            helper.make_node("DequantizeLinear", ["q", "s", "p"], ["y"]),
        ],
        constants={"s": np.float32(0.1), "p": np.uint8(0)},
    )
    found = answers(unsigned, ["trt"])["trt"]
    assert found.verdict is not Verdict.TAKEN
    assert "'quantise'" in str(found) or found.verdict is Verdict.REFUSED


def test_what_is_not_installed_is_not_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "pool.onnx", pool())
    monkeypatch.setattr(runtime_check, "available", lambda library: library == "onnxruntime")
    done = call(file)
    assert done.exit_code == 3
    lines = done.stdout.splitlines()
    assert "takes it (loaded and run)" in lines[1]
    assert "not verified: OpenVINO is not installed. Install it with: pip install" in lines[2]
    assert '"kdmri-edge[trt-rtx]"' in lines[3]
    # what is known to fail is said without the runtime, too
    fourier = write(tmp_path / "dft.onnx", **transform(18), shape=(1, 3, 8, 4, 2))
    found = answers(fourier, ["trt"])["trt"]
    assert found.verdict is Verdict.UNVERIFIED
    assert "known to fail: node 'fourier'" in str(found)


def test_sizes_that_are_free_are_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path / "free.onnx", pool(), [1, 1, "height", 8])
    found = answers(file, ["onnx"])["onnx"]
    assert found.verdict is Verdict.TAKEN
    assert not found.ran
    assert "axis 2 of input 'x' is free" in str(found)
    assert answers(file, ["onnx"], shapes={"x": (1, 1, 6, 8)})["onnx"].ran
    for shape, said in (((1, 1, 6, 9), "1x1x?x8"), ((1, 1, 6), "1x1x?x8")):
        with pytest.raises(ExportError, match=said.replace("?", r"\?")):
            random_inputs(load_graph(file), {"x": shape})
    with pytest.raises(ExportError, match="no input 'z'"):
        random_inputs(load_graph(file), {"z": (1,)})


def test_a_graph_that_fails_when_it_is_run_is_refused(tmp_path: Path) -> None:
    """Its Reshape cannot be done, which ONNX Runtime finds out with the input alone."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Add", ["s", "one"], ["t"]),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    file = write(tmp_path / "reshape.onnx", nodes, ["batch", 8], constants={"one": np.int64(1)})
    found = answers(file, ["onnx"])["onnx"]
    assert found.verdict is Verdict.REFUSED
    assert "fails when it is run" in str(found)


def test_inputs_that_would_fill_the_memory_are_not_made(tmp_path: Path) -> None:
    file = write(tmp_path / "huge.onnx", pool(), [1, 1, 1 << 20, 1 << 20])
    found = random_inputs(load_graph(file))
    assert isinstance(found, str)
    assert "1 GiB" in found


def test_a_process_that_crashes_or_hangs_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "pool.onnx", pool())
    started = subprocess.run

    def instead(code: str) -> None:
        monkeypatch.setattr(
            runtime_check.subprocess,
            "run",
            lambda command, **options: started([command[0], "-c", code], **options),
        )

    instead("import os; os.kill(os.getpid(), 11)")
    found = answers(file, ["onnx"])["onnx"]
    assert found.verdict is Verdict.REFUSED
    assert "signal 11" in str(found)
    instead("import time; time.sleep(60)")
    found = answers(file, ["onnx"], limit_s=1)["onnx"]
    assert found.verdict is Verdict.UNVERIFIED
    assert "--timeout" in str(found)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["x", "w"], ["y"])
    model = onnx.load(
        write(tmp_path / "g.onnx", [node], constants={"w": np.ones((1, 1, 8, 8), np.float32)})
    )
    onnx.save(
        model, tmp_path / "g.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    assert answers(tmp_path / "g.onnx")["openvino"].ran
    (tmp_path / "w.bin").unlink()
    error = call(tmp_path / "g.onnx").exception
    assert isinstance(error, ExportError)
    assert "w.bin" in str(error)


def test_worker_runs_what_it_is_given(tmp_path: Path) -> None:
    file = write(tmp_path / "relu.onnx", [helper.make_node("Relu", ["x"], ["y"])], [1, 4])
    x = np.float32([[-1, 2, -3, 4]])
    out = [tmp_path / "a.npz", tmp_path / "b.npz"]
    found = ask("onnxruntime", [file, file], {"x": x}, outputs=out, seconds=0.01)
    assert (found["loaded"], found["ran"], found["reason"]) == (2, 2, None)
    assert len(found["ms"]) == 2
    for place in out:
        with np.load(place) as held:
            np.testing.assert_array_equal(held["arr_0"], [[0, 2, 0, 4]])
    assert difference(*out) == 0.0
    np.savez(out[1], np.float32([[0, 2, np.nan, 4]]))
    assert np.isnan(difference(*out) or 0.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "[ONNXRuntimeError] : 10 : INVALID_GRAPH : Error No Op registered for F.\n at x",
            "Error No Op registered for F",
        ),
        (
            "Exception from src/core.cpp:93:\nCheck 'ok' failed at f.cpp:3:\nSummary:\n-- No F.\n",
            "No F",
        ),
        ("ir version 99 is not supported", "ir version 99 is not supported"),
        (" \n", "it says no more"),
    ],
)
def test_reasons_are_taken_out_of_what_surrounds_them(text: str, reason: str) -> None:
    assert sentence(text) == reason
