"""The command line: lazy imports, single sentences for mistakes, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from kdmri_edge import cli as command_line
from kdmri_edge.errors import DataError
from tests.waiting import until

Cli = Callable[..., Any]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.mark.parametrize("command", list(command_line.COMMANDS))
def test_help_of_each_command(cli: Cli, command: str) -> None:
    shown = cli(command, "--help")
    assert shown.code == 0
    assert shown.out.startswith("Usage: ")
    assert f" {command} [OPTIONS]" in shown.out.splitlines()[0]
    overview = cli("--help")
    assert overview.code == 0
    assert command in overview.out


def test_version(cli: Cli) -> None:
    from kdmri_edge import __version__

    assert __version__ in cli("--version").out


@pytest.mark.parametrize(
    ("typed", "meant"), [("distil", "distill"), ("exprot", "export"), ("bensh", "bench")]
)
def test_unknown_command_names_the_nearest(cli: Cli, typed: str, meant: str) -> None:
    shown = cli(typed)
    assert shown.code == 2
    assert f"Did you mean '{meant}'?" in shown.err


def test_unknown_option(cli: Cli) -> None:
    shown = cli("distill", "--reciep", "x")
    assert shown.code == 2
    assert "--recipe" in shown.err


def test_guard_turns_errors_into_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise DataError("It broke.", "Mend it.")

    assert command_line._guarded(fail) == 1
    assert capsys.readouterr().err == "Error: It broke. Mend it.\n"


def test_guard_lets_defects_through() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command_line._guarded(fail)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, click.Abort])
def test_guard_on_interruption(
    capsys: pytest.CaptureFixture[str], stop: type[BaseException]
) -> None:
    def fail() -> None:
        raise stop

    assert command_line._guarded(fail) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Interrupted")
    assert len(shown.splitlines()) == 1


def test_guard_passes_a_commands_own_exit_code_on(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    @click.pass_context
    def doctor(ctx: click.Context) -> None:
        ctx.exit(3)

    monkeypatch.setattr(command_line._LazyGroup, "get_command", lambda *_: doctor)
    assert cli("doctor").code == 3


# Bad input -------------------------------------------------------------------------------------


@pytest.fixture
def refuse(cli: Cli, tiny: tuple[str, ...], tmp_path: Path) -> Cli:
    """Run `distill`; it must refuse in one sentence and leave nothing behind."""

    def run(*options: object, parts: tuple[str, ...]) -> None:
        before = _tree(tmp_path)
        out = [] if any(str(o).startswith("--out") for o in options) else ["--out", tmp_path / "r"]
        named = {str(option).partition("=")[0] for option in options}  # in place of the usual ones
        usual = [word for word in tiny if "--set" in word or word.partition("=")[0] not in named]
        cli("distill", *usual, *options, *out).check_refusal(*parts)
        assert _tree(tmp_path) == before

    return run


def _tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_missing_data_folder(refuse: Cli, tmp_path: Path) -> None:
    refuse("--data", tmp_path / "none", parts=("none does not exist", "--data"))


def test_empty_data_folder(refuse: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse("--data", tmp_path / "empty", parts=("holds no volume", ".nii.gz"))


def test_unreadable_file(refuse: Cli, brains: Path) -> None:
    (brains / "sub-09_T1w.nii.gz").write_bytes(b"\x1f\x8b\x08rubbish")
    refuse("--data", brains, "--split", _split(brains), parts=("sub-09_T1w.nii.gz", "damaged"))


def _split(brains: Path) -> Path:
    """Train on the bad volume, so that it is read whatever the automatic split says."""
    file = brains.parent / "split.toml"
    file.write_text('train = ["00", "09"]\nvalidation = ["01"]\ntest = ["02"]\n')
    return file


def test_unknown_contrast(refuse: Cli, brains: Path) -> None:
    refuse("--data", brains, "--contrast", "PDw", parts=("'PDw'", "Present are T1w"))


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (np.ones((2, 2, 32, 32), np.float32), "three axes"),
        (np.full((3, 32, 32), np.nan, np.float32), "NaN"),
        (np.zeros((3, 32, 32), np.float32), "all zero"),
        (np.ones((3, 32, 32), np.complex64), "complex"),
    ],
)
def test_bad_volume(refuse: Cli, brains: Path, array: np.ndarray, part: str) -> None:
    np.save(brains / "sub-09_T1w.npy", array)
    refuse("--data", brains, "--split", _split(brains), parts=("sub-09_T1w", part))


def test_too_few_subjects(refuse: Cli, brains: Path) -> None:
    (brains / "sub-02_T1w.npy").unlink()
    refuse("--data", brains, parts=("2 subject(s)", "Add subjects"))


def test_test_volume_that_is_also_trained_on(refuse: Cli, brains: Path) -> None:
    first, last = brains / "sub-00_T1w.npy", brains / "sub-02_T1w.npy"
    last.write_bytes(first.read_bytes())
    split = brains.parent / "split.json"
    split.write_text('{"train": ["00"], "validation": ["01"], "test": ["02"]}')
    refuse("--data", brains, "--split", split, parts=("sub-02_T1w is the same file",))


def test_unknown_split(refuse: Cli, brains: Path) -> None:
    refuse("--data", brains, "--split", brains / "none.toml", parts=("none.toml",))


def test_mask_of_another_size(refuse: Cli, tmp_path: Path) -> None:
    samples = np.zeros(40, bool)
    samples[::2] = True
    np.save(tmp_path / "mask.npy", samples)
    refuse("--mask", tmp_path / "mask.npy", parts=("40", "32 x 32", "--matrix 40"))


def test_missing_mask(refuse: Cli, tmp_path: Path) -> None:
    refuse("--mask", tmp_path / "none.npy", parts=("none.npy",))


@pytest.mark.parametrize("value", ["0.5", "0", "-4", "nan", "inf"])
def test_acceleration_below_one(refuse: Cli, value: str, tmp_path: Path) -> None:
    refuse("--acceleration", value, parts=("Acceleration", "--acceleration"))
    np.save(tmp_path / "mask.npy", np.arange(32) % 2 == 0)
    refuse("--mask", tmp_path / "mask.npy", "--acceleration", value, parts=("Acceleration",))


def test_acceleration_that_the_mask_contradicts(refuse: Cli, tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", np.arange(32) % 2 == 0)
    options = ["--mask", tmp_path / "mask.npy", "--acceleration", 4]
    refuse(*options, parts=("2.00x", "--acceleration says 4"))


def test_unknown_preset(refuse: Cli) -> None:
    refuse("--student", "dccnn-d3c4", parts=("did you mean 'dccnn-d3c5'",))
    refuse("--teacher", "dcnn-d5c5", parts=("did you mean 'dccnn-d5c5'",))
    refuse("--teacher", "teacher.pt", parts=("teacher.pt does not exist", ".safetensors"))


def test_teacher_and_student_of_two_families(refuse: Cli) -> None:
    refuse("--teacher", "vdsr-11", "--recipe", "edge", parts=("no image between to imitate",))


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A checkpoint of the wrong family, for another mask than TINY's."""
    from kdmri_edge.models.build import build_model
    from kdmri_edge.models.checkpoint import Checkpoint, save_checkpoint
    from kdmri_edge.models.specs import preset
    from kdmri_edge.physics.masks import variable_density_lines

    for name in ("vdsr-11", "dccnn-d5c5"):
        model = build_model(preset(name))
        checkpoint = Checkpoint(
            spec=model.spec,
            mask=variable_density_lines(32, 2.0, seed=8),
            matrix=32,
            role="teacher",
            training={},
            state=model.state_dict(),
        )
        save_checkpoint(tmp_path / f"{name}.safetensors", checkpoint)
    return tmp_path


