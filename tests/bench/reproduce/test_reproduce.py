"""`kdmri-edge reproduce` on tiny volumes: equal steps, the same table after interruptions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from kdmri_bench.commands.reproduce import reproduce as command
from kdmri_bench.reproduce import protocol, work
from kdmri_bench.reproduce.protocol import NETWORKS, TRAININGS, CaseSpec, plan
from kdmri_bench.reproduce.run import reproduce
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.distillation.engine import Engine
from kdmri_edge.distillation.log import StageProgress
from kdmri_edge.errors import BenchError, DataError, KdmriError, MaskError, RunError

STEPS = 4
SMALL = (
    "batches.size=2",
    "batches.strip=16",
    "validate_every=2",
    "precision=f32",
    "batches.whole_slices=0.0",
)


class _PowerCut(BaseException):
    """Not an Exception, so that nothing on the way can swallow it."""


@pytest.fixture
def brains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recorded split's subjects as phantoms of 48 x 48."""
    task = replace(protocol.TASKS["brain"], matrix=48, paper_masks=None)
    monkeypatch.setitem(protocol.TASKS, "brain", task)
    folder = tmp_path / "brain"
    folder.mkdir()
    for number, subject in enumerate(("01", "03", "04", "09", "12", "19", "20")):
        volume = phantom_volume(number, slices=3, matrix=48)
        np.save(folder / f"sub-{subject}_ses-1_T1w.npy", volume.image)
    return folder


@pytest.fixture
def engine() -> Iterator[Engine]:
    """One thread wherever it trains, so that weights agree to the last bit."""
    threads = torch.get_num_threads()
    yield Engine(threads=1)
    torch.set_num_threads(threads)


def _cases(brains: Path, **changes: object) -> list[CaseSpec]:
    values = {"accelerations": (4,), "steps": STEPS, "assignments": SMALL, **changes}
    return plan("brain", brains, **values)  # type: ignore[arg-type]


def test_every_network_gets_the_same_steps_and_data(brains: Path) -> None:
    for case in _cases(brains):
        for training in TRAININGS:
            recipe = case.recipe(training)
            assert recipe.teacher_steps == recipe.student_steps == STEPS
            assert recipe.seed == case.seed
    names = [case.name for case in _cases(brains)]
    assert names == [
        "4x-brain-seed0",
        *(f"4x-brain-fold-{n}-seed0" for n in (1, 2, 3)),
    ]
    assert len(_cases(brains, accelerations=(4, 5), seeds=2)) == 10


