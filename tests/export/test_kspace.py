"""Networks of k-space: exported without complex numbers, with their mask bound, and refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdmri_edge.bring.network import bring_checkpoint
from kdmri_edge.errors import BackendError, ExportError, KdmriError
from kdmri_edge.models.adapter import call
from kdmri_edge.models.permission import allow_code
from kdmri_edge.physics.masks import Mask, variable_density_lines
from kdmri_edge.runtime.bundle import GOLDEN_INPUT, GOLDEN_OUTPUT, Bundle
from kdmri_edge.runtime.session import open_session
from kdmri_edge.runtime.verify import verify_bundle
from kdmri_edge.utils.extras import available, require
from kdmri_export.export import export_model
from kdmri_export.graph_check import check_graph
from kdmri_export.recipe import ExportRecipe

NETWORKS = Path(__file__).resolve().parents[1] / "kspace_networks.py"
MASK = variable_density_lines(32, 3, centre_lines=6, seed=3)
COILS = 3
TRANSFORMS = 1 + 2 + 1
"""Of the sensitivities, of a cascade, and of the image."""


class Exporter:
    """Exports what code makes, with the weights that it draws; each request once.

    Attributes:
        folder: Of the last request.
    """

    def __init__(self, place: Path) -> None:
        self.place, self.folder = place, place
        self._made: dict[str, Bundle] = {}

    def __call__(
        self, code: str, target: str = "onnx", *, mask: Mask = MASK, **options: Any
    ) -> Bundle:
        recipe = ExportRecipe(target=target, **{"coils": COILS, **options})
        key = f"{code} {recipe} {mask.sha256}"
        if key not in self._made:
            torch.manual_seed(0)
            weights = self.place / "weights.pt"
            torch.save(call(allow_code(code)).state_dict(), weights)
            checkpoint = bring_checkpoint(code, weights=weights, mask=mask)
            self.folder = self.place / str(len(list(self.place.iterdir())))
            self._made[key] = export_model(checkpoint, recipe, self.folder)
        return self._made[key]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    place = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("KDMRI_EDGE_CODE", "")
        yield Exporter(place)


def named(factory: str) -> str:
    return f"{NETWORKS}:{factory}?cascades=1&width=2"


def own(tmp_path: Path, forward: str, further: str = "") -> str:
    """A user's file with a network of masked k-space, whose forward has this body."""
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(1, 1, 3, padding=1)\n"
        f"        {further or 'pass'}\n"
        "    def forward(self, masked_kspace, mask):\n"
        "        k = torch.fft.ifftshift(torch.view_as_complex(masked_kspace), dim=(-2, -1))\n"
        f"        {forward}\n"
    )
    return f"{tmp_path / 'own.py'}:Net"


SUM = "x = torch.fft.ifft2(k, norm='ortho').abs().sum(1, keepdim=True)"


@pytest.mark.parametrize(
    "factory", ["FastMRI", "MONAI", pytest.param("Counted", marks=pytest.mark.nightly)]
)
def test_no_transform_and_no_complex_number_is_left(export: Exporter, factory: str) -> None:
    bundle = export(named(factory))
    counts, findings = check_graph(bundle.graph, "trt")
    assert not findings
    assert "DFT" not in counts
    assert bundle.manifest["transforms_as_products"] == TRANSFORMS
    assert bundle.manifest["io"] == {
        "input": {
            "name": "kspace",
            "shape": [1, COILS, 2, 32, 32],
            "dtype": "float32",
            "blank_coils": False,
        },
        "output": {"name": "reconstruction", "shape": [1, 1, 32, 32], "dtype": "float32"},
    }
    assert bundle.manifest["parity"]["figures"]["max_error"] < 1e-4
    assert np.load(bundle.path / GOLDEN_INPUT).shape == (1, COILS, 2, 32, 32)


@pytest.mark.parametrize("target", ["openvino", "trt", "torchscript", "pt2"])
def test_every_target_takes_them(export: Exporter, target: str) -> None:
    bundle = export(named("FastMRI"), target, compiled=False)
    assert bundle.manifest["transforms_as_products"] == TRANSFORMS
    verified = verify_bundle(bundle.path)
    assert verified["passed"], verified


