"""Files and command lines of version 0.1 keep working.

The specimens under tests/data/v0_1 are as that version wrote them, see their README. They are read
through the command line alone, which is what users have; no module's name matters here.
"""

from __future__ import annotations

import json
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from kdmri_edge.cli import main

OLD = Path(__file__).resolve().parents[1] / "data" / "v0_1"
INDEX: dict[str, dict[str, Any]] = json.loads((OLD / "images" / "index.json").read_text())
OPTIONS: dict[str, dict[str, Any]] = json.loads((OLD / "help_options.json").read_text())
LINES = [
    line
    for line in (OLD / "command_lines.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
BUNDLES = sorted(path.name for path in (OLD / "bundles").iterdir())
CHECKPOINTS = sorted(path.name for path in (OLD / "checkpoints").iterdir())
RECIPES = sorted(path.stem for path in (OLD / "recipes").glob("*.toml"))
USER: dict[str, Any] = tomllib.loads((OLD / "recipes" / "user.toml").read_text())

# Largest difference from the old image over its largest value. float16 and integers round in
# whatever kernels the CPU has. Coil sensitivities are eigenvectors, which other libraries of
# linear algebra compute a little differently.
TOLERANCES = {"f32": 1e-5, "sense": 1e-4, "f16": 5e-3, "int8": 3e-2}

# Keys that a run may change when it goes on; all others decide its weights.
FREE = {"validate_every", "checkpoint_every", "quantise", "quantise_steps", "quantise_rate"}
OTHER_WORDS = {
    "transfer": "attention",
    "schedule": "cosine",
    "loss": "mse",
    "imitation": "final",
    "masks": "lines",
    "precision": "bf16",
}

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the specimens were made; a distillation sets it for its process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the old volumes and recipes, where a run may be gone on with."""
    for name in ("data", "recipes"):
        shutil.copytree(OLD / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def old_run(name: str, workplace: Path) -> Path:
    return Path(shutil.copytree(OLD / name, workplace / name))


def precision_of(network: str) -> str:
    """Return which tolerance applies to a network."""
    manifest = OLD / network / "manifest.json"
    written = json.loads(manifest.read_text())["precision"] if manifest.is_file() else "f32"
    return "sense" if "sense" in network and written == "f32" else str(written)


@pytest.fixture(autouse=True, scope="module")
def _help_options_anew() -> None:
    """Click keeps a command's help option from its first context, in which -h may be unknown.

    Another test of the same process may have run a command without its group.
    """
    waiting: list[click.Command] = [main]
    while waiting:
        command = waiting.pop()
        command._help_option = None
        if isinstance(command, click.Group):
            with click.Context(command) as context:
                found = (command.get_command(context, n) for n in command.list_commands(context))
                waiting += [one for one in found if one is not None]


# Networks


@pytest.mark.parametrize("name", INDEX)
def test_a_network_gives_the_old_image(cli: Cli, name: str, tmp_path: Path) -> None:
    entry = INDEX[name]
    network, out = entry.get("network", name), tmp_path / "image.npy"
    options = [
        str(OLD / word) if word.startswith("masks.json") else word
        for word in entry.get("options", ())
    ]
    if "/trt-" in network:  # its engine is for another machine; this runs the graph
        options += ["--backend", "onnxruntime"]
    given = OLD / "inputs" / entry["input"]
    # written as magnitudes unless asked otherwise, which is new
    options += ["--complex"] if "--magnitude" not in options else []
    if network.startswith("checkpoints/"):  # in PyTorch, as then: by default it is exported first
        options += ["--no-cache"]
    done = cli("run", OLD / network, given, "-o", out, "--threads", 1, *options)
    assert done.code == 0, done.err
    image, wanted = np.load(out), np.load(OLD / "images" / entry["image"])
    assert image.dtype == wanted.dtype
    assert image.shape == wanted.shape
    limit = TOLERANCES[precision_of(network)] * np.abs(wanted).max()
    assert np.abs(image - wanted).max() <= limit


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_passes_its_own_check(cli: Cli, name: str) -> None:
    done = cli("verify", OLD / "bundles" / name, "--json")
    assert done.code == 0, done.out + done.err
    found = json.loads(done.out)
    assert found["passed"]
    assert any(row["status"] == "passed" for row in found["rows"])


@pytest.mark.parametrize("name", ["onnx-f32", "onnx-int8", "onnx-keep-op", "trt-f16"])
def test_a_graph_is_checked_against_its_target(cli: Cli, name: str) -> None:
    target = name.partition("-")[0]
    done = cli("check", OLD / "bundles" / name, "--target", target, "--json")
    assert done.code == 0, done.out + done.err
    assert json.loads(done.out)["operators"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_exported(cli: Cli, name: str, tmp_path: Path) -> None:
    out, image = tmp_path / "bundle", tmp_path / "image.npy"
    place = f"checkpoints/{name}"
    done = cli("export", OLD / place, "--target", "onnx", "--out", out)
    assert done.code == 0, done.err
    done = cli("run", out, OLD / "inputs" / INDEX[place]["input"], "-o", image, "--complex")
    assert done.code == 0, done.err
    wanted = np.load(OLD / "images" / INDEX[place]["image"])
    # The parity gate's limit is wider than this.
    assert np.abs(np.load(image) - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_of_a_run_the_copy_tuned_for_int8_is_exported(cli: Cli, workplace: Path) -> None:
    run = old_run("run-finished", workplace)
    done = cli("export", run, "--target", "onnx", "--precision", "int8", "--json")
    assert done.code == 0, done.err
    assert "student-int8.safetensors" in done.err
    (made,) = json.loads(done.out)
    entry = INDEX["bundles/onnx-int8"]
    out = workplace / "image.npy"
    given = OLD / "inputs" / entry["input"]
    assert cli("run", made["bundle"], given, "-o", out, "--threads", 1).code == 0
    wanted = np.load(OLD / "images" / entry["image"])
    assert np.abs(np.load(out) - wanted).max() <= TOLERANCES["int8"] * np.abs(wanted).max()


# Runs


def resume(cli: Cli, run: Path, *options: object) -> Any:
    return cli("distill", "--resume", "--out", run.name, "--threads", 1, "--accelerator", "cpu",
               *options)  # fmt: skip


def logged(run: Path) -> list[str]:
    """Return which steps of which stages a run has noted."""
    lines = (run / "log.csv").read_text().splitlines()
    return [",".join(line.split(",")[:2]) for line in lines]


def test_an_interrupted_run_goes_on_to_the_same_weights(cli: Cli, workplace: Path) -> None:
    run = old_run("run-interrupted", workplace)
    done = resume(cli, run, "--json")
    assert done.code == 0, done.err
    assert {"teacher", "plain", "student"} <= json.loads(done.out).keys()
    finished = OLD / "run-finished"
    for file in sorted(finished.glob("*.safetensors")):
        made, wanted = load_file(run / file.name), load_file(file)
        assert made.keys() == wanted.keys()
        if file.stem == "student-int8":  # copies are tuned in another way since
            continue
        for key, value in wanted.items():
            # To the last bit on the machine that wrote them; kernels of others round differently.
            np.testing.assert_allclose(made[key], value, rtol=1e-3, atol=1e-4, err_msg=key)
    # the old lines stay, and the new ones follow them
    assert logged(run) == logged(finished)
    old = (OLD / "run-interrupted" / "log.csv").read_text()
    assert (run / "log.csv").read_text().startswith(old)


def test_a_finished_run_is_left_as_it_is(cli: Cli, workplace: Path) -> None:
    run = old_run("run-finished", workplace)
    done = resume(cli, run)
    assert done.code == 0, done.err
    for file in sorted((OLD / "run-finished").glob("*.safetensors")):
        assert (run / file.name).read_bytes() == file.read_bytes()
    again = resume(cli, run, "--data", "data", "--recipe", "recipes/user.toml", "--matrix", 32,
                   "--acceleration", 2, "--quantize", "int8")  # fmt: skip
    assert again.code == 0, again.err


def test_a_finished_run_is_tuned_for_other_integers(cli: Cli, workplace: Path) -> None:
    run = old_run("run-finished", workplace)
    done = resume(cli, run, "--quantize", "int8-signed")
    assert done.code == 0, done.err
    assert (run / "student-int8-signed.safetensors").is_file()
    before = (OLD / "run-finished" / "student.safetensors").read_bytes()
    assert (run / "student.safetensors").read_bytes() == before


def test_a_run_is_refused_for_another_one(cli: Cli, workplace: Path) -> None:
    run = old_run("run-finished", workplace)
    done = cli("distill", "--out", run.name)
    assert done.code == 1
    assert "already holds a run" in done.err


# Recipes


def asked(cli: Cli, recipe: object, *options: object) -> Any:
    """Ask for a distillation with a recipe; it is refused only after that was read.

    Its folder holds a run already, which is found out after everything that was asked for is
    resolved, and before anything is trained.
    """
    return cli("distill", "--out", OLD / "run-finished", "--recipe", recipe, *options)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_accepted(cli: Cli, name: str) -> None:
    vdsr = ("--teacher", "vdsr-11", "--student", "vdsr-7", "--mask-family", "centre")
    further = vdsr if name.endswith("-sr") else ()
    places: list[object] = [OLD / "recipes" / f"{name}.toml"]
    if name != "user":
        places.append(name)
    for place in places:
        done = asked(cli, place, *further)
        assert done.code == 1
        assert "already holds a run" in done.err


def test_a_wrong_recipe_is_refused_before(cli: Cli, tmp_path: Path) -> None:
    """What the tests above rest on."""
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("no_such_key = 1\n")
    for recipe, key in ((wrong, "no_such_key"), ("no-such-recipe", "no-such-recipe")):
        done = asked(cli, recipe)
        assert done.code == 1
        assert key in done.err
        assert "already holds a run" not in done.err


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_means_what_it_meant(cli: Cli, name: str, workplace: Path) -> None:
    """A run that was begun with it takes it for its own, and then finds no volume to go on with."""
    run = workplace / "run"
    run.mkdir()
    (workplace / "empty").mkdir()
    shutil.copyfile(OLD / "recipes" / "resolved" / f"{name}.json", run / "run.json")
    places: list[object] = [f"recipes/{name}.toml"]
    if name != "user":
        places.append(name)
    for place in places:
        done = resume(cli, run, "--recipe", place)
        assert done.code == 1
        assert "started with another" not in done.err
        assert "empty" in done.err
    done = resume(cli, run, "--recipe", f"recipes/{name}.toml", "--set", "seed=991")
    assert "started with another" in done.err


def other(key: str, value: Any) -> str:
    """Return another value of a key, as --set takes it."""
    if isinstance(value, bool):
        return str(not value).lower()
    if isinstance(value, list):
        return "[1, 1, 1]"
    if isinstance(value, str):
        return OTHER_WORDS[key]
    return str(value + 1 if isinstance(value, int) else value / 2 or 0.125)


def test_every_flat_key_still_decides(cli: Cli, workplace: Path) -> None:
    run = old_run("run-finished", workplace)
    for key, value in USER.items():
        if key in FREE:
            continue
        done = resume(cli, run, "--set", f"{key}={other(key, value)}")
        assert done.code == 1, key
        assert "started with another" in done.err, f"{key}: {done.err}"


def test_masks_and_splits_are_read(cli: Cli) -> None:
    common = ("--data", OLD / "data", "--split", OLD / "split.toml")
    for mask in ("mask.npy", "masks.json:tiny_3x", "masks.json", "mask-points.json"):
        done = asked(cli, "edge", "--mask", OLD / mask, *common)
        assert "already holds a run" in done.err


# Reports


def test_select_reads_a_report(cli: Cli) -> None:
    stored = json.loads((OLD / "report" / "report.json").read_text())
    for place in (OLD / "report", OLD / "report" / "report.json"):
        done = cli("select", place, "--json")
        assert done.code == 0, done.err
        assert stored["recommended"] in done.out
    done = cli("select", OLD / "report", "--max-latency", "0.001ms")
    assert done.code == 1
    assert "Traceback" not in done.err


def test_compare_reads_reports(cli: Cli) -> None:
    report = OLD / "report" / "report.json"
    done = cli("bench", "--compare", report, report)
    assert done.code == 0, done.out + done.err


def _values(gaps: dict[str, Any]) -> list[float | None]:
    return [
        measure["value"]
        for student in gaps.values()
        for teacher in student.values()
        for measure in teacher.values()
    ]


def test_a_reproduction_is_reported_again(cli: Cli, workplace: Path) -> None:
    """Its figures are kept beside it, so that no weights are needed."""
    old_run("reproduction", workplace)
    done = cli("reproduce", "cardiac", "--data", "data", "--accelerations", 2, "--steps", 4,
               "--out", "reproduction", "--report-only", "--json")  # fmt: skip
    assert done.code == 0, done.err
    found, stored = json.loads(done.out), json.loads((OLD / "reproduction/report.json").read_text())
    assert found["missing"] == []
    assert found["groups"][0]["rows"] == stored["groups"][0]["rows"]
    # the ends of intervals of few subjects lie further out than they did
    assert _values(found["groups"][0]["gap_closed"]) == _values(stored["groups"][0]["gap_closed"])
    assert found["trained_on"] == stored["trained_on"]


def test_an_old_bundle_is_measured(cli: Cli, workplace: Path) -> None:
    done = cli("bench", OLD / "bundles" / "onnx-f32", "--data", "data", "--threads", 1, "--samples",
               2, "--warmup", 1, "--batches", 1, "--precision", "f32", "--usual-only",
               "--without-plain-export", "--limit-slices", 1, "--out", "report",
               "--json")  # fmt: skip
    assert done.code == 0, done.err
    rows = json.loads(done.out)["rows"]
    assert any(row["runtime"] == "ONNX Runtime" and row["status"] == "measured" for row in rows)


# The command line


# As the program's own, from which commands have their names of --help.
PROGRAM = click.Context(main, info_name="kdmri-edge", **main.context_settings)


def found_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that words name, and the words that are left for it."""
    command: click.Command = main
    while isinstance(command, click.Group):
        name, *words = words
        inner = command.get_command(PROGRAM, name)
        assert inner is not None, f"there is no command {name}"
        command = inner
    return command, words


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_is_understood(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "kdmri-edge"
    command, rest = found_command(words)
    # Parsed to the end, and not carried out.
    name = str(command.name)
    context = command.make_context(name, rest, parent=PROGRAM, resilient_parsing=False)
    assert context.args == []


@pytest.mark.parametrize("name", OPTIONS)
def test_a_command_keeps_its_options(name: str) -> None:
    old = OPTIONS[name]
    command, _ = found_command(name.split())
    parameters = command.get_params(click.Context(command, parent=PROGRAM, info_name=name))
    options = {
        text: parameter
        for parameter in parameters
        if isinstance(parameter, click.Option)
        for text in (*parameter.opts, *parameter.secondary_opts)
    }
    assert set(old["options"]) <= options.keys()
    arguments = [p for p in parameters if isinstance(p, click.Argument)]
    assert len(arguments) >= len(old["arguments"])
    for option, choices in old["choices"].items():
        kind = options[option].type
        if isinstance(kind, click.Choice):
            assert set(choices) <= {str(choice) for choice in kind.choices}, option
    for option in old["repeated"]:
        assert options[option].multiple, option
    for option, variable in old["environment"].items():
        assert options[option].envvar == variable, option


def test_the_command_lines_use_every_option() -> None:
    """A specimen that has no line would not be tested."""
    used: dict[str, set[str]] = {name: set() for name in OPTIONS}
    for line in LINES:
        words = shlex.split(line)[1:]
        name = " ".join(words[:2]) if words[0] == "data" else words[0]
        used[name] |= {word for word in words if word.startswith("-")}
    for name, old in OPTIONS.items():
        assert used[name] | {"-h", "--help"} >= set(old["options"]), name


@pytest.mark.parametrize("words", [(), *((name.split()[0],) for name in OPTIONS)])
def test_help_is_there(cli: Cli, words: tuple[str, ...]) -> None:
    assert cli(*words, "-h").code == 0
    assert cli(*words, "--help").code == 0


def test_the_version_is_said(cli: Cli) -> None:
    assert cli("--version").out.startswith("kdmri-edge, version ")
