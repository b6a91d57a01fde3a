"""`kdmri-edge export` and `kdmri-edge doctor` from the command line."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kdmri_edge.cli import main, run
from kdmri_edge.errors import ExportError, RunError
from kdmri_edge.runtime.bundle import open_bundle
from kdmri_edge.runtime.signing import make_key, read_public_key
from kdmri_edge.runtime.targets import TARGETS
from kdmri_export.commands import doctor
from tests.export.networks import UNET, write_run


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def bundles(result: Result) -> list[dict[str, Any]]:
    assert result.exception is None, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_named_run_gives_the_student_in_its_exports(here: Path) -> None:
    run = write_run(here / "runs" / "a", ("teacher", "student"))
    (made,) = bundles(call("export", run.path, "--target", "torchscript", "--json"))
    assert Path(made["bundle"]) == run.exports_dir / "student-torchscript"
    assert open_bundle(Path(made["bundle"])).manifest["role"] == "student"
    assert made["bytes"] > 1000
    assert made["parity"]["passed"] is True


@pytest.mark.parametrize("target", ["torchscript", "trt"])
def test_without_a_run_the_newest_is_taken_and_named(target: str, here: Path) -> None:
    # "a" sorts first but was finished last
    newest, older = (write_run(here / "runs" / name, ("student",)) for name in ("a", "b"))
    for file in older.path.iterdir():
        os.utime(file, (1e9, 1e9))
    result = call("export", "--target", target, "--json")
    (made,) = bundles(result)
    assert Path(made["bundle"]).resolve() == (newest.exports_dir / f"student-{target}").resolve()
    assert str(Path("runs") / "a") in result.stderr
    assert not older.exports_dir.exists()


def test_all_models_and_several_targets(here: Path) -> None:
    run = write_run(here / "run", ("teacher", "plain", "student"))
    targets = ("--target", "torchscript", "--target", "onnx")
    made = bundles(call("export", run.path, *targets, "--model", "all", "--json"))
    names = {Path(item["bundle"]).name for item in made}
    assert names == {f"{r}-{t}" for r in run.roles() for t in ("torchscript", "onnx")}


def test_checkpoint_with_options_and_place(here: Path) -> None:
    run = write_run(here / "run", ("teacher",))
    command = ("export", run.weights("teacher"), "--target", "torchscript", "--dc", "dft")
    (made,) = bundles(call(*command, "--batch", "dynamic", "--json"))
    assert Path(made["bundle"]).name == "teacher-torchscript-dft-dynamic"
    (made,) = bundles(call(*command, "--out", here / "elsewhere", "--json"))
    assert Path(made["bundle"]) == here / "elsewhere"


def test_an_export_is_signed_and_measured(here: Path) -> None:
    pytest.importorskip("cryptography")
    private, public = make_key(here / "vendor")
    run = write_run(here / "run", ("student",))
    command = ("export", run.path, "--target", "torchscript", "--sign", private)
    result = call(*command, "--valid-days", 9, "--out", "signed")
    assert result.exit_code == 0, result.stderr
    bundle = open_bundle(here / "signed", keys=[read_public_key(public)])
    assert bundle.signature is not None
    assert bundle.signature.valid_until_utc is not None
    assert f"signed by {bundle.signature.key}, until" in result.stdout
    measured = bundle.manifest["measured"]
    assert (measured["backend"], measured["precision"]) == ("torch", "f32")
    assert 0 < measured["p50_ms"] <= measured["p90_ms"]
    assert measured["peak_bytes"] > 2**20
    assert "MiB (" in result.stdout
    for wrong, word in ((public, "public key"), (here / "none.key", "does not exist")):
        assert word in str(call(*command[:-1], wrong, "--out", "wrong").exception)
    assert not (here / "wrong").exists()
    assert call(*command[:-2], "--valid-days", 9).exit_code == 2


def test_figures_are_shown(here: Path) -> None:
    run = write_run(here / "run", ("student",))
    result = call("export", run.path, "--target", "torchscript")
    assert result.exception is None
    # nothing is cut short, however narrow the terminal
    assert "…" not in result.stdout
    assert "max error" in result.stdout
    assert "limit" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "onnx", "--dc", "wavelet"), "projection"),
        (("--target", "onnx", "--model", "nurse"), "student"),
        (("--target", "onnx", "--batch", "0"), "dynamic"),
        ((), "--target"),
    ],
)
def test_usage_errors_exit_with_two(arguments: Sequence[str], words: str, here: Path) -> None:
    result = call("export", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", "--target", "openvin"), ("'openvin'", "'openvino'", "torchscript")),
        (("export", "--target", "onnx", "--precision", "fp8"), ("'fp8'", "fp16", "int8")),
        (("export", "--target", "onnx", "--precision", "bf16"), ("'bf16'", "fp32, fp16, int8")),
        (("check", "model.onnx", "--target", "torchscript"), ("'torchscript'", "openvino")),
    ],
)
def test_unknown_targets_and_precisions_are_one_sentence(
    arguments: Sequence[str], words: Sequence[str], here: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write_run(here / "runs" / "a", ("student",))
    monkeypatch.setattr(sys, "argv", ["kdmri-edge", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 1
    shown = capsys.readouterr()
    said = [line for line in shown.err.splitlines() if "Taking the newest run" not in line]
    assert len(said) == 1
    assert said[0].startswith("Error: ")
    for word in words:
        assert word in said[0]
    assert shown.out == ""
    assert not (here / "runs" / "a" / "exports").exists()


def test_one_place_for_two_bundles_is_a_usage_error(here: Path) -> None:
    run = write_run(here / "run", ("student",))
    two = ("--target", "torchscript", "--target", "onnx")
    assert call("export", run.path, *two, "--out", here / "x").exit_code == 2
    assert not (here / "x").exists()


@pytest.mark.parametrize("model", ["student", "all"])
def test_run_without_networks_is_an_error(model: str, here: Path) -> None:
    run = write_run(here / "run", ())
    result = call("export", run.path, "--target", "torchscript", "--model", model)
    assert isinstance(result.exception, RunError)
    assert "--resume" in str(result.exception)


@pytest.mark.parametrize("model", ["student", "teacher", "all"])
@pytest.mark.parametrize(
    "source",
    ["runs/a/student.safetensors", "dccnn-edge@brain-4x", f"{UNET}:UNet?width=4"],
    ids=["checkpoint of a run", "shipped", "code"],
)
def test_a_model_is_chosen_of_a_run_alone(source: str, model: str, here: Path) -> None:
    """Without a word the network itself would be exported, whatever its role."""
    write_run(here / "runs" / "a", ("student", "teacher"))
    result = call("export", source, "--target", "torchscript", "--model", model)
    assert isinstance(result.exception, ExportError)
    assert f"--model {model} chooses a network of a run" in str(result.exception)
    assert not list(here.rglob("exports"))


def test_a_run_whose_model_is_named_gives_that_one(here: Path) -> None:
    run = write_run(here / "run", ("student", "teacher"))
    (made,) = bundles(
        call("export", run.path, "--target", "torchscript", "--model", "teacher", "--json")
    )
    assert open_bundle(Path(made["bundle"])).manifest["role"] == "teacher"


def test_no_run_at_all_is_an_error(here: Path) -> None:
    result = call("export", "--target", "torchscript")
    assert isinstance(result.exception, RunError)
    assert "kdmri-edge distill" in str(result.exception)
    assert isinstance(call("export", "nowhere", "--target", "onnx").exception, RunError)


def test_options_of_engines_belong_to_trt(here: Path) -> None:
    run = write_run(here / "run", ("student",))
    for option in (("--builder", "rtx"), ("--require-engine",), ("--compute-capability", "sm86")):
        result = call("export", run.path, "--target", "onnx", *option)
        assert result.exit_code == 2
        assert "--target trt" in result.stderr
    assert not run.exports_dir.exists()


def test_trt_without_an_engine_says_so_and_can_be_told_to_fail(here: Path) -> None:
    run = write_run(here / "run", ("student",))
    options = ("export", run.path, "--target", "trt", "--builder", "none")
    shown = call(*options, "--precision", "fp16")
    assert shown.exit_code == 0, shown.output
    assert "engine: not built (none was asked for)" in shown.stdout
    assert (run.exports_dir / "student-trt-fp16" / "build_engine.py").is_file()
    failed = call(*options, "--require-engine")
    assert isinstance(failed.exception, ExportError)
    assert not (run.exports_dir / "student-trt").exists()


def test_doctor_names_builders() -> None:
    found = json.loads(call("doctor", "--json").stdout)["builders"]
    assert set(found) == {"tensorrt", "rtx", "torch-tensorrt"}
    for reason in found.values():
        assert reason is None or "tensorrt" in reason


def test_doctor_has_a_row_per_target() -> None:
    result = call("doctor", "--json")
    assert result.exception is None
    rows = {row["target"]: row for row in json.loads(result.stdout)["targets"]}
    assert list(rows) == list(TARGETS)
    for name, row in rows.items():
        assert row["can_export"]
        if name == "trt" and not row["can_run"]:  # most test machines have no TensorRT
            assert row["run_remedy"] == 'pip install "kdmri-edge[trt]"'
            continue
        assert row["can_run"]
        assert row["version"][0].isdigit()
        assert "f32" in row["precisions"]
        assert set(row["precisions"]) <= set(TARGETS[name].backend.precisions)
    assert "OpenVINO" in call("doctor").stdout


def test_doctor_names_the_command_that_adds_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec

    def without_openvino(name: str, package: str | None = None) -> Any:
        return None if name.partition(".")[0] == "openvino" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_openvino)
    rows = {row["target"]: row for row in json.loads(call("doctor", "--json").stdout)["targets"]}
    assert rows["openvino"]["version"] is None
    assert not rows["openvino"]["can_run"]
    assert rows["openvino"]["precisions"] == []
    assert rows["openvino"]["remedy"] == 'pip install "kdmri-edge[openvino]"'
    assert rows["onnx"]["remedy"] is None
    assert 'openvino: pip install "kdmri-edge[openvino]"' in call("doctor").stdout


def test_doctor_names_what_brings_runtimes_and_builders_of_engines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    absent = {"tensorrt", "tensorrt_rtx", "torch_tensorrt"}

    def without(name: str, package: str | None = None) -> Any:
        return None if name.partition(".")[0] in absent else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    shown = call("doctor").stdout.splitlines()
    assert 'trt, to run it: pip install "kdmri-edge[trt]"' in shown
    for builder, command in {
        "tensorrt": 'pip install "kdmri-edge[trt]"',
        "rtx": 'pip install "kdmri-edge[trt-rtx]"',
        "torch-tensorrt": "pip install torch-tensorrt",
    }.items():
        (line,) = (line for line in shown if f"--builder {builder}:" in line)
        assert "is not installed" in line
        assert line.endswith(command)


def test_doctor_counts_what_a_runtime_needs_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without_cuda_python(name: str, package: str | None = None) -> Any:
        if name.partition(".")[0] == "cuda":
            return None
        return object() if name == "tensorrt" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_cuda_python)
    row = next(row for row in doctor.examine()["targets"] if row["target"] == "trt")
    assert not row["can_run"]
    assert row["run_remedy"] == 'pip install "kdmri-edge[trt]"'


def test_doctor_fits_a_screen_and_lists_what_packages_add(tmp_path: Path) -> None:
    """A package that is broken is named with the reason, and hides nothing else."""
    (tmp_path / "acme_edge.py").write_text(
        "from kdmri_edge.metrics import Metric\n"
        "METRIC = Metric(name='acme', measure=max, higher_is_better=True)\n"
    )
    folder = tmp_path / "acme_edge-1.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-edge\nVersion: 1.2\n")
    (folder / "entry_points.txt").write_text(
        "[kdmri_edge.metrics]\nacme = acme_edge:METRIC\n"
        "[kdmri_edge.targets]\nbroken = acme_edge:NONE\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "kdmri_edge", "doctor"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout.splitlines()
    assert len(shown) <= 24
    assert all(len(line) <= 100 for line in shown if not line.startswith("plug-in"))
    (good, broken) = (line for line in shown if line.startswith("plug-in"))
    if good.startswith("plug-in: export target"):
        good, broken = broken, good
    assert good.endswith("acme of acme-edge 1.2")
    assert broken.startswith("plug-in: export target broken of acme-edge 1.2: ")
    assert "cannot be loaded" in broken
    assert {"onnx", "openvino", "torchscript", "trt"} <= {
        line.split()[0] for line in shown if line.split()
    }


def test_models_lists_architectures_and_trained_networks() -> None:
    result = call("models", "--json")
    found = json.loads(result.stdout)
    assert found["presets"]["dccnn-d5c5"]["parameters"] == 141_765
    entry = found["shipped"]["dccnn-d3c5@brain-4x"]
    assert entry["figures"]["mean"]["psnr"] > 38
    reads = {name: network["reads"] for name, network in found["shipped"].items()}
    assert reads["dccnn-d3c5@brain-4x"] == "magnitude"
    assert reads["dccnn-d3c5-complex@measured-4x"] == "complex"
    assert reads["dccnn-d3c5-sense@measured-4x"] == "sense"
    assert entry["anatomy"] == "brain"
    shown = call("models").stdout
    (line,) = [line for line in shown.splitlines() if "dccnn-d3c5@brain-4x " in line]
    assert line.split()[1:3] == ["brain", "magnitude"]
    assert f"{entry['figures']['mean']['psnr']:.2f}" in shown


def test_models_says_which_scan_each_network_is_for() -> None:
    found = json.loads(call("models", "--json").stdout)
    assert (found["presets"]["vdsr-7"]["images"], found["presets"]["vdsr-7"]["coils"]) == (
        "magnitude",
        "one",
    )
    told = {
        name: (entry["anatomy"], entry["images"], entry["coils"])
        for name, entry in found["shipped"].items()
    }
    assert told["dccnn-d3c5@brain-4x"] == ("brain", "magnitude", "one")
    assert told["dccnn-d3c5-complex@measured-4x"] == ("brain", "complex", "one")
    assert told["dccnn-d3c5-sense@measured-4x"] == ("brain", "complex", "several")
    lines = {line.split()[0]: line.split() for line in call("models").stdout.splitlines() if line}
    assert lines["dccnn-d3c5-sense@measured-4x"][1:5] == ["brain", "complex", "several", "4x"]
    assert lines["dccnn-d3c5@brain-any-mask"][4:6] == ["any", "lines"]


@pytest.mark.parametrize(("typed", "named"), [("f16", "-fp16"), ("fp16", "-fp16"), ("f32", "")])
def test_precisions_are_taken_in_both_spellings_and_shown_in_one(
    typed: str, named: str, here: Path
) -> None:
    run = write_run(here / "runs" / "a", ("student",))
    result = call("export", run.path, "--target", "torchscript", "--precision", typed)
    assert result.exit_code == 0, result.output
    bundle = run.exports_dir / f"student-torchscript{named}"
    assert bundle.is_dir()
    assert ("torchscript, fp16" if named else "torchscript, fp32") in result.stdout


@pytest.mark.parametrize("target", ["torchscript", "trt"])
def test_paths_can_be_copied_and_the_next_commands_typed(here: Path, target: str) -> None:
    """Off a terminal nothing is broken into columns, however long the path is."""
    run = write_run(here / "a folder" / ("long" * 40), ("student",))
    shown = call("export", run.path, "--target", target)
    bundle = run.exports_dir / f"student-{target}"
    assert str(bundle) in shown.stdout.splitlines()
    following = [shlex.split(line, comments=True) for line in shown.stderr.splitlines()]
    assert ["kdmri-edge", "verify", str(bundle)] in following
    assert ["kdmri-edge", "run", str(bundle), "INPUT", "-o", "OUTPUT"] in following
    scripts = [words[1] for words in following if words[:1] == ["python3"]]
    assert bool(scripts) == (target == "trt")
    assert all(Path(script).is_file() for script in scripts)
    assert call("verify", bundle).exit_code == 0


def test_layers_in_float_are_named_and_what_became_of_the_others(here: Path) -> None:
    run = write_run(here / "run", ("student",))
    options = ("export", run.path, "--target", "onnx", "--precision", "int8")
    shown = call(*options, "--float", "cascades.0.*")
    assert shown.exit_code == 0, shown.output
    assert str(run.exports_dir / "student-onnx-int8-float") in shown.stdout.splitlines()
    assert "int8: 2 of 4 Conv2d; ONNX Runtime computes int8 in 2/" in shown.stdout
    assert "in fp32: cascades.0.convs.0, cascades.0.convs.1 (asked for in float)" in shown.stdout
    refused = call(*options, "--float", "cascade.0.conv.1")
    assert isinstance(refused.exception, ExportError)
    assert "did you mean 'cascades.0.convs.1'" in str(refused.exception)
