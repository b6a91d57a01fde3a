"""ONNX graphs in ONNX Runtime, and what they are made of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from kdmri_edge.errors import BundleError
from kdmri_edge.runtime.backends.onnxruntime import OnnxRuntimeSession
from tests.export.parity_cases import CASES, EVERY_TIME, ParityCases, some


class TestOnnx(ParityCases):
    target = "onnx"

    def graph(self, name: str, folder: Path, *, dynamic: bool = False) -> onnx.ModelProto:
        _, path = self.write(name, folder, dynamic=dynamic)
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model, full_check=True)
        return model

    def test_projection_is_one_product_per_cascade_and_nothing_else(self, tmp_path: Path) -> None:
        counts = Counter(node.op_type for node in self.graph("magnitude", tmp_path).graph.node)
        cascades = CASES["magnitude"][0].cascades
        assert counts["MatMul"] == cascades
        assert counts["Sub"] == cascades
        # x + CNN(x), and the residual of data consistency: two additions per cascade
        assert counts["Add"] == 2 * cascades
        # The last convolution of a cascade is taken apart (passes.narrow).
        assert counts["ReduceSum"] == cascades
        assert set(counts) == {"Conv", "Relu", "MatMul", "Add", "Sub", "ReduceSum"}

    def test_projection_matrix_is_stored_once(self, tmp_path: Path) -> None:
        model = self.graph("magnitude", tmp_path)
        square = [i for i in model.graph.initializer if list(i.dims) == [32, 32]]
        assert len(square) == 1
        products = [node for node in model.graph.node if node.op_type == "MatMul"]
        assert {node.input[0] for node in products} == {square[0].name}

    @pytest.mark.parametrize("name", some([n for n in CASES if "FFT" not in n], EVERY_TIME))
    def test_no_fourier_node_unless_asked_for(self, name: str, tmp_path: Path) -> None:
        kinds = {node.op_type for node in self.graph(name, tmp_path).graph.node}
        assert not kinds & {"DFT", "STFT"}
        assert {node.domain for node in onnx.load(tmp_path / "model.onnx").graph.node} <= {""}

    @pytest.mark.parametrize(
        ("name", "transforms"),
        [
            pytest.param("magnitude, FFT", 2, marks=pytest.mark.nightly),
            ("complex, FFT, 2-D mask, odd", 4),
        ],
    )
    def test_plain_export_holds_its_fourier_nodes(
        self, name: str, transforms: int, tmp_path: Path
    ) -> None:
        kinds = Counter(node.op_type for node in self.graph(name, tmp_path).graph.node)
        assert kinds["DFT"] == transforms * CASES[name][0].cascades

    def test_interface(self, tmp_path: Path) -> None:
        fixed = self.graph("magnitude", tmp_path).graph
        for value, name in ((fixed.input[0], "zero_filled"), (fixed.output[0], "reconstruction")):
            assert value.name == name
            assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
            assert [d.dim_value for d in value.type.tensor_type.shape.dim] == [1, 1, 32, 24]
        free = self.graph("magnitude", tmp_path, dynamic=True).graph
        for value in (free.input[0], free.output[0]):
            dims = value.type.tensor_type.shape.dim
            assert dims[0].dim_param
            assert [d.dim_value for d in dims[1:]] == [1, 32, 24]

    def test_weights_are_inside(self, tmp_path: Path) -> None:
        model = self.graph("magnitude", tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
        held = {i.data_location for i in model.graph.initializer}
        assert held == {onnx.TensorProto.DEFAULT}
        assert {o.version for o in model.opset_import} == {18}

    def test_only_the_cpu_provider_runs(self, tmp_path: Path) -> None:
        _, graph = self.write("magnitude", tmp_path)
        assert self.open(graph).info.provider == "CPUExecutionProvider"

    def test_damaged_graph_is_refused(self, tmp_path: Path) -> None:
        _, graph = self.write("magnitude", tmp_path)
        graph.write_bytes(np.random.default_rng(0).bytes(500))
        with pytest.raises(BundleError, match=r"model\.onnx"):
            OnnxRuntimeSession(graph)
