"""Data consistency kept as one node: the same results, from a function that the file carries."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import inliner

from kdmri_edge.errors import BackendError, ExportError
from kdmri_edge.runtime.backends.onnxruntime import OnnxRuntimeSession
from kdmri_edge.runtime.backends.openvino import OpenVinoSession
from kdmri_edge.runtime.backends.openvino_extension import data_consistency_nodes
from kdmri_edge.runtime.bundle import GOLDEN_INPUT, GOLDEN_OUTPUT
from kdmri_edge.runtime.session import Session, open_session
from kdmri_export.export import export_model
from kdmri_export.graph_check import check_graph
from kdmri_export.recipe import ExportRecipe
from tests.export.networks import lines, spec, write_checkpoint
from tests.export.parity_cases import CASES, ParityCases, images, pytorch, some


# The node alone differs from the graphs of `test_onnx.py`; below it is run in both runtimes.
@pytest.mark.nightly
class TestKeptOperator(ParityCases):
    target = "onnx"
    keep_op = True
    refuses = "sense"  # its operators are written out


MATRIX_PRODUCTS = [name for name in CASES if "FFT" not in name and "sense" not in name]
EACH_FORM = ("magnitude, noise weight, odd", "magnitude, DFT", "complex, 2-D mask, odd")


def written(name: str, folder: Path, **options: bool) -> tuple[Any, Path]:
    return TestKeptOperator().write(name, folder, **options)


@pytest.mark.parametrize("session", [OnnxRuntimeSession, OpenVinoSession])
@pytest.mark.parametrize("name", some(MATRIX_PRODUCTS, EACH_FORM))
def test_runtimes_read_the_node(name: str, session: type[Session], tmp_path: Path) -> None:
    reconstructor, graph = written(name, tmp_path)
    architecture, _, _, size = CASES[name]
    x_u = images(1, architecture.channels, size)
    output = session(graph, threads=1).run(x_u)
    np.testing.assert_allclose(output, pytorch(reconstructor, x_u), atol=2e-5)


def test_openvino_takes_any_batch_of_it(tmp_path: Path) -> None:
    reconstructor, graph = written("complex, 2-D mask, odd", tmp_path, dynamic=True)
    session = OpenVinoSession(graph, threads=1)
    for batch in (1, 3):
        x_u = images(batch, 2, (31, 25))
        np.testing.assert_allclose(session.run(x_u), pytorch(reconstructor, x_u), atol=2e-5)


def test_openvino_has_no_word_for_the_fft_form() -> None:
    from openvino import opset13 as ops

    image = ops.parameter([1, 1, 8, 8], np.float32).output(0)
    with pytest.raises(BackendError, match="--dc auto"):
        data_consistency_nodes(image, image, image, 1.0, "fft")


def test_one_node_per_cascade_and_one_function(tmp_path: Path) -> None:
    _, graph = written("magnitude", tmp_path)
    model = onnx.load(graph)
    counts = Counter((node.domain, node.op_type) for node in model.graph.node)
    assert counts["kdmri", "DataConsistency"] == CASES["magnitude"][0].cascades
    assert counts["", "MatMul"] == 0
    (function,) = model.functions
    assert [node.op_type for node in function.node] == ["MatMul", "Sub", "Add"]


@pytest.mark.parametrize("name", some(MATRIX_PRODUCTS, EACH_FORM))
def test_inlined_by_onnx_it_is_the_same_graph(name: str, tmp_path: Path) -> None:
    _, graph = written(name, tmp_path)
    whole = inliner.inline_local_functions(onnx.load(graph))
    assert not whole.functions
    assert {node.domain for node in whole.graph.node} == {""}
    spelled = tmp_path / "spelled.onnx"
    onnx.save(whole, spelled)
    architecture, _, _, size = CASES[name]
    x_u = images(1, architecture.channels, size)
    outputs = [OnnxRuntimeSession(file, threads=1).run(x_u) for file in (graph, spelled)]
    np.testing.assert_array_equal(*outputs)


def test_the_check_looks_into_the_function(tmp_path: Path) -> None:
    _, graph = written("magnitude, FFT", tmp_path)
    counts, findings = check_graph(graph, "trt")
    assert counts["DFT"] > 0
    assert "kdmri::DataConsistency" not in counts
    assert {finding.operator for finding in findings} == {"DFT"}


@pytest.mark.parametrize("precision", ["f32", "f16", "int8"])
def test_bundle_runs_where_an_onnx_bundle_runs(precision: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "student.safetensors")
    recipe = ExportRecipe(target="onnx", keep_op=True, precision=precision)
    out = tmp_path / recipe.bundle_name("student")
    bundle = export_model(checkpoint, recipe, out)
    assert out.name.endswith("-op")
    assert bundle.manifest["keep_op"] is True
    given, wanted = (np.load(bundle.path / name) for name in (GOLDEN_INPUT, GOLDEN_OUTPUT))
    limit = {"f32": 1e-5, "f16": 1e-2, "int8": 0.1}[precision]
    for backend in ("onnxruntime", "openvino"):
        output = open_session(bundle.path, backend=backend, threads=1).run(given)
        assert np.abs(output - wanted).max() < limit * np.ptp(wanted), backend


def test_where_there_is_no_such_node_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--keep-op"):
        ExportRecipe(target="trt", keep_op=True)
    recipe = ExportRecipe(target="onnx", keep_op=True)
    plain = write_checkpoint(tmp_path / "sr.safetensors", spec(kind="vdsr"), lines())
    with pytest.raises(ExportError, match="as one node"):
        export_model(plain, recipe, tmp_path / "bundle")
    student = write_checkpoint(tmp_path / "student.safetensors")
    with pytest.raises(ExportError, match="data consistency is an FFT"):
        export_model(
            student, ExportRecipe(target="onnx", keep_op=True, dc="fft"), tmp_path / "bundle"
        )
    assert not (tmp_path / "bundle").exists()