@pytest.mark.nightly
def test_interrupted_anywhere_or_side_by_side_it_ends_with_the_same_tables(
    brains: Path, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = _cases(brains, folds=False)
    whole = reproduce(cases, tmp_path / "whole", engine=engine)
    assert whole["missing"] == []
    (group,) = whole["groups"]
    assert group["subjects"] == ["04", "19"]
    assert set(group["table"]) == {"zero-filled", *NETWORKS}
    assert group["differences"]["teacher-b"]["psnr"]["verdict"] == "inconclusive"
    real, calls = StageProgress.advance, iter(range(1000))

    def advance(self: StageProgress, step: int, loss: float) -> None:
        real(self, step, loss)
        if next(calls) % 5 == 3:
            raise _PowerCut

    measured, evaluations = work.volume_rows, iter(range(1000))

    def measure(*arguments: object) -> object:
        if next(evaluations) in (1, 4):
            raise _PowerCut
        return measured(*arguments)  # type: ignore[arg-type]

    shutil.copytree(tmp_path / "whole", tmp_path / "side")
    for training in ("kd-mri", "edge"):  # what was trained before stays
        shutil.rmtree(tmp_path / "side" / cases[0].name / training)
    side = reproduce(cases, tmp_path / "side", engine=engine, jobs=2)
    assert side["groups"] == whole["groups"]
    monkeypatch.setattr(StageProgress, "advance", advance)
    monkeypatch.setattr(work, "volume_rows", measure)
    cuts = 0
    while True:
        try:
            again = reproduce(cases, tmp_path / "cut", engine=engine)
            break
        except _PowerCut:
            cuts += 1
    assert cuts >= 5
    assert next(evaluations) == 2 + len(whole["groups"][0]["table"])  # none is measured twice
    assert again["groups"] == whole["groups"]
    for name in ("table.md", "report.csv"):
        one, *others = ((tmp_path / run / name).read_bytes() for run in ("whole", "cut", "side"))
        assert others == [one, one]
    for name in ("panel-4x.png", "curves-4x.png"):
        assert (tmp_path / "whole" / name).stat().st_size > 10_000


def test_a_report_of_what_is_there(brains: Path, tmp_path: Path) -> None:
    cases = _cases(brains, folds=False)
    report = reproduce(cases, tmp_path / "out", train=False)
    assert report["groups"] == []
    assert f"{cases[0].name}: edge" in report["missing"]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["schema"] == 1


def test_another_request_into_the_same_folder_is_refused(
    brains: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def advance(*_: object) -> None:
        raise _PowerCut  # whoever comes this far was let in

    monkeypatch.setattr(StageProgress, "advance", advance)
    first = [replace(case, steps=4) for case in _cases(brains, folds=False)]
    with pytest.raises(_PowerCut):
        reproduce(first, tmp_path / "out")
    other = [replace(case, steps=8) for case in first]
    with pytest.raises(RunError, match="steps"):
        reproduce(other, tmp_path / "out")
    # One table shows all networks of a folder, those of an earlier request, too.
    others_alone = [replace(case, wanted=("carried",)) for case in other]
    with pytest.raises(RunError, match=r"paper-teacher was trained with another .*steps"):
        reproduce(others_alone, tmp_path / "out")
    with pytest.raises(_PowerCut):
        reproduce(first, tmp_path / "out")
    np.save(brains / "sub-01_ses-1_T1w.npy", phantom_volume(99, slices=3, matrix=48).image)
    with pytest.raises(RunError, match="other volumes"):
        reproduce(first, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"accelerations": ()}, BenchError, "2 or more"),
        ({"accelerations": (1,)}, BenchError, "2 or more"),
        ({"seeds": 0}, BenchError, "seed"),
        ({"steps": 2}, BenchError, "steps"),
        ({"assignments": ("no_such=1",)}, KdmriError, "no_such"),
        ({"networks": ("teacher-b", "half")}, BenchError, "'half'.*carried-half"),
    ],
)
def test_bad_requests_are_refused_before_training(
    brains: Path, changes: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        _cases(brains, **changes)


@pytest.mark.parametrize(
    ("networks", "trainings"),
    [
        # Teacher (b) is trained alone unless one of the students of its run is wanted.
        (("teacher-b",), [("kd-mri-teacher", None)]),
        (("carried-half",), [("kd-mri-teacher", None), ("carried-half", "kd-mri-teacher")]),
        (
            ("carried-half", "plain"),
            [("kd-mri", None), ("carried-half", "kd-mri")],
        ),
        (("teacher-a", "edge"), [
            ("paper-teacher", None), ("kd-mri-teacher", None), ("edge", "kd-mri-teacher"),
        ]),
        (("carried",), [("teacher-c", None), ("carried", "teacher-c")]),
    ],
)  # fmt: skip
def test_networks_asked_for_are_trained_with_their_teachers_alone(
    brains: Path, networks: tuple[str, ...], trainings: list[tuple[str, str | None]]
) -> None:
    (case,) = _cases(brains, folds=False, networks=networks)
    assert [(one.folder, one.taught_by) for one in case.trainings] == trainings
    assert set(case.networks) == set(networks)


def test_the_report_of_a_part_of_the_networks(brains: Path, engine: Engine, tmp_path: Path) -> None:
    cases = _cases(brains, folds=False, networks=("teacher-b", "carried-half"))
    report = reproduce(cases, tmp_path / "out", engine=engine)
    assert report["missing"] == []
    (group,) = report["groups"]
    assert list(group["table"]) == ["zero-filled", "teacher-b", "carried-half"]
    psnr = {name: row["psnr"]["mean"] for name, row in group["table"].items()}
    found = group["carried_differences"]["carried-half"]["teacher-b"]["psnr"]["value"]
    assert found == pytest.approx(psnr["carried-half"] - psnr["teacher-b"])
    assert group["gap_closed"] == {}  # there is no plain student to begin at
    text = (tmp_path / "out" / "table.md").read_text()
    assert "Student dccnn-edge-half minus teacher (b), tuned" in text
    assert "--networks teacher-a,plain,kd-mri,edge,teacher-c,carried,carried-small`" in text


def test_unknown_task_missing_folder_missing_masks(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="liver"):
        plan("liver", tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        plan("brain", tmp_path / "none")
    with pytest.raises(MaskError, match="--masks"):
        plan("brain", tmp_path)
    with pytest.raises(MaskError, match=r"nowhere.*--masks"):
        plan("brain", tmp_path, masks=tmp_path / "nowhere.json")


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    shown = CliRunner().invoke(command, ["--help"]).output.splitlines()
    assert (
        "    kdmri-edge reproduce brain --data DIR --steps 2000" in shown
    )  # not wrapped into a paragraph
    arguments = ["brain", "--data", str(tmp_path), "--accelerations", "four"]
    result = CliRunner().invoke(command, arguments)
    assert isinstance(result.exception, BenchError)
    assert "four" in str(result.exception)


def test_the_command_refuses_no_jobs_before_it_makes_anything(brains: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["brain", "--data", str(brains), "--accelerations", "4", "--out", str(out)]
    result = CliRunner().invoke(command, [*arguments, "--steps", "4", "--jobs", "0"])
    assert isinstance(result.exception, BenchError)
    assert "--jobs 0" in str(result.exception)
    assert not out.exists()
