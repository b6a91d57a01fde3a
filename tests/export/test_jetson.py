"""A bundle's jetson.py: what it checks, builds within, and prints; and the row in a report."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kdmri_bench.commands.bench import bench
from kdmri_bench.reporting.report import read_report, write_report
from kdmri_bench.results.importing import join
from kdmri_bench.results.schema import Report
from kdmri_edge.errors import BenchError
from kdmri_edge.runtime.backends import run_engine
from kdmri_edge.runtime.bundle import MANIFEST
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.tensorrt import build_engine, jetson
from tests.bench.reports import report, row
from tests.core.test_run_engine import Device, tensorrt
from tests.export.networks import write_checkpoint
from tests.export.test_build_engine import tensorrt as builder

Main = Callable[..., int]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jetson")
    weights = write_checkpoint(folder / "student.safetensors")
    return export_model(weights, ExportRecipe(target="trt"), folder / "bundle").path


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Jetson Orin Nano with JetPack 6.2, as its files say."""
    for name, text in {
        "MODEL": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "RELEASE": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic",
        "MEMINFO": "MemTotal: 7800000 kB\nMemAvailable: 5242880 kB\n",
    }.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(jetson, name, tmp_path / name)
    (tmp_path / "nvpmodel").write_text("#!/bin/sh\necho 'NV Power Mode: 15W'; echo 0\n")
    (tmp_path / "nvpmodel").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorrt", builder([]))
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    return tmp_path


