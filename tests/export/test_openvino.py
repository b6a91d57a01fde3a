"""OpenVINO graphs, and the precision that they really execute."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import kdmri_edge as ke
from kdmri_edge.cli import main
from kdmri_edge.errors import BackendError, BundleError, ExportError
from kdmri_edge.runtime.backends import openvino as ov
from kdmri_edge.runtime.backends.openvino import OpenVinoSession
from kdmri_edge.runtime.deviation import TOLERANCES, compare
from kdmri_edge.runtime.session import open_session
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from tests.export.networks import lines, write_checkpoint
from tests.export.parity_cases import AS_ONNX, CASES, ParityCases, images, pytorch
from tests.manifests import edit_manifest


class TestOpenVino(ParityCases):
    target = "openvino"
    at_night = AS_ONNX  # it reads the graphs that ONNX Runtime computes

    def layers(self, graph: Path) -> list[str]:
        return re.findall(r'<layer[^>]* type="(\w+)"', graph.read_text())

    def test_graph_and_weights_are_two_files(self, tmp_path: Path) -> None:
        self.write("magnitude", tmp_path)
        assert {file.name for file in tmp_path.iterdir()} == {"model.xml", "model.bin"}

    def test_weights_stay_in_float32(self, tmp_path: Path) -> None:
        _, graph = self.write("magnitude", tmp_path)
        assert not re.search(r'element_type="(f16|bf16)"', graph.read_text())

    def test_projection_needs_no_fourier_layer(self, tmp_path: Path) -> None:
        kinds = self.layers(self.write("magnitude", tmp_path)[1])
        assert kinds.count("MatMul") == CASES["magnitude"][0].cascades
        assert not {"DFT", "IDFT"} & set(kinds)

    def test_plain_export_holds_its_fourier_layers(self, tmp_path: Path) -> None:
        name = "complex, FFT, 2-D mask, odd"
        kinds = self.layers(self.write(name, tmp_path)[1])
        # two axes each
        assert kinds.count("DFT") == kinds.count("IDFT") == 2 * CASES[name][0].cascades

    def test_float32_is_executed_where_it_is_asked_for(self, tmp_path: Path) -> None:
        # OpenVINO would take bf16 by itself on a CPU that has it.
        _, graph = self.write("magnitude", tmp_path)
        architecture = CASES["magnitude"][0]
        # the last convolution is taken apart into two (passes.narrow); one product each
        total = architecture.cascades * (architecture.convs + 2)
        assert self.open(graph).info.precision_executed == f"f32 in {total}/{total} layers"

    def test_bf16_is_read_back_from_what_runs(self, tmp_path: Path) -> None:
        if "bf16" not in OpenVinoSession.precisions_here():
            pytest.skip("this CPU has no bf16")
        reconstructor, graph = self.write("magnitude", tmp_path)
        session = self.open(graph, precision="bf16")
        assert session.info.precision_requested == "bf16"
        counts = dict(re.findall(r"(\w+) in (\d+)/\d+ layers", session.info.precision_executed))
        assert int(counts["bf16"]) >= 1
        x_u = images(1, 1, (32, 24))
        deviation = compare(session.run(x_u), pytorch(reconstructor, x_u))
        assert not deviation.exceeded(TOLERANCES["bf16"])
        # and it is not float32 under another name
        assert deviation.exceeded(TOLERANCES["f32"])

    def test_no_use_is_reported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The converter's reports to its makers, and their identifier in the user's home."""
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        (tmp_path / "home").mkdir()
        self.write("magnitude", tmp_path)
        assert not list((tmp_path / "home").iterdir())
        assert sys.modules["openvino_telemetry"] is None
        from openvino.tools.ovc import telemetry_utils

        assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"

    def test_damaged_graph_is_refused(self, tmp_path: Path) -> None:
        _, graph = self.write("magnitude", tmp_path)
        graph.write_text("<net/>")
        with pytest.raises(BundleError, match=r"model\.xml"):
            OpenVinoSession(graph)


def test_bundle_for_bf16_runs_in_bf16_unless_told_otherwise(tmp_path: Path) -> None:
    if "bf16" not in OpenVinoSession.precisions_here():
        pytest.skip("this CPU has no bf16")
    checkpoint = write_checkpoint(tmp_path / "student.safetensors")
    recipe = ExportRecipe(target="openvino", precision="bf16")
    bundle = export_model(checkpoint, recipe, tmp_path / recipe.bundle_name("student"))
    assert bundle.path.name == "student-openvino-bf16"
    assert bundle.manifest["precision"] == "f32"  # of the graph
    assert bundle.manifest["parity"]["tolerance"]["max_error"] == TOLERANCES["bf16"].max_error
    assert "bf16 in " in open_session(bundle.path, threads=1).info.precision_executed
    plain = open_session(bundle.path, threads=1, precision="f32").info.precision_executed
    assert "bf16" not in plain


class TestCpuWithoutBf16:
    """What runs is said, and nothing runs under another name."""

    @pytest.fixture(autouse=True)
    def without(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ov, "_precisions", lambda core: ("f32",))

    @pytest.fixture
    def bundle(self, tmp_path: Path) -> Path:
        """A bundle that was exported for bf16 elsewhere."""
        checkpoint = write_checkpoint(tmp_path / "student.safetensors")
        path = export_model(checkpoint, ExportRecipe(target="openvino"), tmp_path / "bundle").path
        edit_manifest(path, lambda manifest: manifest.update(run_precision="bf16"))
        return path

    def test_export_is_refused_and_says_what_to_do(self, tmp_path: Path) -> None:
        checkpoint = write_checkpoint(tmp_path / "student.safetensors")
        recipe = ExportRecipe(target="openvino", precision="bf16")
        with pytest.raises(ExportError, match=r"no bf16.*in fp32.*in bf16"):
            export_model(checkpoint, recipe, tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()

    def test_run_is_refused_and_float32_can_be_asked_for(self, bundle: Path) -> None:
        with pytest.raises(BackendError, match=r"no bf16 arithmetic.*in fp32"):
            open_session(bundle, threads=1)
        executed = open_session(bundle, threads=1, precision="f32").info.precision_executed
        assert executed.startswith("f32 in ")
        assert "bf16" not in executed

    def test_verify_names_what_did_not_run(self, bundle: Path) -> None:
        result = CliRunner().invoke(main, ["verify", str(bundle), "--json"])
        assert result.exit_code == 0, result.output
        rows = {row["precision"]: row for row in json.loads(result.stdout)["rows"]}
        assert set(rows) == {"f32", "bf16"}
        assert rows["f32"]["status"] == "passed"
        assert rows["bf16"]["status"] == "absent"
        shown = CliRunner().invoke(main, ["verify", str(bundle)]).stdout
        assert "OpenVINO: not run in bf16. This CPU has no bf16 arithmetic" in shown


def test_other_targets_refuse_bf16() -> None:
    with pytest.raises(ExportError, match="fp32, fp16, int8"):
        ExportRecipe(target="onnx", precision="bf16")


class Circular(nn.Module):
    """One with a padding that OpenVINO's converter does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = x + self.conv(x)
        return made


def test_what_the_converter_does_not_take_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ExportError, match=r"OpenVINO cannot read.*wrap") as caught:
        ke.export(Circular(), target="openvino", for_mask=lines(), out=tmp_path / "no")
    assert "onnx" in caught.value.remedy
    assert "\n" not in caught.value.what
    assert not (tmp_path / "no").exists()
