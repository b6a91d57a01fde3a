"""A U-Net that a user brings: int8 is int8, what has no integers is refused, TensorRT takes it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdmri_edge.errors import ExportError
from kdmri_edge.runtime.bundle import GOLDEN_INPUT, GOLDEN_OUTPUT, Bundle
from kdmri_edge.runtime.session import open_session
from kdmri_edge.utils.extras import available, require
from kdmri_export.graph_check import CHECKED, check_graph

UNET = Path(__file__).resolve().parents[2] / "examples" / "own_network" / "unet.py"


@pytest.fixture
def export(export_code: Callable[..., Bundle]) -> Callable[..., Bundle]:
    return export_code


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_int8_is_int8(export: Callable[..., Bundle], target: str) -> None:
    bundle = export(f"{UNET}:UNet?width=4", target, "int8")
    done = bundle.manifest["transformed"]
    assert done["layers"] == done["of"] == {"Conv2d": 7, "ConvTranspose2d": 1}
    session = open_session(bundle.path, threads=1)
    counted = re.search(r"int8 in (\d+)", session.info.precision_executed)
    assert counted is not None
    assert int(counted[1]) >= 7  # asked of the runtime, not of the label
    given, wanted = (np.load(bundle.path / part) for part in (GOLDEN_INPUT, GOLDEN_OUTPUT))
    image = session.run(given)
    assert 0 < np.abs(image - wanted).max() < 0.1 * np.ptp(wanted)


@pytest.mark.parametrize("precision", ["f32", "f16", "int8"])
def test_tensorrt_takes_its_graph(export: Callable[..., Bundle], precision: str) -> None:
    bundle = export(f"{UNET}:UNet?width=4", "trt", precision)
    counts, findings = check_graph(bundle.graph, "trt")
    assert not findings
    # in integers each of its blocks is written by a convolution
    up = "ConvTranspose" if precision != "int8" else "Conv"
    assert {"MaxPool", up, "InstanceNormalization"} <= counts.keys()


def test_sizes_that_are_computed_are_constants(
    export: Callable[..., Bundle], tmp_path: Path
) -> None:
    """fastMRI's U-Net pads where a sum of numbers of its own is not zero."""
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Net(nn.Conv2d):\n"
        "    def __init__(self): super().__init__(1, 1, 3, padding=1)\n"
        "    def forward(self, x):\n"
        "        if torch.sum(torch.tensor([0, x.shape[-1] % 2])) != 0:\n"
        "            x = nn.functional.pad(x, [0, 1])\n"
        "        return super().forward(x)\n"
    )
    export(f"{tmp_path / 'own.py'}:Net", "onnx", "f32")


def test_what_depends_on_values_is_named_with_its_line(
    export: Callable[..., Bundle], tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(1, 1, 3, padding=1)\n"
        "    def forward(self, x):\n"
        "        return self.conv(x) if x.mean() > 0 else x\n"
    )
    with pytest.raises(ExportError, match=r"values of its inputs in line 7 of .*own\.py"):
        export(f"{tmp_path / 'own.py'}:Net", "onnx", "f32")
    assert not (tmp_path / "onnx-f32").exists()


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (
            "return torch.linalg.svd(self.conv(x))[0][..., :32, :32] * x",
            r"no operator for linalg_svd, of line 8 of .*own\.py",
        ),
        pytest.param(
            "with torch.autocast('cpu', torch.bfloat16): y = self.conv(x)\n"
            "        return y.float()",
            "is no ONNX graph: .*bfloat16",
            marks=pytest.mark.nightly,
        ),
    ],
    ids=["svd", "autocast"],
)
def test_what_onnx_does_not_have_is_a_sentence(
    export: Callable[..., Bundle], tmp_path: Path, forward: str, said: str
) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(1, 1, 3, padding=1)\n"
        "    def forward(self, x):\n"
        f"        {forward}\n"
    )
    with pytest.raises(ExportError, match=said) as caught:
        export(f"{tmp_path / 'own.py'}:Net", "onnx", "f32")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "onnx-f32").exists()


def test_a_class_that_does_more_than_convolve_is_left_alone(
    export: Callable[..., Bundle], tmp_path: Path
) -> None:
    """Weights that are standardised by a class of one's own; the parity gate compares."""
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "class Standardised(nn.Conv2d):\n"
        "    def forward(self, x):\n"
        "        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)\n"
        "        return self._conv_forward(x, weight / weight.std(), self.bias)\n"
        "def net(): return Standardised(1, 1, 3, padding=1)\n"
    )
    export(f"{tmp_path / 'own.py'}:net", "onnx", "f32")
    with pytest.raises(ExportError, match="Nothing"):
        export(f"{tmp_path / 'own.py'}:net", "openvino", "int8")


