"""Commands of README and docs: the quickstart runs as written, others name options that exist."""

from __future__ import annotations

import json
import os
import re
import shlex
from functools import partial
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from kdmri_bench import benchmark, quickstart
from kdmri_bench.planning import variants
from kdmri_bench.planning.settings import USUAL, BenchSettings, Precision
from kdmri_edge.cli import COMMANDS, main
from kdmri_edge.runtime.targets import TARGETS
from maintainer.readme import pages

# A C++ compiler takes too long for what it makes to be measured unasked.
BENCHED = tuple(name for name, target in TARGETS.items() if not target.compiles)
ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def lines(page: str) -> list[str]:
    """Return what a reader of a page may copy into a shell."""
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```$", page, re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def ours(page: str) -> list[str]:
    """Return the commands of this project on a page."""
    parts = [part.strip() for line in lines(page) for part in line.split("&&")]
    return [part for part in parts if part.startswith("kdmri-edge ")]


# Steps and phantoms of a quickstart that only shows that it works.
SMALL = ("teacher_steps=3", "attention_steps=1", "imitation_steps=2", "phantom_volumes=3",
         "phantom_slices=2")  # fmt: skip


def test_the_readme_has_its_two_commands() -> None:
    setups = [line for line in lines(README) if line.startswith("python -m pip install")]
    assert setups == [
        'python -m pip install -e ".[all]" && kdmri-edge quickstart',
        'python -m pip install -e ".[dev]" && python -m pytest -n auto --dist loadfile',
    ]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert '-e ".[dev]"' in (ROOT / ".ci" / "environment").read_text(encoding="utf-8")
    assert re.search(r"^python -m pytest -n auto --dist loadfile$", ci, re.M)


def test_commands_name_options_that_exist() -> None:
    texts = [page.read_text(encoding="utf-8") for page in pages(ROOT)]
    commands = sorted({command for text in texts for command in ours(text)})
    assert len(commands) > 25
    for line in commands:
        name, *arguments = shlex.split(line)[1:]
        assert name in COMMANDS, line
        command = main.get_command(click.Context(main), name)
        assert command is not None
        with click.Context(command, info_name=line) as context:
            command.parse_args(context, arguments)


@pytest.mark.parametrize(
    ("targets", "precisions", "kinds"),
    [
        (("onnx",), (Precision.F32,), ("",)),
        pytest.param(BENCHED, USUAL, ("", "-int8"), marks=pytest.mark.nightly),
    ],
    ids=["one target in f32", "as shipped"],
)
def test_quickstart_ends_with_every_network_on_every_runtime(
    targets: tuple[str, ...],
    precisions: tuple[Precision, ...],
    kinds: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "kdmri-edge quickstart" in ours(README)
    monkeypatch.setattr(quickstart, "MATRIX", 48)  # as shipped it takes minutes
    monkeypatch.setattr(quickstart, "load_average", lambda: 0.25)  # before its own training
    monkeypatch.setattr(benchmark, "load_average", lambda: 99.0)
    monkeypatch.setattr(variants, "TARGETS", {name: TARGETS[name] for name in targets})
    measure = partial(BenchSettings, precisions=precisions)
    monkeypatch.setattr("kdmri_bench.planning.settings.BenchSettings", measure)
    monkeypatch.chdir(tmp_path)
    sets = [word for value in SMALL for word in ("--set", value)]
    done = CliRunner().invoke(main, ["quickstart", "--json", *sets])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["load_average"] == 0.25
    assert "Page to open in a browser: quickstart/bench/report.html" in done.stderr
    measured = {(r["role"], r["runtime"]) for r in report["rows"] if r["status"] == "measured"}
    runtimes = {"PyTorch"} | {TARGETS[name].backend.title for name in targets if name != "trt"}
    absent = {r["runtime"] for r in report["rows"] if r["status"] == "skipped"}
    assert ("TensorRT" in absent | {runtime for _, runtime in measured}) is ("trt" in targets)
    assert {
        (role, runtime) for role in ("teacher", "plain", "student") for runtime in runtimes
    } <= (measured)
    run = tmp_path / "quickstart"
    assert (run / "bench" / "panel.png").stat().st_size > 10_000
    assert {path.name for path in (run / "exports").iterdir()} == {
        f"{role}-{made}{kind}"
        for role in ("teacher", "plain", "student")
        for made in targets
        if made != "trt"
        for kind in kinds
    }
    assert "kdmri-edge distill --data DIR" in done.stderr
    assert "Traceback" not in done.stderr
    leaked = [p for p in run.rglob("*.json") if os.fspath(tmp_path) in p.read_text()]
    assert not leaked, "paths of a machine in what may be published"
