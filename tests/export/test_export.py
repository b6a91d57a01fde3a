"""Bundles as `export_model` writes them, and what is left when it does not."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdmri_edge.errors import (
    BackendError,
    CheckpointError,
    ExportError,
    KdmriError,
    MaskError,
    MissingExtraError,
    OutputError,
    ParityError,
)
from kdmri_edge.models.checkpoint import load_reconstructor
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.models.shipped import shipped_networks
from kdmri_edge.physics.scaling import SCALING_RULE
from kdmri_edge.runtime import deviation
from kdmri_edge.runtime.backends.torchscript import TorchScriptSession
from kdmri_edge.runtime.bill import BILL, bill
from kdmri_edge.runtime.bundle import (
    GOLDEN_INPUT,
    GOLDEN_OPERATOR,
    GOLDEN_OUTPUT,
    MANIFEST,
    Bundle,
    open_bundle,
)
from kdmri_edge.runtime.session import open_session
from kdmri_edge.runtime.targets import TARGETS
from kdmri_edge.utils.files import sha256_file
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets import onnx as to_onnx
from kdmri_export.targets import torchscript as to_torchscript
from tests.export.networks import MATRIX, lines, points, spec, write_checkpoint

QUICK = "torchscript"  # the target that is written fastest


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "student.safetensors")


@pytest.mark.parametrize("target", TARGETS)
def test_bundle_runs_in_its_own_runtime(target: str, checkpoint: Path, tmp_path: Path) -> None:
    recipe = ExportRecipe(target=target, compiled=False)  # compilers take their time
    bundle = export_model(checkpoint, recipe, tmp_path / "bundle")
    given, expected = (np.load(bundle.path / f) for f in (GOLDEN_INPUT, GOLDEN_OUTPUT))
    checker = TARGETS[target].checker.name  # an engine needs its device
    output = open_session(bundle.path, backend=checker, threads=1).run(given)
    np.testing.assert_allclose(output, expected, atol=1e-5)
    with torch.inference_mode():
        trained = load_reconstructor(checkpoint)(torch.from_numpy(given)).numpy()
    np.testing.assert_allclose(expected, trained, atol=1e-6)
    assert np.abs(expected - given).max() > 1e-3  # the network does something


def test_manifest_accounts_for_everything(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_model(checkpoint, ExportRecipe(target="onnx"), tmp_path / "bundle")
    check_bill(bundle)
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    names = {file.name for file in bundle.path.iterdir()}
    assert set(manifest["files"]) == names - {MANIFEST}
    assert {n: sha256_file(bundle.path / n) for n in manifest["files"]} == manifest["files"]
    assert manifest["schema"] == 1
    assert manifest["target"] == "onnx"
    assert manifest["dc"] == "projection"
    assert manifest["batch"] == "1"
    assert manifest["role"] == "student"
    assert manifest["matrix"] == MATRIX
    assert manifest["parameters"] == spec().parameters
    assert manifest["scaling"] == SCALING_RULE
    assert manifest["training"]["attribution"] == "Nobody"
    assert manifest["checkpoint_sha256"] == sha256_file(checkpoint)
    assert manifest["io"]["input"] == {
        "name": "zero_filled", "shape": [1, 1, MATRIX, MATRIX], "dtype": "float32"
    }  # fmt: skip
    assert manifest["parity"]["passed"] is True
    assert manifest["provenance"]["versions"]["torch"] == torch.__version__
    assert bundle.mask == lines()
    assert str(tmp_path) not in (bundle.path / MANIFEST).read_text()


def check_bill(bundle: Bundle) -> None:
    """Compare the bill of materials with CycloneDX's schema, the manifest, and what is installed.

    Written here rather than in a test of its own: to export a network takes longest.
    """
    cyclonedx = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    text = (bundle.path / BILL).read_text(encoding="utf-8")
    assert cyclonedx.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(text) is None
    found = json.loads(text)
    network, parts = found["metadata"]["component"], found["components"]
    held = {one["name"]: one["hashes"][0]["content"] for one in network["components"]}
    assert held == {name: digest for name, digest in bundle.manifest["files"].items()
                    if name != BILL}  # fmt: skip
    assert network["hashes"][0]["content"] == bundle.manifest["checkpoint_sha256"]
    assert "licenses" not in network  # nobody said it
    for name in ("numpy", "onnxruntime"):
        (part,) = [one for one in parts if one["name"] == name]
        assert part["version"] == importlib.metadata.version(name)
        assert part["licenses"]
    known = {"network", *(part["bom-ref"] for part in parts)}
    for one in found["dependencies"]:
        assert {one["ref"], *one["dependsOn"]} <= known


def test_a_bill_names_training_data_licence_and_what_nobody_knows(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Path(__file__).parents[1] / "data" / "v0_1" / "bundles" / "onnx-f32" / MANIFEST
    manifest = json.loads(old.read_text(encoding="utf-8"))
    network = next(iter(shipped_networks().values()))
    data = [{"sha256": "a" * 64}, {"sha256": "none"}, {"sha256": "b" * 64}]
    manifest["training"] = {"data": data, "attribution": "Some\nhospital, CC BY 4.0"}
    manifest["checkpoint_sha256"] = network.entry["sha256"]
    monkeypatch.setattr("kdmri_edge.runtime.bill.OWN", "surely-not-installed")
    made = bill(manifest, {"model.onnx": "c" * 64}, now="2026-01-01T00:00:00+00:00")
    assert made == bill(manifest, {"model.onnx": "c" * 64}, now="2026-01-01T00:00:00+00:00")
    own = made["metadata"]["component"]
    refs = [one["ref"] for one in own["modelCard"]["modelParameters"]["datasets"]]
    assert refs == [f"data/{'a' * 64}", f"data/{'b' * 64}"]
    volumes = [one for one in made["components"] if one["type"] == "data"]
    assert {one["copyright"] for one in volumes} == {"Some hospital, CC BY 4.0"}
    assert own["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    (absent,) = [one for one in made["components"] if one["name"] == "surely-not-installed"]
    assert "version" not in absent
    assert "not known" in absent["description"]


@pytest.mark.parametrize(
    ("make", "dc", "form"),
    [
        (lines, "auto", "projection"),
        (lines, "dft", "dft"),
        (lines, "fft", "fft"),
        (points, "auto", "dft"),
    ],
)
def test_form_follows_mask_and_choice(
    make: Callable[..., Any], dc: str, form: str, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "net.safetensors", mask=make())
    bundle = export_model(checkpoint, ExportRecipe(target=QUICK, dc=dc), tmp_path / "bundle")
    assert bundle.manifest["dc"] == form


@pytest.mark.parametrize("architecture", [spec(channels=2), spec(kind="vdsr")])
def test_other_networks_pass_the_gate(architecture: Any, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "net.safetensors", architecture)
    bundle = export_model(
        checkpoint, ExportRecipe(target=QUICK, batch="dynamic"), tmp_path / "bundle"
    )
    assert bundle.manifest["io"]["input"]["shape"][:2] == ["batch", architecture.channels]


@pytest.mark.parametrize(
    ("architecture", "options", "remedy"),
    [
        (spec(kind="vdsr"), {"dc": "fft"}, "--dc"),
        (spec(kind="vdsr"), {"dc": "projection"}, "--dc"),
        (spec(), {"coils": 4}, "--coils"),
        (spec(channels=2), {"coils": 4}, "--coils"),
    ],
    ids=["magnitude, fft", "magnitude, projection", "magnitude, coils", "complex, coils"],
)
def test_options_that_would_only_rename_a_bundle_are_refused(
    architecture: Any, options: dict[str, Any], remedy: str, tmp_path: Path
) -> None:
    """Its name would promise what its graph has not; with an FFT its limits would be wider, too."""
    checkpoint = write_checkpoint(tmp_path / "net.safetensors", architecture)
    with pytest.raises(ExportError, match=r"no (data consistency|coils)") as caught:
        export_model(checkpoint, ExportRecipe(target=QUICK, **options), tmp_path / "bundle")
    assert caught.value.remedy == f"Leave {remedy} out."
    assert not (tmp_path / "bundle").exists()


def test_what_a_stopped_export_left_is_removed_by_a_later_one(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "net.safetensors")
    left, running = (
        tmp_path / "exports" / f".other-onnx.{n}.tmp" for n in ("01234567", "89abcdef")
    )
    for place in (left, running):
        place.mkdir(parents=True)
    os.utime(left, (1e9, 1e9))
    export_model(checkpoint, ExportRecipe(target=QUICK), tmp_path / "exports" / "bundle")
    assert {place.name for place in left.parent.iterdir()} == {"bundle", running.name}


def test_names_say_what_differs_from_the_defaults() -> None:
    assert ExportRecipe(target="onnx").bundle_name("student") == "student-onnx"
    plain = ExportRecipe(target="onnx", dc="fft", batch="dynamic")
    assert plain.bundle_name("student") == "student-onnx-fft-dynamic"
    other = ExportRecipe(target="trt", precision="int8", mask_input=True)
    assert other.bundle_name("plain") == "plain-trt-int8-masks"


def refuse(kind: type[KdmriError], words: str, checkpoint: Path, out: Path, **options: str) -> None:
    """Assert that an export is refused with a remedy and leaves nothing."""
    before = set(out.parent.iterdir())
    with pytest.raises(kind, match=words) as caught:
        export_model(checkpoint, ExportRecipe(**{"target": QUICK, **options}), out)  # type: ignore[arg-type]
    assert caught.value.remedy
    assert set(out.parent.iterdir()) == before


def test_failing_gate_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = deviation.Tolerance(max_error=-1.0, nrmse=-1.0, psnr_db=-1.0, ssim=-1.0)
    monkeypatch.setitem(deviation.TOLERANCES, "f32", strict)
    refuse(ParityError, "max_error", checkpoint, tmp_path / "bundle")


@pytest.mark.parametrize(("target", "module"), [(QUICK, to_torchscript), ("onnx", to_onnx)])
def test_graph_of_other_weights_is_caught_and_the_earlier_bundle_kept(
    target: str, module: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = export_model(checkpoint, ExportRecipe(target=target), tmp_path / "bundle").manifest
    write = module.write

    def careless(reconstructor: Any, *rest: Any, **options: Any) -> None:
        with torch.no_grad():
            weights = dict(reconstructor.named_parameters())["model.cascades.1.convs.0.weight"]
            original = weights.clone()
            weights *= 1.02
            write(reconstructor, *rest, **options)
            weights.copy_(original)

    monkeypatch.setattr(module, "write", careless)
    refuse(ParityError, "does not reproduce", checkpoint, tmp_path / "bundle", target=target)
    assert open_bundle(tmp_path / "bundle").manifest == kept


def test_projection_of_a_two_dimensional_mask_is_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "net.safetensors", mask=points())
    refuse(KdmriError, "form dft", checkpoint, tmp_path / "bundle", dc="projection")


@pytest.mark.parametrize(
    ("option", "words"),
    [({"target": "onx"}, "did you mean 'onnx'"), ({"batch": "7"}, "batch '7'")],
)
def test_unknown_choice_is_refused(
    option: dict[str, str], words: str, checkpoint: Path, tmp_path: Path
) -> None:
    refuse(ExportError, words, checkpoint, tmp_path / "bundle", **option)


def test_corrupt_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    refuse(CheckpointError, "damaged", checkpoint, tmp_path / "bundle")
    refuse(CheckpointError, "does not exist", tmp_path / "no.safetensors", tmp_path / "bundle")


@pytest.mark.parametrize(
    ("target", "library", "extra"),
    [
        ("onnx", "onnx", "onnx"),
        ("onnx", "onnxruntime", "onnx"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_missing_library_names_the_pip_command(
    target: str,
    library: str,
    extra: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # importing it now fails as if it were absent
    words = rf'pip install "kdmri-edge\[{extra}\]"'
    refuse(MissingExtraError, words, checkpoint, tmp_path / "bundle", target=target)


def test_folder_with_other_files_is_never_replaced(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    (out / "chapters").mkdir(parents=True)
    (out / "chapters" / "one.tex").write_text("years of work")
    refuse(ExportError, "one.tex", checkpoint, out)
    # a bundle to which somebody added a file is no less theirs
    bundle = export_model(checkpoint, ExportRecipe(target=QUICK), tmp_path / "bundle").path
    (bundle / "notes.txt").write_text("mine")
    refuse(ExportError, "notes.txt", checkpoint, bundle)
    assert (out / "chapters" / "one.tex").read_text() == "years of work"
    assert (bundle / "notes.txt").read_text() == "mine"


def test_file_in_the_place_of_the_bundle_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("mine")
    refuse(OutputError, "is a file", checkpoint, tmp_path / "bundle")
    assert (tmp_path / "bundle").read_text() == "mine"


class TestMaskAsInput:
    @pytest.mark.parametrize("target", ["torchscript", "onnx", "openvino", "trt"])
    def test_bundle_serves_another_mask(
        self, target: str, checkpoint: Path, tmp_path: Path
    ) -> None:
        bundle = export_model(
            checkpoint, ExportRecipe(target=target, mask_input=True), tmp_path / "b"
        )
        assert bundle.manifest["mask_input"]
        assert GOLDEN_OPERATOR in bundle.manifest["files"]
        checker = TARGETS[target].checker.name
        other = lines(MATRIX, acceleration=2)
        given = np.load(bundle.path / GOLDEN_INPUT)
        reference = load_reconstructor(checkpoint)
        for mask in (None, other):
            output = open_session(bundle.path, backend=checker, mask=mask, threads=1).run(given)
            bound = Reconstructor(reference.model, mask or bundle.mask)
            with torch.inference_mode():
                wanted = bound(torch.from_numpy(given)).numpy()
            np.testing.assert_allclose(output, wanted, atol=1e-5)

    def test_mistakes(self, checkpoint: Path, tmp_path: Path) -> None:
        bundle = export_model(
            checkpoint, ExportRecipe(target=QUICK, mask_input=True), tmp_path / "b"
        ).path
        with pytest.raises(MaskError, match="31"):
            open_session(bundle, mask=lines(31))
        with pytest.raises(MaskError):
            open_session(bundle, mask=points())
        with pytest.raises(BackendError, match="--mask input"):
            open_session(checkpoint, mask=lines())
        fixed = export_model(checkpoint, ExportRecipe(target=QUICK), tmp_path / "fixed").path
        with pytest.raises(BackendError, match="--mask input"):
            open_session(fixed, mask=lines(MATRIX, acceleration=2))
        assert open_session(fixed, mask=lines()).operator is None  # its own is no other
        with pytest.raises(ExportError, match="data consistency is an FFT"):
            export_model(
                checkpoint, ExportRecipe(target=QUICK, dc="fft", mask_input=True), tmp_path / "no"
            )
        weights = write_checkpoint(tmp_path / "sr.safetensors", spec(kind="vdsr"))
        with pytest.raises(ExportError, match="no data consistency"):
            export_model(weights, ExportRecipe(target=QUICK, mask_input=True), tmp_path / "no")
        assert not (tmp_path / "no").exists()

    def test_graph_that_keeps_the_examples_mask_is_caught(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Stubborn(TorchScriptSession):
            def inputs(self, x_u: Any, **_: Any) -> list[Any]:
                own = load_reconstructor(checkpoint).operator.numpy()
                return [x_u, own]

        monkeypatch.setattr("kdmri_edge.runtime.backends.torchscript.TorchScriptSession", Stubborn)
        with pytest.raises(ParityError):
            export_model(checkpoint, ExportRecipe(target=QUICK, mask_input=True), tmp_path / "b")
        assert not (tmp_path / "b").exists()
