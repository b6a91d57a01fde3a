"""TensorRT: graphs, engines that TensorRT-RTX builds without a GPU, and the scripts of a bundle."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper

from kdmri_edge.cli import main
from kdmri_edge.errors import BackendError, ExportError
from kdmri_edge.physics.operators import Form
from kdmri_edge.runtime.backends.run_engine import main as run_main
from kdmri_edge.runtime.bundle import open_bundle
from kdmri_edge.runtime.session import open_session
from kdmri_export.export import export_model
from kdmri_export.graph_check import CHECKED, check_graph, checked_graph
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.tensorrt import engines, torch_program
from kdmri_export.targets.tensorrt.build_engine import WRITTEN_IN_BF16, build
from kdmri_export.targets.tensorrt.build_engine import main as build_main
from kdmri_export.targets.tensorrt.engines import EngineRequest, probe
from tests.export.networks import spec, write_checkpoint
from tests.export.parity_cases import AS_ONNX, CASES, EVERY_TIME, GRAPH, ParityCases, some

GPUS = ("sm86", "sm89", "sm120")
RTX = probe("rtx")
TOLD_OF_BF16 = """
import json, sys
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
network = builder.create_network(0 if typed is None else 1 << int(typed))
parser = trt.OnnxParser(network, logger)
assert parser.parse(open(sys.argv[1], "rb").read())
layers = [network.get_layer(number) for number in range(network.num_layers)]
kinds = [(layer.type.name, layer.get_output(0).dtype.name) for layer in layers]
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM75, 0)
assert builder.build_serialized_network(network, config) is None
print(json.dumps(kinds))
"""
needs_rtx = pytest.mark.skipif(RTX is not None, reason=str(RTX))


class TestTrt(ParityCases):
    target = "trt"
    refuses = "FFT"
    # Not taken apart for CPUs, its graphs are those of `test_onnx.py`; TensorRT is not here to run
    # them.
    at_night: ClassVar[Mapping[str, Collection[str]]] = {
        **AS_ONNX, GRAPH: set(EVERY_TIME) - {"magnitude", "sense, few lines, odd"},
    }  # fmt: skip

    @pytest.mark.parametrize("precision", ["f32", "f16", "bf16"])
    def test_types_are_explicit(self, precision: str, tmp_path: Path) -> None:
        _, graph = self.write("magnitude", tmp_path, precision=precision)
        model = onnx.shape_inference.infer_shapes(onnx.load(graph), strict_mode=True)
        kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
        halves = {"f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
        convolved = halves.get(precision, TensorProto.FLOAT)
        for node in model.graph.node:
            if node.op_type == "Conv":
                assert kinds[node.output[0]] == convolved
            elif node.op_type in ("MatMul", "Sub"):  # data consistency
                assert kinds.get(node.output[0], TensorProto.FLOAT) == TensorProto.FLOAT
        counts = Counter(node.op_type for node in model.graph.node)
        cascades, convs = CASES["magnitude"][0].cascades, CASES["magnitude"][0].convs
        assert counts["Conv"] == cascades * convs  # none is taken apart, as it is for CPUs
        assert counts["Cast"] == (2 * cascades if precision in halves else 0)
        assert (WRITTEN_IN_BF16 in graph.read_bytes()) is (precision == "bf16")

    @needs_rtx
    @pytest.mark.parametrize("capability", some(GPUS, GPUS[:1]))
    @pytest.mark.parametrize(
        "precision", some(["f32", "f16", "bf16", "int8"], ["f32", "f16", "int8"])
    )
    @pytest.mark.parametrize(
        "name", ["magnitude", "magnitude, DFT", "complex, 2-D mask, odd", "sense, few lines, odd"]
    )
    def test_engines_are_built(
        self, name: str, precision: str, capability: str, tmp_path: Path
    ) -> None:
        _, graph = self.write(name, tmp_path, precision=precision)
        engine = build(graph.read_bytes(), "rtx", capability)
        assert len(engine) > 10_000

    @needs_rtx
    @pytest.mark.parametrize("name", some(["magnitude", "sense, few lines, odd"], ["magnitude"]))
    def test_the_builder_takes_bf16_for_bf16(self, name: str, tmp_path: Path) -> None:
        """It cannot read an engine back without a GPU: what it is given is told, and refused."""
        _, graph = self.write(name, tmp_path, precision="bf16")
        assert len(build(graph.read_bytes(), "rtx", "sm86")) > 10_000
        done = subprocess.run(
            [sys.executable, "-c", TOLD_OF_BF16, str(graph)], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        kinds = Counter(tuple(one) for one in json.loads(done.stdout.splitlines()[-1]))
        architecture = CASES[name][0]
        assert kinds["CONVOLUTION", "BF16"] == architecture.cascades * architecture.convs
        assert {kind for layer, kind in kinds if layer == "MATRIX_MULTIPLY"} == {"FLOAT"}
        assert "HW-specific datatypes: b16" in done.stdout  # what it says of a GPU without it

    @needs_rtx
    @pytest.mark.parametrize("name", ["magnitude", "sense"])
    def test_engine_for_any_batch(self, name: str, tmp_path: Path) -> None:
        self.write(name, tmp_path, dynamic=True)
        arguments = ["--bundle", str(tmp_path), "--builder", "rtx", "--compute-capability", "sm89"]
        assert build_main([*arguments, "--batches", "1,2,4"]) == 0
        record = json.loads((tmp_path / "model.sm89.json").read_text())
        assert record["batches"] == [1, 2, 4]
        assert record["engine_built"]
        assert not record["engine_executed"]
        assert not record["tf32"]
        assert (tmp_path / record["engine"]).stat().st_size == record["bytes"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "student.safetensors")


@needs_rtx
def test_bundle_with_engines(checkpoint: Path, tmp_path: Path) -> None:
    request = EngineRequest(builder="rtx", compute_capabilities=("sm86", "sm120"))
    bundle = export_model(
        checkpoint, ExportRecipe(target="trt", engines=request), tmp_path / "bundle"
    )
    engine = bundle.manifest["engine"]
    assert engine["built"]
    assert not engine["executed"]
    assert [one["compute_capability"] for one in engine["engines"]] == ["sm86", "sm120"]
    assert {"model.sm86.engine", "model.sm120.engine"} <= set(bundle.manifest["files"])
    assert str(tmp_path) not in json.dumps(bundle.manifest)


@needs_rtx
@pytest.mark.nightly  # the builder tries shapes for some ten seconds
def test_an_engine_for_any_matrix_has_a_profile(checkpoint: Path, tmp_path: Path) -> None:
    request = EngineRequest(builder="rtx", compute_capabilities=("sm86",))
    recipe = ExportRecipe(target="trt", any_matrix=True, mask_input=True, engines=request)
    bundle = export_model(checkpoint, recipe, tmp_path / "bundle")
    assert bundle.manifest["engine"]["built"]
    profile = json.loads((bundle.path / "profile.json").read_text())
    assert profile["zero_filled"] == [[1, 1, side, side] for side in (16, 32, 64)]
    assert profile["operator"] == [[side, side] for side in (16, 32, 64)]


@pytest.mark.parametrize("batch", ["1", "dynamic"])
def test_bundle_without_engine_says_why(checkpoint: Path, tmp_path: Path, batch: str) -> None:
    bundle = export_model(checkpoint, ExportRecipe(target="trt", batch=batch), tmp_path / "bundle")
    assert bundle.manifest["engine"] == {
        "built": False, "executed": False, "reason": "none was asked for", "engines": []
    }  # fmt: skip
    notes = (bundle.path / "README.md").read_text()
    assert "trtexec --onnx=model.onnx" in notes
    assert ("--optShapes=zero_filled:4x1x32x32" in notes) == (batch == "dynamic")
    assert "{" not in notes


def test_shapes_of_coils_are_told_to_trtexec(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "coils.safetensors", spec(channels=2, coils=True))
    recipe = ExportRecipe(target="trt", batch="dynamic", coils=4)
    notes = (export_model(weights, recipe, tmp_path / "bundle").path / "README.md").read_text()
    assert "--optShapes=zero_filled:4x2x32x32,maps:4x4x2x32x32" in notes


@pytest.mark.skipif(probe("tensorrt") is None, reason="TensorRT works here")
class TestWithoutTensorRT:
    def test_auto_goes_on(self, checkpoint: Path, tmp_path: Path) -> None:
        request = EngineRequest(builder="auto")
        bundle = export_model(
            checkpoint, ExportRecipe(target="trt", engines=request), tmp_path / "b"
        )
        assert "tensorrt" in bundle.manifest["engine"]["reason"]

    @pytest.mark.parametrize(
        "request_",
        [
            EngineRequest(builder="auto", required=True),
            EngineRequest(builder="tensorrt"),
            EngineRequest(builder="torch-tensorrt"),
        ],
    )
    def test_required_engine_is_refused_and_nothing_is_left(
        self, checkpoint: Path, tmp_path: Path, request_: EngineRequest
    ) -> None:
        with pytest.raises(ExportError, match=r"build_engine\.py"):
            export_model(checkpoint, ExportRecipe(target="trt", engines=request_), tmp_path / "b")
        assert not (tmp_path / "b").exists()


def test_other_gpus_need_the_builder_that_can(checkpoint: Path, tmp_path: Path) -> None:
    request = EngineRequest(builder="auto", compute_capabilities=("sm86",))
    with pytest.raises(ExportError, match="--builder rtx"):
        export_model(checkpoint, ExportRecipe(target="trt", engines=request), tmp_path / "b")


@pytest.mark.parametrize("other", [{"batch": "dynamic"}, {"precision": "int8"}])
def test_what_torch_tensorrt_is_not_built_for(other: dict[str, str]) -> None:
    request = EngineRequest(builder="torch-tensorrt")
    with pytest.raises(ExportError, match="--builder tensorrt"):
        ExportRecipe(target="trt", engines=request, **other)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_torch_tensorrt_without_a_gpu_is_one_sentence(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert torch_program.main([str(checkpoint), str(tmp_path), "auto", "f32"]) == 1
    assert "GPU" in capsys.readouterr().err
    assert not (tmp_path / torch_program.PROGRAM).exists()


def test_gpus_without_bf16_are_refused_before_anything_is_exported() -> None:
    request = EngineRequest(builder="rtx", compute_capabilities=("sm75", "sm86"))
    with pytest.raises(ExportError, match=r"^sm75 cannot compute in bf16\. .*8\.0 or newer"):
        ExportRecipe(target="trt", precision="bf16", engines=request)
    for precision, names in (("f16", ("sm75",)), ("bf16", ("sm80", "sm120"))):
        request = EngineRequest(builder="rtx", compute_capabilities=names)
        ExportRecipe(target="trt", precision=precision, engines=request)


def test_a_bundle_of_bf16_says_what_was_compared(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    arguments = ["export", str(checkpoint), "--target", "trt", "--builder", "none", "--out"]
    done = CliRunner().invoke(main, [*arguments, str(out), "--precision", "bf16"])
    assert done.exit_code == 0, done.output
    assert "in ONNX Runtime" in done.output
    assert "bf16 weights and activations by casts, fp32 arithmetic" in done.output
    bundle = open_bundle(out)
    assert (bundle.written, bundle.meant_for) == ("bf16", "bf16")
    parity = bundle.manifest["parity"]
    assert parity["tolerance_name"] == "bf16"
    assert parity["figures"]["max_error"] > 1e-4  # it rounds; float32 would not deviate so much
    assert parity["computed"] == "bf16 weights and activations by casts, f32 arithmetic"
    with open_session(out, backend="onnxruntime") as session:
        assert session.info.precision_executed == parity["computed"]
    for backend, precision, says in (
        ("onnxruntime", "f32", "is written in bf16, not in fp32"),
        ("onnxruntime", "f16", "is written in bf16, not in fp16"),
    ):
        with pytest.raises(BackendError, match=says):
            open_session(out, backend=backend, precision=precision)


@needs_rtx
def test_unknown_gpu_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    request = EngineRequest(builder="rtx", compute_capabilities=("sm7",))
    with pytest.raises(ExportError, match="sm7"):
        export_model(checkpoint, ExportRecipe(target="trt", engines=request), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_fft_form_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"node_DFT.*11\.2.*--dc auto") as caught:
        export_model(checkpoint, ExportRecipe(target="trt", dc=str(Form.FFT)), tmp_path / "b")
    assert "DFT" in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_crashing_builder_is_reported(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder that takes its process down does not take the export down."""
    monkeypatch.setitem(engines.MODULES, "rtx", "ctypes")

    def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        crash = "import ctypes; ctypes.string_at(0)"
        return subprocess.run(
            [sys.executable, "-c", crash], capture_output=True, text=True, check=False
        )

    monkeypatch.setattr(engines, "_process", run)
    with pytest.raises(ExportError, match="signal 11"):
        export_model(
            checkpoint,
            ExportRecipe(target="trt", engines=EngineRequest(builder="rtx")),
            tmp_path / "b",
        )
    assert not (tmp_path / "b").exists()


