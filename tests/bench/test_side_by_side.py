"""Trainings side by side: the weights of one by one, and no process left behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from kdmri_bench.measuring.isolation import environment
from kdmri_bench.reproduce.processes import Piece, check_jobs, train_side_by_side
from kdmri_edge.distillation.engine import Engine
from kdmri_edge.distillation.recipe import Batches, DistillRecipe, Optim, Precision
from kdmri_edge.distillation.request import PHANTOM, Settings
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import BenchError, DataError
from kdmri_edge.models.checkpoint import load_checkpoint
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.masks import variable_density_lines
from tests.waiting import until

MATRIX = 32
ENGINE = Engine(accelerator="cpu", threads=1)
ENDLESS = 100_000


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """Trainings in this process leave their number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _piece(
    out: Path, *, teacher: Path | None = None, steps: int = 6, seed: int = 0, data: str = PHANTOM
) -> Piece:
    """A training of a teacher, or of a student by the teacher in another run folder."""
    recipe = DistillRecipe(
        name="tiny", batches=Batches(size=2, strip=16), seed=seed,
        teacher_steps=steps, attention_steps=0, imitation_steps=steps,
        phantom_volumes=3, phantom_slices=3, checkpoint_every=2,
        validate_every=ENDLESS, precision=Precision.F32,
    )  # fmt: skip
    settings = Settings(
        data=data,
        contrast=None,
        split=None,
        matrix=MATRIX,
        mask=variable_density_lines(MATRIX, 2.0),
        teacher="dccnn-d3c5" if teacher is None else str(teacher / "teacher.safetensors"),
        teacher_spec=preset("dccnn-d3c5"),
        student="dccnn-d3c5",
        student_spec=preset("dccnn-d3c5"),
        baseline=False,
        distilled=teacher is not None,
        recipe=recipe,
    )
    return Piece(out, settings, out.name, () if teacher is None else (teacher,))


def _weights(out: Path, role: str) -> dict[str, bytes]:
    state = load_checkpoint(Run(out).weights(role)).state
    return {key: tensor.numpy().tobytes() for key, tensor in state.items()}


@pytest.mark.nightly
def test_weights_are_those_of_one_by_one_and_the_taught_wait_for_their_teachers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[None] = []
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        pieces = [
            _piece(folder / "teacher"),
            _piece(folder / "taught", teacher=folder / "teacher"),
            _piece(folder / "alone", seed=1),
        ]
        train_side_by_side(pieces, jobs, ENGINE, finished=lambda: calls.append(None))
    assert len(calls) == 6
    shown = capsys.readouterr().err.splitlines()
    said = [line for line in shown if line.startswith(("Started: ", "Finished: "))][-6:]
    assert said[:2] == ["Started: teacher", "Started: alone"]
    assert said.index("Started: taught") > said.index("Finished: teacher")
    for name, role in (("teacher", "teacher"), ("taught", "student"), ("alone", "teacher")):
        one, other = (_weights(tmp_path / jobs / name, role) for jobs in ("1", "2"))
        assert one == other
        assert Run(tmp_path / "2" / name).meta["status"] == "complete"
    assert not list((tmp_path / "2").glob("*.log"))


@pytest.mark.nightly
def test_a_failing_piece_says_why_and_ends_the_others(tmp_path: Path) -> None:
    pieces = [
        _piece(tmp_path / "long", steps=ENDLESS),
        _piece(tmp_path / "broken", data=str(tmp_path / "nowhere")),
    ]
    with pytest.raises(DataError, match=r"^broken: .*nowhere") as caught:
        train_side_by_side(pieces, 2, ENGINE)
    assert caught.value.remedy
    assert not multiprocessing.active_children()
    assert not list(tmp_path.glob("*.log"))


@pytest.mark.nightly
def test_a_process_that_dies_is_one_sentence(tmp_path: Path) -> None:
    piece = _piece(tmp_path / "killed", steps=ENDLESS)

    def kill() -> None:
        until((piece.out / "run.json").exists)
        (child,) = multiprocessing.active_children()
        child.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(BenchError, match=r"^killed ended with exit code -9: .*SIGKILL"):
        train_side_by_side([piece], 2, ENGINE)
    killer.join()
    # A defect: what only the type checker would have refused.
    defect = replace(
        piece.settings, recipe=replace(piece.settings.recipe, optim=Optim(learning_rate="fast"))
    )
    out = tmp_path / "defect"
    with pytest.raises(BenchError, match=r"^defect ended with exit code 1: \w+Error") as caught:
        train_side_by_side([replace(piece, settings=defect, out=out, title="defect")], 2, ENGINE)
    assert "Traceback" in (tmp_path / "defect.log").read_text()
    assert str(tmp_path / "defect.log") in str(caught.value)


@contextlib.contextmanager
def _training(pieces: list[Piece], request: Path) -> Iterator[subprocess.Popen[str]]:
    """The trainings as a command of their own, in a terminal of its own, which can be interrupted.

    A shell that starts this in the background has Ctrl-C ignored; here it is not.
    """
    script = (
        "import pickle, signal, sys\n"
        "from kdmri_bench.reproduce.processes import train_side_by_side\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try: train_side_by_side(*pickle.load(open(sys.argv[1], 'rb')))\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    request.write_bytes(pickle.dumps((pieces, 2, ENGINE)))
    with subprocess.Popen(
        [sys.executable, "-c", script, str(request)],
        env=environment(1), stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_interrupted_it_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    pieces = [_piece(tmp_path / "cut", steps=80)]
    out = pieces[0].out
    state = out / "state" / "teacher.safetensors"
    with _training(pieces, tmp_path / "request") as parent:
        until(state.exists)
        children = psutil.Process(parent.pid).children(recursive=True)
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to all of them
        _, printed = parent.communicate(timeout=60)
    assert parent.returncode == 130, printed
    assert "Traceback" not in printed
    assert children
    assert not psutil.wait_procs(children, timeout=30)[1]

    # A killed parent cannot end its children.
    before = state.stat().st_mtime_ns
    with _training(pieces, tmp_path / "request") as parent:
        until(lambda: state.stat().st_mtime_ns != before)
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert children
    assert not psutil.wait_procs(children, timeout=30)[1]

    assert Run(out).meta["status"] == "running"
    whole = replace(pieces[0], out=tmp_path / "whole")
    train_side_by_side([*pieces, whole], 1, ENGINE)
    assert _weights(out, "teacher") == _weights(whole.out, "teacher")


def test_bad_numbers_of_jobs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchError, match=r"--jobs 0.*1 or more"):
        train_side_by_side([], 0, ENGINE)
    with pytest.raises(BenchError, match=r"--jobs 2.*distributed"):
        check_jobs(2, replace(ENGINE, devices=2))
    check_jobs(1, replace(ENGINE, devices=2))
    for name in ("TORCHELASTIC_RUN_ID", "GROUP_RANK", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(BenchError, match="torchrun"):
        check_jobs(2, ENGINE)


def test_a_piece_before_what_it_waits_for_is_a_defect(tmp_path: Path) -> None:
    imitation = _piece(tmp_path / "taught", teacher=tmp_path / "teacher")
    with pytest.raises(ValueError, match="taught"):
        train_side_by_side([imitation, _piece(tmp_path / "teacher")], 2, ENGINE)