def node(kind: str, inputs: Sequence[str] = ("x",), **attributes: Any) -> list[Any]:
    return [helper.make_node(kind, list(inputs), ["y"], name="n", **attributes)]


CHANNELS = {"s": np.full(4, 0.5, np.float32), "b": np.full(4, 0.1, np.float32)}
MOMENTS = {"m": np.zeros(4, np.float32), "v": np.ones(4, np.float32)}
AXES = {"a": np.array([2, 3])}
# A graph for each operator of networks that users bring.
GRAPHS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "AveragePool": (node("AveragePool", kernel_shape=[2, 2], strides=[2, 2]), {}),
    "MaxPool": (node("MaxPool", kernel_shape=[2, 2], strides=[2, 2]), {}),
    "BatchNormalization": (
        node("BatchNormalization", ("x", "s", "b", "m", "v")), CHANNELS | MOMENTS
    ),
    "InstanceNormalization": (node("InstanceNormalization", ("x", "s", "b")), CHANNELS),
    "LayerNormalization": (
        node("LayerNormalization", ("x", "s"), axis=-1), {"s": np.full(16, 0.5, np.float32)}
    ),
    "Clip": (
        node("Clip", ("x", "l", "h")), {"l": np.float32(0.2), "h": np.float32(0.6)}
    ),
    "ConvTranspose": (
        node("ConvTranspose", ("x", "w"), strides=[2, 2]),
        {"w": np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 4, 2, 2)},
    ),
    "PRelu": (node("PRelu", ("x", "p")), {"p": np.full((4, 1, 1), 0.3, np.float32)}),
    "Max": (node("Max", ("x", "l")), {"l": np.float32(0.3)}),
    "Min": (node("Min", ("x", "l")), {"l": np.float32(0.3)}),
    "Pow": (node("Pow", ("x", "l")), {"l": np.float32(2)}),
    "ReduceMax": (node("ReduceMax", ("x", "a")), AXES),
    "ReduceMean": (node("ReduceMean", ("x", "a")), AXES),
    "Pad": (
        node("Pad", ("x", "p"), mode="reflect"), {"p": np.array([0, 0, 1, 2, 0, 0, 3, 1])}
    ),
    "Resize": (
        node("Resize", ("x", "", "f"), mode="linear"),
        {"f": np.array([1, 1, 2, 2], np.float32)},
    ),
    "Tile": (node("Tile", ("x", "t")), {"t": np.array([1, 1, 2, 1])}),
    "Where": (
        node("Where", ("c", "x", "l")), {"c": np.arange(16) % 3 > 0, "l": np.float32(0.3)}
    ),
    "DepthToSpace": (node("DepthToSpace", blocksize=2), {}),
    "SpaceToDepth": (node("SpaceToDepth", blocksize=2), {}),
    "Softmax": (node("Softmax", axis=1), {}),
    **{
        name: (node(name), {})
        for name in ("Elu", "Erf", "Exp", "Flatten", "GlobalAveragePool", "HardSigmoid",
                     "HardSwish", "LeakyRelu", "Log", "Reciprocal", "Sigmoid", "Softplus",
                     "Sqrt", "Tanh")
    },
}  # fmt: skip


def model(name: str) -> onnx.ModelProto:
    nodes, constants = GRAPHS[name]
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 16, 16]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    held = [numpy_helper.from_array(np.asarray(v), key) for key, v in constants.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(made)


def test_every_operator_of_the_table_has_its_graph() -> None:
    from kdmri_export import graph_check

    assert set(GRAPHS) == graph_check._BROUGHT


@pytest.mark.parametrize("name", GRAPHS)
def test_runtimes_agree_on_an_operator(name: str) -> None:
    """The table says that it is taken: ONNX Runtime and OpenVINO give one result."""
    import onnxruntime

    openvino = require("openvino", extra="openvino")
    graph = model(name)
    for target in CHECKED:
        assert check_graph(graph, target) == (Counter({name: 1}), [])
    x = np.random.default_rng(0).uniform(0.1, 1, (1, 4, 16, 16)).astype(np.float32)
    content = graph.SerializeToString()
    (wanted,) = onnxruntime.InferenceSession(content).run(None, {"x": x})
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(content), "CPU", exact)
    np.testing.assert_allclose(compiled(x)[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not available("tensorrt_rtx"), reason="TensorRT-RTX is not installed")
def test_tensorrt_rtx_builds_every_operator() -> None:
    import tensorrt_rtx as trt

    quiet = trt.Logger(trt.Logger.ERROR)
    for name in GRAPHS:
        builder = trt.Builder(quiet)
        network = builder.create_network(0)
        assert trt.OnnxParser(network, quiet).parse(model(name).SerializeToString()), name
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
        assert builder.build_serialized_network(network, config) is not None, name
