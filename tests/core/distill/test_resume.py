"""A run that was interrupted ends with the weights of one that was not, bit for bit."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdmri_edge.distillation.log import StageProgress
from kdmri_edge.distillation.recipe import Precision
from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import OutputError, RunError
from tests.core.conftest import Outcome
from tests.waiting import until

Weights = Callable[[Path], dict[str, dict[str, Tensor]]]
STAGES = ("teacher", "plain", "attention", "imitation")
STEPS = {"teacher": 8, "plain": 12, "attention": 6, "imitation": 6}


class _PowerCut(BaseException):
    """Not an Exception, so that nothing on the way can swallow it."""


def _same(one: dict[str, dict[str, Tensor]], other: dict[str, dict[str, Tensor]]) -> None:
    assert set(one) == set(other) == {"teacher", "plain", "student"}
    for role in one:
        assert set(one[role]) == set(other[role])
        unequal = [k for k in one[role] if not torch.equal(one[role][k], other[role][k])]
        assert not unequal, f"{role}: {unequal}"


def _needs(precision: str) -> None:
    if precision == Precision.BF16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bf16 convolutions")


@pytest.mark.parametrize("precision", ["f32", pytest.param("bf16", marks=pytest.mark.nightly)])
def test_interrupted_in_every_stage(
    settings: Callable[..., Settings],
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    _needs(precision)
    wanted = settings(precision=Precision(precision), checkpoint_every=3)
    distill(wanted, tmp_path / "whole")
    generator = random.Random(precision)
    # The last step is the one whose state is saved but whose network is not.
    cuts = [(stage, generator.randint(1, STEPS[stage])) for stage in STAGES for _ in range(2)]
    cuts += [("teacher", STEPS["teacher"]), ("attention", STEPS["attention"])]
    pending = sorted(cuts, key=lambda cut: (STAGES.index(cut[0]), cut[1]))
    real = StageProgress.advance

    def advance(self: StageProgress, step: int, loss: float) -> None:
        real(self, step, loss)
        stage = next(s for s in (*STAGES[2:], *STAGES[:2]) if s in self.title)
        if pending and (stage, step) == pending[0]:
            pending.pop(0)
            raise _PowerCut

    monkeypatch.setattr(StageProgress, "advance", advance)
    count = 0
    while True:
        try:
            run = distill(wanted, tmp_path / "cut")
            break
        except _PowerCut:
            count += 1
    assert not pending
    assert count == len(cuts)
    _same(weights(run.path), weights(tmp_path / "whole"))
    steps = [line.split(",")[:2] for line in (run.path / "log.csv").read_text().splitlines()]
    whole = [
        line.split(",")[:2] for line in (tmp_path / "whole" / "log.csv").read_text().splitlines()
    ]
    assert steps == whole


def _wait_for_stage(run: Path, stage: str, process: subprocess.Popen[str]) -> None:
    log = run / "log.csv"
    until(lambda: log.exists() and f"\n{stage}," in log.read_text(), 120, process=process)


@pytest.mark.parametrize(
    ("precision", "stages"),
    [
        ("f32", ("imitation",)),
        pytest.param("f32", STAGES, marks=pytest.mark.nightly),
        pytest.param("bf16", ("teacher", "imitation"), marks=pytest.mark.nightly),
    ],
)
def test_kill_9(
    start: Callable[..., subprocess.Popen[str]],
    cli: Callable[..., Outcome],
    tiny: tuple[str, ...],
    weights: Weights,
    tmp_path: Path,
    precision: str,
    stages: tuple[str, ...],
) -> None:
    _needs(precision)
    longer = [f"--set=precision={precision}", "--set=checkpoint_every=4"]
    # Of about a second, so that the kill falls within the stage that it is meant for.
    longer += [
        f"--set={stage}_steps=30" for stage in ("teacher", "attention", "imitation")
        if stage in stages
    ]  # fmt: skip
    whole = cli("distill", *tiny, *longer, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    out = tmp_path / "killed"
    first = ["kdmri_edge", "distill", *tiny, *longer, "--out", out]
    resume = ["kdmri_edge", "distill", "--resume", "--threads", 1, "--out", out]
    generator = random.Random(precision)
    for number, stage in enumerate(stages):
        process = start(resume if number else first)
        _wait_for_stage(out, stage, process)
        time.sleep(generator.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it had finished before the kill"
    last = start(resume)
    _, shown = last.communicate()
    assert last.returncode == 0, shown
    _same(weights(out), weights(tmp_path / "whole"))
    left = sorted(file.name for file in out.iterdir())
    assert left == [
        "log.csv",
        "plain.safetensors",
        "run.json",
        "student.safetensors",
        "teacher.safetensors",
    ]


@pytest.mark.nightly
def test_a_run_is_trained_by_one_process_at_a_time(
    start: Callable[..., subprocess.Popen[str]], tiny: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = start(
        ["kdmri_edge", "distill", *tiny, "--set=teacher_steps=100000", "--out", out],
    )
    try:
        _wait_for_stage(out, "teacher", first)
        second = start(["kdmri_edge", "distill", "--resume", "--out", out])
        _, shown = second.communicate()
        assert second.returncode == 1
        assert "is being trained by another process" in shown
        assert "Traceback" not in shown
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


def test_a_folder_that_cannot_be_written_is_one_sentence(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        distill(settings(), tmp_path / "run")


def test_complete_run_is_left_alone(settings: Callable[..., Settings], tmp_path: Path) -> None:
    run = distill(settings(), tmp_path / "run")
    before = {f.name: (f.read_bytes(), f.stat().st_mtime_ns) for f in run.path.iterdir()}
    distill(settings(), tmp_path / "run")
    names = {name for name in before if name != "log.csv"}
    assert {f.name for f in run.path.iterdir()} == set(before)
    for name in names:
        assert before[name] == (
            (run.path / name).read_bytes(),
            (run.path / name).stat().st_mtime_ns,
        )
    assert before["log.csv"][0] == (run.path / "log.csv").read_bytes()


@pytest.mark.parametrize("change", [{"seed": 1}, {"teacher_steps": 9}, {"alpha": 0.25}])
def test_other_settings_are_refused(
    settings: Callable[..., Settings], tmp_path: Path, change: dict[str, float]
) -> None:
    distill(settings(), tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(RunError, match="other settings or other data"):
        distill(settings(**change), tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_saving_more_often_is_allowed(
    settings: Callable[..., Settings], weights: Weights, tmp_path: Path
) -> None:
    one = distill(settings(), tmp_path / "one")
    other = distill(settings(checkpoint_every=5, validate_every=7), tmp_path / "other")
    _same(weights(one.path), weights(other.path))
    distill(settings(checkpoint_every=5), tmp_path / "one")


def _options(tiny: tuple[str, ...], brains: Path, out: Path) -> list[object]:
    # No dilation, which would already refuse a student of other depth.
    return [*tiny, "--recipe=kd-mri", "--data", brains, "--out", out]


def test_resume_by_command(
    cli: Callable[..., object], tiny: tuple[str, ...], brains: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    started = cli("distill", *_options(tiny, brains, out))
    assert started.code == 0, started.err
    again = cli("distill", *_options(tiny, brains, out))
    again.check_refusal("already holds a run", "--resume")
    for agreeing in (
        ["--out", out],
        _options(tiny, brains, out),
        ["--acceleration=2", "--teacher=dccnn-d5c5", "--out", out],
        ["--set=checkpoint_every=1", "--out", out],
    ):
        resumed = cli("distill", "--resume", *agreeing)
        assert resumed.code == 0, resumed.err
    for contradicting, name in (
        (["--acceleration=3"], "mask"),
        (["--acceleration=2", "--mask-seed=4"], "mask"),
        (["--student=dccnn-d5c5"], "student"),
        (["--set=seed=3"], "seed"),
        (["--recipe=quickstart"], "recipe"),
        (["--no-baseline"], "baseline"),
        (["--contrast=T1w"], "contrast"),
    ):
        refused = cli("distill", "--resume", "--out", out, *contradicting)
        refused.check_refusal("was started with another", name)


def test_moved_data_is_found_again_and_changed_data_refused(
    cli: Callable[..., object], tiny: tuple[str, ...], brains: Path, tmp_path: Path
) -> None:
    import numpy as np

    out = tmp_path / "run"
    assert cli("distill", *_options(tiny, brains, out)).code == 0
    moved = brains.rename(tmp_path / "moved")
    cli("distill", "--resume", "--out", out).check_refusal("does not exist")
    assert cli("distill", "--resume", "--out", out, "--data", moved).code == 0
    trained = Run(out).meta["data"]["train"][0]["name"]
    pixels = np.load(moved / f"{trained}.npy")
    pixels[0, 10, 10] += 1
    np.save(moved / f"{trained}.npy", pixels)
    refused = cli("distill", "--resume", "--out", out, "--data", moved)
    refused.check_refusal("other data")


def test_volumes_in_other_parts_are_refused(
    cli: Callable[..., object], tiny: tuple[str, ...], brains: Path, tmp_path: Path
) -> None:
    split = tmp_path / "split.json"
    split.write_text('{"train": ["00"], "validation": ["01"], "test": ["02"]}')
    options = [*_options(tiny, brains, tmp_path / "run"), "--split", split]
    started = cli("distill", *options)
    assert started.code == 0, started.err
    split.write_text('{"train": ["01"], "validation": ["00"], "test": ["02"]}')
    cli("distill", "--resume", "--out", tmp_path / "run").check_refusal("other data")


def test_resume_needs_a_run(cli: Callable[..., object], tmp_path: Path) -> None:
    cli("distill", "--resume", "--out", tmp_path / "none").check_refusal("does not exist")
    (tmp_path / "folder").mkdir()
    cli("distill", "--resume", "--out", tmp_path / "folder").check_refusal("is not a run")
    (tmp_path / "folder" / "run.json").write_text('{"format": 1}')
    cli("distill", "--resume", "--out", tmp_path / "folder").check_refusal("damaged")
    (tmp_path / "folder" / "run.json").write_text('{"for')
    cli("distill", "--resume", "--out", tmp_path / "folder").check_refusal("not readable JSON")
    (tmp_path / "folder" / "run.json").write_text('{"format": 2}')
    cli("distill", "--resume", "--out", tmp_path / "folder").check_refusal("newer")
    missing = cli("distill", "--resume")
    assert missing.code == 2
    assert "--out" in missing.err
