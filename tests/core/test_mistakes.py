"""What users get wrong, by command: what is said has to fit the command that they typed.

Library functions serve several commands, so a remedy that they name must not be the option of
another one, unless that command stands with it: `kdmri-edge export --mask input`.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest

from kdmri_edge.cli import COMMANDS, main
from kdmri_edge.commands.command import Command, Group
from kdmri_edge.models.foreign import file_kind
from kdmri_edge.models.shipped import WEIGHTS

Cli = Callable[..., "object"]
NAME = "dccnn-d3c5@brain-4x"


def _commands() -> dict[str, click.Command]:
    """Every command by what is typed, those of groups too."""
    found: dict[str, click.Command] = {}
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            for inner in command.list_commands(context):
                deeper = command.get_command(context, inner)
                assert deeper is not None
                found[f"{name} {inner}"] = deeper
        else:
            found[name] = command
    return found


ALL = _commands()
_OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def _options(command: click.Command) -> set[str]:
    spelled = [(*p.opts, *p.secondary_opts) for p in command.params if isinstance(p, click.Option)]
    return {"--help", *itertools.chain.from_iterable(spelled)}


def strange_options(text: str, typed: str) -> set[str]:
    """Return the options that a text names and that the command it stands for does not have."""
    strange: set[str] = set()
    for quoted in re.findall(r"`kdmri-edge ([^`]*)`", text):
        words = quoted.split()
        name = next(typed for typed in (" ".join(words[:2]), words[0]) if typed in ALL)
        strange |= set(_OPTION.findall(quoted)) - _options(ALL[name])
    return strange | set(_OPTION.findall(re.sub(r"`[^`]*`", "", text))) - _options(ALL[typed])


def test_strange_options_are_found() -> None:
    assert strange_options("Give --coils 4, or `kdmri-edge export --lines 3`.", "run") == {
        "--coils",
        "--lines",
    }
    assert not strange_options("Add --undersample, or `kdmri-edge export --dc auto`.", "run")
    assert not strange_options("The file dccnn-d3c5 is full-size.", "run")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what users have lying about."""
    place = tmp_path_factory.mktemp("desk")
    generator = np.random.default_rng(0)
    np.save(place / "full.npy", generator.random((2, 240, 240), np.float32))
    np.save(place / "small.npy", generator.random((2, 32, 32), np.float32))
    image = generator.random((2, 240, 240)) + 1j * generator.random((2, 240, 240))
    np.save(place / "complex.npy", image.astype(np.complex64))
    np.save(place / "odd.npy", image.astype(np.complex64)[:, :200, :200])
    np.save(place / "mask40.npy", np.arange(40) % 2 == 0)
    np.save(place / "mask240.npy", np.arange(240) % 2 == 0)
    np.save(place / "threes.npy", np.full(240, 3))
    (place / "empty").mkdir()
    (place / "notes.txt").write_text("hello")
    (place / "report.json").write_text("{}")
    (place / "run").mkdir()
    (place / "run" / "run.json").write_text('{"format": 1}')
    for name, data in _foreign().items():
        (place / name).write_bytes(data)
    return place


def _foreign() -> dict[str, bytes]:
    """Networks of other programs, as they lie on disk."""
    import io
    import warnings

    import torch
    from onnx import TensorProto, helper
    from safetensors.torch import save

    net = torch.nn.Conv2d(1, 1, 3)

    def written(value: object, **how: object) -> bytes:
        stream = io.BytesIO()
        torch.save(value, stream, **how)  # type: ignore[arg-type]
        return stream.getvalue()

    scripted = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and still what users have
        torch.jit.save(torch.jit.script(net), scripted)
    port = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", port[:1], port[1:])
    return {
        "net.pth": written(net.state_dict()),
        "net.ckpt": written({"state_dict": net.state_dict()}),
        "old.pth": written(net.state_dict(), _use_new_zipfile_serialization=False),
        "net.pt": scripted.getvalue(),
        "net.onnx": helper.make_model(graph).SerializeToString(),
        "other.safetensors": save(dict(net.state_dict())),
    }