@pytest.fixture
def main(bundle: Path, device: Path, monkeypatch: pytest.MonkeyPatch) -> Main:
    """Run the script, whose two processes are played in this one."""

    def run(script: Path, *arguments: str) -> tuple[str, int]:
        out, said = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            if script.name == "build_engine.py":
                monkeypatch.setitem(sys.modules, "tensorrt", builder([]))
                code = build_engine.main(list(arguments))
            else:
                monkeypatch.setitem(sys.modules, "tensorrt", tensorrt(bundle / "model.onnx", 1.0))
                monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", Device().module())
                code = run_engine.main(list(arguments))
        assert code == 0, said.getvalue()
        return out.getvalue(), 300 << 20

    monkeypatch.setattr(jetson, "run", run)
    return lambda *more: jetson.main(["--bundle", str(bundle), "--samples", "3", *more])


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_it_builds_runs_and_prints_the_row(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0
    found = printed(capsys)
    assert found["measured_on"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found["difference"]["max_range_normalised"] < 1e-5
    assert found["memory"]["peak"] == 300 << 20
    about = found["jetson"]
    assert about["jetson_linux"] == "R36.4.3"
    assert about["power_mode"] == "15W"
    assert about["workspace_mib"] == 1024  # a quarter of 5 GiB would be more than kernels need
    assert about["engine"]["batches"] == [1, 1, 1]


def test_the_check_alone_builds_nothing(
    main: Main, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetson, "measure", None)
    assert main("--check") == 0
    found = printed(capsys)
    assert found["available_mib"] == 5120
    assert found["tensorrt"] == "10.3.0"


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("RELEASE", "", "no Jetson.*build_engine.py"),
        ("RELEASE", "# R35 (release), REVISION: 4.1, GCID: 1", "R35.4.1 is older than JetPack 6"),
        ("MEMINFO", "MemAvailable: 500000 kB\n", "Only 488 MiB of memory are free"),
    ],
)
def test_what_a_device_lacks_is_one_sentence(
    file: str, text: str, says: str, main: Main, device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    (device / file).write_text(text)
    assert main() == 1
    shown = capsys.readouterr()
    assert re.search(says, shown.err)
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""


def test_packages_that_are_missing_are_named_with_what_brings_them(
    main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("tensorrt", "cuda"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main("--check") == 1
    said = capsys.readouterr().err
    assert "python3-libnvinfer" in said
    assert "pip install cuda-python" in said


@pytest.mark.parametrize(
    ("free", "expected"), [(1024, 256), (3000, 750), (64_000, 1024), (1023, None)]
)
def test_the_workspace_follows_the_free_memory(free: int, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(jetson.Refused, match="swap"):
            jetson.workspace(free)
    else:
        assert jetson.workspace(free) == expected


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9.*exhausted"),
        ("import sys; print('Error: no such graph', file=sys.stderr); sys.exit(1)",
         "part.py: no such graph"),
        ("import sys; sys.exit(3)", "exit status 3"),
    ],
)  # fmt: skip
def test_a_part_that_fails_says_how(body: str, says: str, device: Path) -> None:
    script = device / "part.py"
    script.write_text(body)
    with pytest.raises(jetson.Refused, match=says):
        jetson.run(script)


def test_a_part_that_works_gives_what_it_prints(device: Path) -> None:
    script = device / "part.py"
    script.write_text("import sys; print(sys.argv[1:])")
    shown, used = jetson.run(script, "a", "b")
    assert shown == "['a', 'b']\n"
    assert used == 0


@pytest.fixture
def sent(
    main: Main, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[Path, Report]:
    """A row of a Jetson, and a report of networks for the same mask."""
    assert main() == 0
    (tmp_path / "row.json").write_text(capsys.readouterr().out)
    manifest = json.loads((bundle / MANIFEST).read_text())
    whole = report(row("teacher", "PyTorch", 31.0, 9.0), row("student", "OpenVINO", 30.5, 4.0))
    networks = tuple(
        type(one)(**{**{n: getattr(one, n) for n in one.__slots__},
                     "parameters": manifest["parameters"] + (one.role == "teacher")})
        for one in whole.networks if one.role != "plain"
    )  # fmt: skip
    from dataclasses import replace

    from kdmri_edge.physics.masks import Mask

    mask = Mask.from_dict(manifest["mask"])
    return tmp_path / "row.json", replace(
        whole, networks=networks, mask={**mask.to_dict(), "sha256": mask.sha256}, matrix=32
    )


def test_the_row_joins_a_report_and_is_not_recommended(
    sent: tuple[Path, Report], tmp_path: Path
) -> None:
    path, before = sent
    files = write_report(before, tmp_path / "report")
    from click.testing import CliRunner

    for _ in range(2):  # the second time it replaces itself
        done = CliRunner().invoke(bench, [str(tmp_path / "report"), "--import", str(path)])
        assert done.exit_code == 0, done.exception
    after = read_report(files["json"])
    assert len(after.rows) == len(before.rows) + 1
    new = after.rows[-1]
    assert new.key == "student/tensorrt-f32@nvidia-jetson-orin-nano-developer-kit"
    assert new.measured_on == "NVIDIA Jetson Orin Nano Developer Kit"
    assert new.speedup is None
    assert new.latency is not None
    assert new.latency["samples"] == 3
    assert after.recommended == before.recommended
    for kind in ("html", "md", "csv"):
        assert "on NVIDIA Jetson Orin Nano" in files[kind].read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"matrix": 64}, "another mask or matrix"),
        ({"parameters": 1}, "of 1 parameters, of which the report has 0"),
        ({"role": "plain"}, "report has 0"),
        ({"parameters": "many"}, "damaged"),
        (None, "does not say which network"),
    ],
)
def test_rows_of_other_networks_are_refused(
    change: dict[str, Any] | None, says: str, sent: tuple[Path, Report]
) -> None:
    path, before = sent
    value = json.loads(path.read_text())
    value["about"] = None if change is None else {**value["about"], **change}
    path.write_text(json.dumps(value))
    with pytest.raises(BenchError, match=says):
        join(before, [path])


@pytest.mark.parametrize(
    "program", [build_engine, run_engine, jetson], ids=["build", "run", "jetson"]
)
def test_names_reach_the_terminal_spelt_out(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder's name could otherwise take back the line that says what is wrong."""
    if program is jetson:
        monkeypatch.setattr(jetson, "check", dict)
    assert program.main(["--bundle", "no\x1b[2K\x9b1A\rbundle"]) == 1
    assert "no\\u001b[2K\\u009b1A\\u000dbundle" in capsys.readouterr().err
