"""What `bench` and `quickstart` print: the page first, then the results, then what to type."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import click
import pytest

from kdmri_bench.benchmark import Benchmark
from kdmri_bench.commands.outcome import export_command, next_steps, print_outcome
from kdmri_edge.cli import main
from tests.bench.reports import report, row

FILES = {kind: Path(f"out/report.{kind}") for kind in ("html", "md", "csv", "json")}
TEACHER = row("teacher", "PyTorch", 40.0, 100.0)
STUDENT = row("student", "OpenVINO", 39.95, 8.0, precision="int8")
DONE = Benchmark(report=report(TEACHER, STUDENT), files=FILES)


def parses(line: str) -> None:
    """Check that a line is a command with options that exist."""
    name, *arguments = shlex.split(line, comments=True)[1:]
    command = main.get_command(click.Context(main), name)
    assert command is not None
    with click.Context(command, info_name=line) as context:
        command.parse_args(context, arguments)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_page_is_named_first(capfd: pytest.CaptureFixture[str], as_json: bool) -> None:
    print_outcome(DONE, as_json=as_json)
    said = capfd.readouterr()
    assert said.err.splitlines()[0] == f"Page to open in a browser: {FILES['html']}"
    assert [line.split(":")[0] for line in said.err.splitlines()[1:4]] == ["md", "csv", "json"]
    if as_json:
        assert json.loads(said.out) == DONE.report.to_dict()
    else:
        assert "HFN: High-frequency norm" in said.out
        assert "edges and fine detail" in said.out


def test_what_follows_can_be_typed(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    steps = next_steps(DONE, [run], again_on=Path("my data"))
    for step in steps:
        parses(step)
    words = [shlex.split(step, comments=True)[1:] for step in steps]
    assert words[0][:2] == ["select", "out/report.json"]
    assert words[1] == ["export", str(run), "--target", "openvino", "--precision", "int8"]
    assert words[2] == ["bench", str(run), "--data", "my data", "--full"]
    assert len(next_steps(DONE, [run])) == 2


def test_no_loss_is_asked_for_where_no_teacher_was_measured() -> None:
    alone = report(STUDENT)
    (step, *_) = next_steps(Benchmark(report=alone, files=FILES), [])
    parses(step)
    assert "--max-latency 20ms --max-memory 300MB  #" in step
    (step, *_) = next_steps(DONE, [])
    assert "--max-loss 0.1dB" in step


def test_the_best_trade_off_is_exported_where_nothing_is_recommended(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    slow = report(replace(STUDENT, role="plain", network="plain", latency=TEACHER.latency,
                          end_to_end=TEACHER.end_to_end))  # fmt: skip
    assert Benchmark(report=slow).recommended is None
    steps = next_steps(Benchmark(report=slow, files=FILES), [tmp_path])
    assert f"export {tmp_path} --model plain --target openvino --precision int8" in steps[1]


def test_only_what_can_be_named_is_exported(tmp_path: Path) -> None:
    name, teacher = "dccnn-d3c5@brain-4x", "dccnn-d5c5@brain-4x"
    whole = replace(STUDENT, precision="f32")
    both = [Path(teacher), Path(name)]
    assert export_command(whole, both) == f"kdmri-edge export {name} --target openvino"
    assert export_command(replace(whole, role="teacher"), both) == (
        f"kdmri-edge export {teacher} --target openvino"
    )
    assert export_command(TEACHER, both) is None  # PyTorch itself
    assert export_command(replace(whole, runtime="Others"), both) is None
    # which of them is not known
    assert export_command(whole, [Path(name), Path("dccnn-d3c5@brain-5x")]) is None
    assert export_command(whole, [Path(name), tmp_path / "student.safetensors"]) is None
