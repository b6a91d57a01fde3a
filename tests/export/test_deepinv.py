"""Networks of deepinv's conventions are exported with their mask, run, and taught from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdmri_edge as ke
from kdmri_edge.bring.network import bring_checkpoint
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.errors import ExportError
from kdmri_edge.models.adapter import call
from kdmri_edge.models.checkpoint import load_checkpoint
from kdmri_edge.models.permission import allow_code
from kdmri_edge.physics.masks import Mask, variable_density_2d, variable_density_lines
from kdmri_edge.runtime.bundle import Bundle
from kdmri_edge.runtime.verify import verify_bundle
from kdmri_edge.utils.extras import available
from kdmri_export.export import export_model
from kdmri_export.graph_check import check_graph
from kdmri_export.recipe import ExportRecipe

NETWORKS = Path(__file__).resolve().parents[1] / "physics_networks.py"
MASK = variable_density_lines(32, 3, centre_lines=6, seed=3)
POINTS = variable_density_2d((32, 32), 3, centre=8, seed=1)


class Exporter:
    """Exports what code makes, with the weights that it draws; each request once."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._made: dict[str, Bundle] = {}

    def checkpoint(self, network: str, convention: str = "deepinv", mask: Mask = MASK) -> Path:
        torch.manual_seed(0)
        code, weights = f"{NETWORKS}:{network}", self.place / "weights.pt"
        torch.save(call(allow_code(code)).state_dict(), weights)
        return bring_checkpoint(code, weights=weights, mask=mask, convention=convention)

    def __call__(
        self,
        network: str,
        target: str = "onnx",
        convention: str = "deepinv",
        *,
        mask: Mask = MASK,
        **options: Any,
    ) -> Bundle:
        few = {"coils": 3} if convention == "deepinv-multicoil" else {}
        recipe = ExportRecipe(target=target, **{**few, **options})
        key = f"{network} {convention} {recipe} {mask.sha256}"
        if key not in self._made:
            checkpoint = self.checkpoint(network, convention, mask)
            folder = self.place / str(len(list(self.place.iterdir())))
            self._made[key] = export_model(checkpoint, recipe, folder)
        return self._made[key]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    place = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("KDMRI_EDGE_CODE", "")
        yield Exporter(place)


NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize(
    ("network", "convention", "target"),
    [
        ("VarNet?cascades=1", "deepinv", "onnx"),
        pytest.param("VarNet?cascades=1", "deepinv", "openvino", marks=NIGHTLY),
        pytest.param("VarNet?cascades=1", "deepinv", "trt", marks=NIGHTLY),
        pytest.param("VarNet?cascades=1", "deepinv", "pt2", marks=NIGHTLY),
        pytest.param("VarNet?cascades=1", "deepinv", "torchscript", marks=NIGHTLY),
        pytest.param("MoDL", "deepinv", "openvino", marks=NIGHTLY),
        pytest.param("MoDL?start=A_dagger", "deepinv", "onnx", marks=NIGHTLY),
        pytest.param("EndToEnd?cascades=1", "deepinv-multicoil", "onnx", marks=NIGHTLY),
        pytest.param("VarNet", "deepinv-multicoil", "onnx", marks=NIGHTLY),
        pytest.param("MoDL", "deepinv-multicoil", "openvino", marks=NIGHTLY),
    ],
)
def test_they_are_exported_without_complex_numbers(
    export: Exporter, network: str, convention: str, target: str
) -> None:
    bundle = export(network, target, convention)
    assert bundle.manifest["transforms_as_products"] > 0
    assert bundle.manifest["parity"]["figures"]["max_error"] < 1e-4
    assert bundle.manifest["spec"]["convention"] == convention
    if bundle.graph.suffix == ".onnx":
        counts, findings = check_graph(bundle.graph, "trt")
        assert not findings
        assert "DFT" not in counts
    assert verify_bundle(bundle.path)["passed"]


@NIGHTLY
def test_masks_of_points(export: Exporter) -> None:
    bundle = export("VarNet?cascades=1", mask=POINTS)
    assert bundle.manifest["parity"]["figures"]["max_error"] < 1e-4


@NIGHTLY
@pytest.mark.parametrize(("target", "precision"), [("onnx", "f16"), ("openvino", "int8")])
def test_precisions_act_on_their_convolutions(
    export: Exporter, target: str, precision: str
) -> None:
    bundle = export("MoDL", target, precision=precision)
    assert bundle.manifest["transformed"]["convolutions"] == 2