KINDS = {
    "net.pth": "a PyTorch checkpoint",
    "net.ckpt": "a PyTorch checkpoint",
    "old.pth": "a pickle (PyTorch checkpoint of an older kind)",
    "net.pt": "a TorchScript program",
    "net.onnx": "an ONNX graph",
    "other.safetensors": "a safetensors file of another program",
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_files(desk: Path, name: str) -> None:
    assert file_kind(desk / name) == KINDS[name]


def test_kind_of_our_own_checkpoint() -> None:
    assert file_kind(WEIGHTS / "brain-4x" / "dccnn-d3c5.safetensors") == "a checkpoint"


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
        ("a.npy", b"\x93NUMPY\x01\x00" + bytes(64), "an array (NumPy)"),
        ("a.xml", b'<?xml version="1.0"?>\n<net name="g" version="11">', "an OpenVINO graph"),
        ("a.engine", b"ftrt" + bytes(64), "a TensorRT engine"),
        ("a.zip", b"PK\x03\x04", "a damaged archive"),
        ("a.bin", b"", "an empty file"),
        ("a.bin", b"\x01\x02", "a file of unknown format"),
        ("a.safetensors", struct.pack("<Q", 2**40), "a file of unknown format"),
        ("a.safetensors", struct.pack("<Q", 4) + b"[1,]", "a file of unknown format"),
    ],
)
def test_kinds_by_first_bytes(tmp_path: Path, name: str, data: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert file_kind(tmp_path / name) == kind


def _lines() -> Iterator[tuple[str, str]]:
    """Yield command lines that are refused, and a part of what has to be said."""
    for name, kind in KINDS.items():
        yield f"run {name} full.npy -o out.npy", kind
        yield f"serve {name}", kind
        yield f"export {name} --target onnx", kind
        yield f"bench {name} --data full.npy", kind
        yield f"distill --teacher {name}", kind
        yield f"verify {name}", kind
        if name != "net.onnx":
            yield f"check {name}", kind
    for line in ("run {} full.npy -o out.npy", "serve {}", "export {} --target onnx"):
        yield line.format("dccnn-d3c5"), NAME
        yield line.format("dccnn-d3c5@brain-4y"), f"did you mean '{NAME}'?"
        yield line.format("nowhere"), "nowhere does not exist"
        yield line.format("empty"), "empty is a folder without a network"
    for command in ("verify", "check"):
        yield f"{command} dccnn-d3c5", NAME
        yield f"{command} {NAME}", f"`kdmri-edge export {NAME} --target onnx`"
        yield f"{command} nowhere", "nowhere does not exist"
        yield f"{command} empty", "empty is a folder without a network"
    yield "run run full.npy -o out.npy", "`kdmri-edge distill --resume --out run`"
    yield "export run --target onnx", "`kdmri-edge distill --resume --out run`"
    yield "bench run --data full.npy", "`kdmri-edge distill --resume --out run`"
    yield "bench dccnn-d3c5 --data full.npy", NAME
    yield "bench nowhere --data full.npy", "nowhere does not exist"
    yield "bench empty --data full.npy", "empty"
    # what is to be reconstructed
    yield f"run {NAME} nowhere.npy -o out.npy", "nowhere.npy does not exist"
    yield f"run {NAME} full.npy -o out.npy --no-cache", "--undersample"
    yield f"run {NAME} small.npy -o out.npy --no-cache", "--undersample"
    yield f"run {NAME} complex.npy -o out.npy --no-cache", "--undersample"
    yield f"run {NAME} odd.npy -o out.npy --no-cache", "--undersample"
    yield f"run {NAME} small.npy -o out.npy --undersample --no-cache", "never upsampled"
    yield f"run {NAME} notes.txt -o out.npy", "no reader knows"
    yield f"run {NAME} empty -o out.npy", "holds no volume"
    yield f"run {NAME} full.npy -o out.xyz", "out.xyz"
    yield f"run {NAME} full.npy -o full.npy --undersample", "is an input"
    yield f"run {NAME} full.npy -o out.npy --mask nowhere.npy", "nowhere.npy"
    yield f"run {NAME} full.npy -o out.npy --mask threes.npy", "other than 0 and 1"
    yield f"run {NAME} full.npy -o out.npy --mask dccnn-d3c5@brain-4y", f"'{NAME}'"
    yield f"run {NAME} full.npy -o out.npy --precision fp8", "'fp8'"
    yield "run dccnn-d3c5-sense@measured-4x full.npy -o out.npy --no-cache", "combines coils"
    yield f"bench {NAME} --data nowhere", "nowhere does not exist"
    yield f"bench {NAME} --data empty", "holds no volume"
    yield f"bench {NAME} --data full.npy --contrast T1w", "contrast 'T1w'"
    yield f"bench {NAME} --data small.npy", "never upsampled"
    # exports
    yield f"export {NAME} --target onx", "did you mean 'onnx'?"
    yield f"export {NAME}", "--target"
    yield f"export {NAME} --target onnx --precision fp8", "fp32"
    yield f"export {NAME} --target onnx --precision bf16", "fp32, fp16, int8"
    yield f"export {NAME} --target openvino --keep-op", "node for data consistency"
    yield f"export {NAME} --target onnx --builder rtx", "--target trt"
    yield f"export {NAME} --target onnx --out notes.txt", "notes.txt is a file"
    yield "export vdsr-7@brain-sr --target onnx --mask input", "no data consistency"
    yield "export vdsr-7@brain-sr --target onnx --dc projection", "whole lines"
    yield "export --target onnx", "no finished run"
    yield "check nowhere.onnx", "nowhere.onnx does not exist"
    # training
    yield "distill --data nowhere", "nowhere does not exist"
    yield "distill --data empty", "holds no volume"
    yield "distill --data full.npy --contrast T1w", "contrast 'T1w'"
    yield "distill --mask nowhere.npy", "nowhere.npy"
    yield "distill --mask mask40.npy --matrix 32", "--matrix 40"
    yield "distill --acceleration 0.5", "--acceleration"
    yield "distill --set lr=0.1", "'optim.learning_rate'"
    yield "distill --set epochz=3", "--list-keys"
    yield "distill --set lr", "--set"
    yield "distill --recipe nothing", "edge"
    yield "distill --resume", "--out"
    yield "distill --resume --out empty", "not a run"
    # an option of one value, given twice
    yield f"export {NAME} --target trt --precision bf16 --precision int8", "'--precision' is given"
    yield f"bench {NAME} --data full.npy --quick --full", "'--quick' or --full is given twice"
    yield f"run {NAME} full.npy -o out.npy --output other.npy", "'--output' is given twice"
    yield "archive list --queue here --queue there", "'--queue' is given twice"
    yield f"distill --student {NAME}", "--quantize"
    # files
    yield "data convert nowhere out.npy", "nowhere does not exist"
    yield "data convert full.npy full.npy", "is the input"
    yield "data convert full.npy out.xyz", "out.xyz"
    yield "data convert complex.npy out.dcm", "--magnitude"
    yield "data convert notes.txt out.npy", "no reader knows"
    yield "send nowhere.h5 -o out.h5", "nowhere.h5 does not exist"
    yield "send full.npy -o out.h5", "full.npy"
    yield "select nowhere", "nowhere"
    yield "select report.json", "report"
    yield "reproduce brain --data nowhere", "nowhere"
    yield "reproduce brain --data empty", "--masks"


@pytest.mark.parametrize("name", ALL)
def test_every_command_refuses_an_option_given_twice(name: str) -> None:
    command = ALL[name]
    assert isinstance(main, Group)
    assert isinstance(command, Command)
    one = next((o for o in command.params if isinstance(o, click.Option) and o.nargs == 1
                and not (o.multiple or o.is_flag or o.count)), None)  # fmt: skip
    if one is None:  # flags, which may be repeated, and options that are
        return
    with pytest.raises(click.UsageError, match="given twice") as caught:
        command.make_context(name, [one.opts[0], "1", one.opts[0], "1"])
    assert caught.value.exit_code == 2
    assert f"'{max(one.opts, key=len)}'" in str(caught.value)


@pytest.mark.parametrize("words", [["--json", "--json"], ["--precision", "fp32"] * 2])
def test_flags_and_options_of_many_values_may_be_repeated(words: list[str]) -> None:
    ALL["bench"].make_context("bench", words)


@pytest.mark.parametrize(("line", "part"), list(_lines()))
def test_mistakes(
    cli: Cli, desk: Path, monkeypatch: pytest.MonkeyPatch, line: str, part: str
) -> None:
    monkeypatch.chdir(desk)
    before = sorted(desk.rglob("*"))
    shown = cli(*line.split())
    assert shown.code in (1, 2), shown
    assert shown.out == ""
    assert "Traceback" not in shown.err
    text = " ".join(shown.err.split())
    assert part in text
    sentence = text[text.index("Error: ") :]
    typed = (
        " ".join(line.split()[:2]) if line.startswith(("data ", "archive ")) else line.split()[0]
    )
    assert not strange_options(sentence, typed), sentence
    if shown.code == 1:  # usage errors are click's, with a line of usage
        lines = shown.err.strip().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("Error: ")
        assert re.search(r"""[.?!]$""", lines[0])
        assert "damaged" not in sentence
    assert sorted(desk.rglob("*")) == before


def test_a_run_names_the_networks_in_it(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    bundle = run / "exports" / "student-onnx"
    bundle.mkdir(parents=True)
    (run / "run.json").write_text('{"format": 1}')
    (bundle / "manifest.json").write_text("{}")
    (run / "teacher.safetensors").write_bytes(b"")
    np.save(tmp_path / "x.npy", np.zeros((1, 8, 8), np.float32))
    shown = cli("run", run, tmp_path / "x.npy", "-o", tmp_path / "y.npy")
    shown.check_refusal("is a run", str(bundle), str(run / "teacher.safetensors"))
    shown = cli("run", run / "exports", tmp_path / "x.npy", "-o", tmp_path / "y.npy")
    shown.check_refusal("is no bundle, but holds some", str(bundle))


@pytest.mark.parametrize("command", ["run", "bench", "export"])
def test_interrupted_commands_do_not_speak_of_others(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(main), "resolve_command", stopped)
    shown = cli(command)
    assert shown.code == 1
    assert shown.err.strip() == "Interrupted: nothing half-written is left."
    assert cli("distill").err == shown.err  # there is no run yet to go on with
    assert "The same command goes on." in cli("reproduce").err