def test_checkpoint_of_another_architecture(refuse: Cli, teacher: Path) -> None:
    file = teacher / "vdsr-11.safetensors"
    refuse("--teacher", file, "--set=joint_steps=1", parts=("finished teacher", "joint_steps=0"))


def test_checkpoint_of_another_mask(refuse: Cli, teacher: Path) -> None:
    refuse("--teacher", teacher / "dccnn-d5c5.safetensors", parts=("was trained for mask",))


def test_corrupt_checkpoint(refuse: Cli, teacher: Path) -> None:
    file = teacher / "dccnn-d5c5.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    refuse("--teacher", file, parts=("damaged",))
    refuse("--teacher", teacher / "none.safetensors", parts=("does not exist",))


def test_bad_recipe(refuse: Cli) -> None:
    refuse("--set=learning_rat=1", parts=("Did you mean 'optim.learning_rate'",))
    refuse("--recipe", "nothing", parts=("no recipe 'nothing'", "kd-mri"))


def test_out_that_is_a_file(refuse: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refuse("--out", tmp_path / "file", parts=("is a file",))
    refuse("--out", tmp_path / "file" / "deeper", parts=("is a file",))


def test_out_that_holds_a_run(refuse: Cli, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "run.json").write_text('{"format": 1}')
    refuse("--out", tmp_path / "r", parts=("already holds a run", "--resume"))


# Interruptions and full disks ------------------------------------------------------------------


def test_ctrl_c(start: Start, tiny: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [*tiny, "--set=teacher_steps=100000", "--set=checkpoint_every=100000"]
    process = start(["kdmri_edge", "distill", *options, "--out", out])
    log = out / "log.csv"
    until(lambda: log.exists() and "teacher" in log.read_text(), 120, process=process)
    process.send_signal(signal.SIGINT)
    printed, shown = process.communicate(timeout=60)
    assert process.returncode == 1
    assert printed == ""
    assert "Traceback" not in shown
    said = shown.splitlines()[-1]
    place = re.fullmatch(
        r"Interrupted after step (\d+) of 100000 of teacher dccnn-d5c5, which is saved\."
        rf" Go on with: kdmri-edge distill --resume --out {out} --accelerator cpu --threads 1",
        said,
    )
    assert place, said
    names = {path.name for path in out.rglob("*") if path.is_file()}
    assert names == {"run.json", "log.csv", "teacher.safetensors", "lock"}
    from safetensors import safe_open

    with safe_open(out / "state" / "teacher.safetensors", framework="pt") as state:
        assert json.loads(state.metadata()["state"])["step"] == int(place[1])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1.5 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except OSError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip("file systems may not be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def _check_full(outcome: Any, out: Path) -> None:
    lines = outcome.err.splitlines()
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert "disk is full" in lines[-1]
    assert "Free some space" in lines[-1]
    left = {path.name for path in out.rglob("*") if path.is_file()}
    assert left <= {"run.json", "log.csv", "teacher.safetensors", "lock"}


def test_full_disk(cli: Cli, tiny: tuple[str, ...], small_disk: Path) -> None:
    earlier = small_disk / "earlier"
    earlier.write_bytes(b"x" * 100_000)
    out = small_disk / "run"
    _check_full(cli("distill", *tiny, "--out", out), out)
    assert earlier.read_bytes() == b"x" * 100_000
    # With space again the run goes on.
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    resumed = cli("distill", "--resume", "--out", out)
    assert resumed.code == 0, resumed.err


def test_full_disk_when_flushing(
    cli: Cli, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many file systems find out only now that there is no room."""
    out, real, calls = tmp_path / "run", os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    _check_full(cli("distill", *tiny, "--out", out), out)
    monkeypatch.setattr(os, "fsync", real)
    resumed = cli("distill", "--resume", "--out", out)
    assert resumed.code == 0, resumed.err


@pytest.mark.parametrize("command", list(command_line.COMMANDS))
def test_examples_in_help_are_not_wrapped_into_a_paragraph(command: str) -> None:
    shown = CliRunner().invoke(command_line.main, [command, "--help"]).output
    assert "\\b" not in shown
    assert "\b" not in shown


def test_help_names_every_shipped_recipe(cli: Cli) -> None:
    from kdmri_edge.distillation.recipe import shipped

    shown = "".join(cli("distill", "--help").out.split())  # help is broken at hyphens too
    assert all(name in shown for name in shipped())