@pytest.mark.parametrize(
    ("target", "precision"),
    [("onnx", "f16"), pytest.param("openvino", "int8", marks=pytest.mark.nightly)],
)
def test_transforms_stay_in_float32_whatever_the_precision(
    export: Exporter, target: str, precision: str
) -> None:
    bundle = export(named("MONAI"), target, precision=precision)
    assert bundle.manifest["transformed"]["convolutions"] == 4
    session = open_session(bundle.path, threads=1)
    if precision == "int8":
        counted = re.search(r"int8 in (\d+)", session.info.precision_executed)
        assert counted is not None
        assert int(counted[1]) >= 4  # asked of the runtime
    else:
        import onnx

        graph = onnx.load(bundle.graph).graph
        kinds = {i.name: i.data_type for i in graph.initializer}
        products = [node for node in graph.node if node.op_type == "MatMul"]
        assert products
        assert all(
            kinds.get(name, onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT
            for node in products
            for name in node.input
        )


@pytest.mark.nightly
def test_bf16_of_openvino_leaves_transforms_in_float32(export: Exporter) -> None:
    openvino = require("openvino", extra="openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    bundle = export(named("FastMRI"), "openvino", precision="bf16")
    settings = {"INFERENCE_PRECISION_HINT": "bf16"}
    compiled = openvino.Core().compile_model(str(bundle.graph), "CPU", settings)
    kinds: dict[str, set[str]] = {}
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        kind, ran = (str(info[key].astype(str)) for key in ("layerType", "runtimePrecision"))
        kinds.setdefault(kind, set()).add(ran)
    assert kinds["Convolution"] == {"bf16"}
    products = kinds.get("FullyConnected", set()) | kinds.get("MatMul", set())
    assert products == {"f32"}


@pytest.mark.nightly
def test_any_number_of_slices(export: Exporter) -> None:
    bundle = export(named("MONAI"), batch="dynamic")
    session = open_session(bundle.path, threads=1)
    one = np.load(bundle.path / GOLDEN_INPUT)
    wanted = np.load(bundle.path / GOLDEN_OUTPUT)
    found = session.run(np.repeat(one, 3, axis=0))
    np.testing.assert_allclose(found, np.repeat(wanted, 3, axis=0), atol=1e-4)


def test_fewer_coils_are_filled_up_where_that_changes_nothing(
    export: Exporter, tmp_path: Path
) -> None:
    """Here a coil without samples adds a zero to a sum."""
    bundle = export(own(tmp_path, f"{SUM}; return self.conv(x)"))
    assert bundle.manifest["io"]["input"]["blank_coils"]
    session = open_session(bundle.path, threads=1)
    two = np.load(bundle.path / GOLDEN_INPUT)[:, :2]
    more = np.concatenate((two, np.zeros_like(two[:, :1])), 1)
    np.testing.assert_array_equal(session.run(two), session.run(more))
    with pytest.raises(BackendError, match="takes 3 coils, the scan has 4"):
        session.run(np.repeat(two, 2, axis=1))


def test_fewer_coils_are_refused_where_they_change_the_image(export: Exporter) -> None:
    session = open_session(export(named("FastMRI")).path, threads=1)
    two = np.load(session.bundle.path / GOLDEN_INPUT)[:, :2]  # type: ignore[union-attr]
    with pytest.raises(BackendError, match="another image") as caught:
        session.run(two)
    assert "--coils 2" in caught.value.remedy
    with pytest.raises(BackendError, match="reads k-space"):
        session.run(two[:, 0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mask_input": True}, "mask as an input"),
        ({"keep_op": True}, "one node"),
        ({"dc": "fft"}, "another form"),
    ],
    ids=str,
)
def test_what_such_networks_cannot_do(export: Exporter, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        export(named("MONAI"), **options)
    assert not export.folder.exists()


def test_integers_of_torchscript_are_refused(export: Exporter) -> None:
    with pytest.raises(ExportError, match="no integers") as caught:
        export(named("MONAI"), "torchscript", precision="int8")
    assert "openvino" in caught.value.remedy


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (
            "x = torch.linalg.inv(k + torch.eye(32)); return self.conv(x.abs().sum(1, True))",
            r"complex tensors.*line 10 of .*own\.py",
        ),
        (
            f"{SUM}; return self.conv(x) if x.mean() > 0 else x",
            r"values of its inputs in line 10 of .*own\.py",
        ),
    ],
    ids=["no-lowering", "values"],
)
def test_what_has_no_lowering_is_named_with_its_line(
    export: Exporter, forward: str, said: str, tmp_path: Path
) -> None:
    code = own(tmp_path, forward)
    with pytest.raises(KdmriError, match=said):
        export(code)
    assert not export.folder.exists()


def test_a_mask_of_points_is_refused_by_these_conventions(export: Exporter) -> None:
    from kdmri_edge.physics.masks import variable_density_2d

    with pytest.raises(KdmriError, match="masks of whole lines"):
        export(named("MONAI"), mask=variable_density_2d((32, 32), 3, centre=8, seed=1))


@pytest.mark.nightly
@pytest.mark.skipif(not available("tensorrt_rtx"), reason="TensorRT-RTX is not installed")
def test_tensorrt_rtx_builds_an_engine(export: Exporter) -> None:
    from kdmri_export.targets.tensorrt.engines import EngineRequest

    request = EngineRequest(builder="rtx", compute_capabilities=("sm86",), required=True)
    bundle = export(named("FastMRI"), "trt", engines=request)
    assert bundle.manifest["engine"]["built"]