def test_hanging_builder_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_SECONDS", 0.2)
    monkeypatch.setattr(engines, "available", lambda module: True)
    monkeypatch.setattr(engines, "builder_module", lambda builder: "time as t; t.sleep(60)#")
    assert "still busy" in str(probe("torch-tensorrt"))


class TestScripts:
    FILES = (
        Path(build_main.__code__.co_filename),
        Path(run_main.__code__.co_filename),
    )

    @pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
    def test_needs_nothing_of_this_project_and_an_older_python(self, file: Path) -> None:
        tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 10))
        names = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module).partition(".")[0])
        assert names <= set(sys.stdlib_module_names) | {"numpy"}

    @pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
    def test_mistakes_are_one_sentence(self, file: Path, tmp_path: Path) -> None:
        for arguments in ([], ["--bundle", str(tmp_path)]):
            done = subprocess.run(
                [sys.executable, str(file), *arguments], capture_output=True, text=True, check=False
            )
            assert done.returncode == 1
            assert done.stderr.startswith("Error: ")
            assert len(done.stderr.splitlines()) == 1

    @pytest.mark.parametrize("batches", ["1,2", "4,2,1", "0,1,2", "a,b,c"])
    def test_bad_batches(self, batches: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert build_main(["--batches", batches]) == 1
        assert capsys.readouterr().err.startswith("Error: ")


def quantised(kind: int, point: int | None) -> onnx.ModelProto:
    """Q and DQ around nothing, with the zero point's type and value."""
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1])
    inputs, constants = ["x", "scale"], [scale]
    if point is not None:
        constants.append(helper.make_tensor("point", kind, [], [point]))
        inputs.append("point")
    nodes = [
        helper.make_node("QuantizeLinear", inputs, ["q"], name="quantise"),
        helper.make_node("DequantizeLinear", ["q", *inputs[1:]], ["y"], name="restore"),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


class TestGraphCheck:
    def test_counts_and_findings(self, tmp_path: Path) -> None:
        file = tmp_path / "g.onnx"
        file.write_bytes(quantised(TensorProto.INT8, 0).SerializeToString())
        counts, findings = check_graph(file, "trt")
        assert counts == {"DequantizeLinear": 1, "QuantizeLinear": 1}
        assert not findings

    @pytest.mark.parametrize(
        ("kind", "point", "why"),
        [
            (TensorProto.UINT8, 0, "signed"),
            (TensorProto.INT8, 3, "zero point"),
            (TensorProto.UINT8, None, "zero point"),
        ],
    )
    def test_tensorrt_takes_signed_symmetric_integers_only(
        self, kind: int, point: int | None, why: str
    ) -> None:
        model = quantised(kind, point)
        with pytest.raises(ExportError, match=why) as caught:
            checked_graph(model, "trt")
        assert "'quantise'" in str(caught.value)
        for target in ("onnx", "openvino"):
            assert checked_graph(model, target)

    def test_zero_points_are_found_wherever_they_are(self) -> None:
        held = quantised(TensorProto.INT8, 0)
        point = next(i for i in held.graph.initializer if i.name == "point")
        held.graph.initializer.remove(point)
        held.graph.node.insert(0, helper.make_node("Constant", [], ["point"], value=point))
        assert checked_graph(held, "trt")
        # weights that are signed integers without a zero point have 0
        weight = helper.make_tensor("w", TensorProto.INT8, [2], [3, -3])
        scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1])
        for kind, taken in ((TensorProto.INT8, True), (TensorProto.UINT8, False)):
            weight = helper.make_tensor("w", kind, [2], [3, 4])
            node = helper.make_node("DequantizeLinear", ["w", "scale"], ["y"], name="restore")
            port = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
            graph = helper.make_graph([node], "g", [], [port], [weight, scale])
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
            assert (not check_graph(model, "trt")[1]) is taken

    def test_fourier_nodes(self) -> None:
        node = helper.make_node("DFT", ["x", "", "axis"], ["y"], name="transform")
        axis = helper.make_tensor("axis", TensorProto.INT64, [], [1])
        ports = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 1]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 2]),
        ]
        graph = helper.make_graph([node], "g", ports[:1], ports[1:], [axis])
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
        )  # fmt: skip
        assert checked_graph(model, "onnx") == {"DFT": 1}
        with pytest.raises(ExportError, match=r"'transform'.*axis"):
            checked_graph(model, "openvino")
        with pytest.raises(ExportError, match="'transform'"):
            checked_graph(model, "trt")

    @pytest.mark.parametrize("target", CHECKED)
    def test_unknown_operators_are_named(self, target: str) -> None:
        node = helper.make_node("data_consistency", ["x"], ["y"], domain="kdmri")
        ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y")]
        graph = helper.make_graph([node], "g", ports[:1], ports[1:])
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("kdmri", 1)]
        model = helper.make_model(graph, opset_imports=opsets)
        with pytest.raises(ExportError, match=r"kdmri::data_consistency"):
            checked_graph(model, target)

    def test_old_opsets(self) -> None:
        model = quantised(TensorProto.INT8, 0)
        model.opset_import[0].version = 11
        with pytest.raises(ExportError, match="opset 11"):
            checked_graph(model, "trt")

    def test_files_that_are_no_graph(self, tmp_path: Path) -> None:
        (tmp_path / "a.onnx").write_bytes(np.random.default_rng(0).bytes(200))
        (tmp_path / "b.onnx").write_bytes(b"")
        for name, said in (("a", "is damaged"), ("b", "is an empty file")):
            with pytest.raises(ExportError, match=f"{name}.onnx {said}"):
                check_graph(tmp_path / f"{name}.onnx", "trt")
        with pytest.raises(ExportError, match="does not exist"):
            check_graph(tmp_path / "c.onnx", "trt")
        with pytest.raises(ExportError, match="table"):
            check_graph(tmp_path / "a.onnx", "torchscript")

    def test_old_opset_from_the_command_line(self, tmp_path: Path) -> None:
        model = quantised(TensorProto.INT8, 0)
        model.opset_import[0].version = 11
        (tmp_path / "old.onnx").write_bytes(model.SerializeToString())
        result = CliRunner().invoke(main, ["check", str(tmp_path / "old.onnx"), "--target", "onnx"])
        assert result.exit_code == 0  # ONNX Runtime takes it, though no test here covers it
        (said,) = (line for line in result.stdout.splitlines() if "opset 11" in line)
        assert "never use" in said

    def test_a_bundle_of_another_kind_of_graph_says_what_to_export(self, tmp_path: Path) -> None:
        checkpoint = write_checkpoint(tmp_path / "student.safetensors")
        export_model(checkpoint, ExportRecipe(target="torchscript"), tmp_path / "bundle")
        result = CliRunner().invoke(main, ["check", str(tmp_path / "bundle")])
        assert isinstance(result.exception, ExportError)
        assert "--target onnx" in str(result.exception)

    def test_command(self, tmp_path: Path) -> None:
        file = tmp_path / "g.onnx"
        file.write_bytes(quantised(TensorProto.UINT8, 0).SerializeToString())
        result = CliRunner().invoke(main, ["check", str(file), "--json"])
        assert result.exit_code == 1
        found = json.loads(result.stdout)
        assert found["operators"] == {"DequantizeLinear": 1, "QuantizeLinear": 1}
        assert [one["node"] for one in found["findings"]["trt"]] == ["quantise", "restore"]
        assert not found["findings"]["onnx"]
        result = CliRunner().invoke(main, ["check", str(file), "--target", "openvino"])
        assert result.exit_code == 0
        assert "takes it (loaded and run)" in result.stdout