def test_an_export_gives_a_scans_image(export: Exporter) -> None:
    """In the unit of the scan, as PyTorch does."""
    volume = phantom_volume(5, slices=3, matrix=32, complex_phase=True).image * 1e-6
    kspace = np.fft.fft2(np.fft.ifftshift(volume, (-2, -1)), norm="ortho") * MASK.grid
    given = kspace.astype(np.complex64)
    with ke.load(export("VarNet?cascades=1"), threads=1) as exported:
        found = exported.reconstruct(given, mask=MASK)
    with ke.load(export.checkpoint("VarNet?cascades=1"), backend="torch", threads=1) as eager:
        wanted = eager.reconstruct(given, mask=MASK)
    assert found.shape == (3, 32, 32)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mask_input": True}, "mask as an input"),
        ({"keep_op": True}, "one node"),
        ({"dc": "fft"}, "another form"),
        ({"any_matrix": True}, "holds its mask"),
    ],
    ids=str,
)
def test_what_such_networks_cannot_do(export: Exporter, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportError, match=said) as caught:
        export("VarNet?cascades=1", **options)
    assert "deepinv" in caught.value.what


def test_one_teaches_a_network_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KDMRI_EDGE_CODE", "")
    small = (
        *("teacher_steps=2", "imitation_steps=2", "batches.size=2", "phantom_volumes=3"),
        *("phantom_slices=2", "optim.warmup=1", "validate_every=2"),
    )
    run = ke.distill(
        teacher=f"{NETWORKS}:VarNet", student="dccnn-d3c5-complex", data="phantom", matrix=32,
        acceleration=2, assignments=small, recipe="imitation", baseline=False, accelerator="cpu",
        threads=1, out=tmp_path / "run",
    )  # fmt: skip
    teacher = load_checkpoint(run.teacher.path)
    assert teacher.spec.convention == "deepinv"  # type: ignore[attr-defined]
    assert load_checkpoint(run.student.path).spec.reads == "complex"


@NIGHTLY
@pytest.mark.skipif(not available("deepinv"), reason="deepinv is not installed")
@pytest.mark.parametrize("name", ["VarNet", "MoDL"])
def test_deepinvs_own_networks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import deepinv

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KDMRI_EDGE_CODE", "")
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "from deepinv.models import DnCNN, MoDL, VarNet\n"
        "def denoiser(): return DnCNN(2, 2, depth=3, nf=8, pretrained=None)\n"
        "def varnet(): return VarNet(denoiser(), num_cascades=2)\n"
        "def modl(): return MoDL(denoiser(), num_iter=2)\n"
    )
    code = f"own.py:{name.lower()}"
    torch.manual_seed(0)
    network = call(allow_code(code)).eval()
    torch.save(network.state_dict(), "weights.pt")
    checkpoint = bring_checkpoint(code, weights="weights.pt", mask=MASK)
    bundle = export_model(checkpoint, ExportRecipe(target="onnx"), tmp_path / "bundle")
    assert bundle.manifest["parity"]["figures"]["max_error"] < 1e-4
    image = phantom_volume(5, slices=3, matrix=32, complex_phase=True).image[:1]
    kspace = np.fft.fft2(np.fft.ifftshift(image, (-2, -1)), norm="ortho") * MASK.grid
    with ke.load(bundle, threads=1) as exported:
        found = exported.reconstruct(kspace.astype(np.complex64), mask=MASK)
    # deepinv's own physics, with lines along the last axis
    turned = np.fft.fftshift(np.swapaxes(kspace, -2, -1), (-2, -1)).astype(np.complex64)
    scale = np.abs(np.fft.ifft2(kspace, norm="ortho")).max()
    y = torch.from_numpy(np.stack((turned.real, turned.imag), 1) / scale).float()
    lines = np.fft.fftshift(MASK.samples).astype(np.float32)
    physics = deepinv.physics.MRI(mask=torch.from_numpy(np.tile(lines, (32, 1))))
    with torch.no_grad():
        real, imaginary = network(y, physics)[0].transpose(-2, -1).numpy() * scale
    np.testing.assert_allclose(found[0], real + 1j * imaginary, atol=1e-4 * scale)
