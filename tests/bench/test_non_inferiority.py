"""Students against their teachers: pooled folds, averaged seeds, and what would be unfair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import non_inferiority
from experiments.non_inferiority import CaseRequest, compare, markdown
from kdmri_bench.reproduce.work import reconstruct
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import BenchError
from kdmri_edge.models.checkpoint import load_checkpoint, save_checkpoint
from kdmri_edge.physics.masks import Mask, random_lines
from kdmri_edge.utils.files import sha256_file, write_json

SUBJECTS = ("01", "03", "04", "09", "12", "19", "20")


@pytest.fixture
def brains(tmp_path: Path) -> Path:
    folder = tmp_path / "brain"
    folder.mkdir()
    for number, subject in enumerate(SUBJECTS):
        volume = phantom_volume(number, slices=2, matrix=32)
        np.save(folder / f"sub-{subject}_ses-1_T1w.npy", volume.image)
    return folder


@pytest.fixture
def network(make_run: Callable[..., Run], mask: Mask, tmp_path: Path) -> Callable[..., str]:
    """Makes a checkpoint of a split, whose weights are as they were or all of them scaled."""
    run = make_run(tmp_path / "run", mask, ("student",))

    def make(name: str, split: str, *, scale: float = 1.0, **more: Any) -> str:
        held = load_checkpoint(run.weights("student"))
        state = {key: value * scale for key, value in held.state.items()}
        elsewhere = [{"subject": "of another folder", "sha256": "0" * 64}]
        training = {**held.training, "split": split, "data": elsewhere, **more}
        path = tmp_path / f"{name}.safetensors"
        save_checkpoint(path, replace(held, state=state, training=training))
        return str(path)

    return make


def _request(brains: Path, title: str, teachers: str, *students: str) -> CaseRequest:
    return CaseRequest(title=title, data=brains, teachers=(teachers,), students=students)


def test_folds_are_pooled_and_judged(brains: Path, network: Callable[..., str]) -> None:
    folds = [f"brain-fold-{number}" for number in (1, 2, 3)]
    report = compare(
        [_request(brains, "folds", network(f"t-{f}", f), network(f"s-{f}", f)) for f in folds]
    )
    (case,) = report["cases"]
    assert case["subjects"] == list(SUBJECTS)  # everyone once
    assert case["volumes"] == 7
    found = case["teachers"][0]["student_minus_teacher"]
    assert found["psnr"] == {"value": 0, "low": 0, "high": 0, "verdict": "non-inferior"}
    assert ": non-inferior" in markdown(report)


def test_a_worse_student_is_inferior_and_seeds_are_averaged(
    brains: Path, network: Callable[..., str]
) -> None:
    folds = [f"brain-fold-{number}" for number in (1, 2, 3)]
    requests = [
        _request(
            brains, "folds", network(f"t-{f}", f),
            network(f"a-{f}", f), network(f"b-{f}", f, scale=20.0),
        )
        for f in folds
    ]  # fmt: skip
    (case,) = compare(requests)["cases"]
    teacher = case["teachers"][0]["figures"]["psnr"]["mean"]
    seeds = [one["psnr"]["mean"] for one in case["student"]["seeds"]]
    assert seeds[0] == pytest.approx(teacher)
    assert case["student"]["figures"]["psnr"]["mean"] == pytest.approx(np.mean(seeds))
    found = case["teachers"][0]["student_minus_teacher"]["psnr"]
    assert found["value"] == pytest.approx(np.mean(seeds) - teacher)
    assert found["value"] < -0.1
    assert found["verdict"] == "inferior"


def test_what_a_network_was_trained_with_is_named(
    brains: Path, network: Callable[..., str]
) -> None:
    adam = network("adam", "brain", steps={"teacher": 30})
    recipe = {"optim": {"optimizer": "muon"}}
    muon = network("muon", "brain", steps={"imitation": 20}, recipe=recipe)
    table = markdown(compare([_request(brains, "fixed", adam, muon)]))
    assert ", 20 steps with Muon: " in table
    assert ", 30 steps: " in table


def test_few_subjects_get_no_verdict(brains: Path, network: Callable[..., str]) -> None:
    one = network("one", "brain")
    report = compare([_request(brains, "fixed", one, one)])
    (case,) = report["cases"]
    assert case["subjects"] == ["04", "19"]
    assert case["teachers"][0]["student_minus_teacher"]["psnr"]["verdict"] == "inconclusive"


def test_a_recorded_teacher_is_found_by_its_mask_split_and_volumes(
    brains: Path, network: Callable[..., str], tmp_path: Path, mask: Mask
) -> None:
    one = network("one", "brain")
    files = [brains / f"sub-{subject}_ses-1_T1w.npy" for subject in ("19", "04")]
    # In another order than the folder's: what counts is the volume.
    rows = [
        {"sha256": sha256_file(file), "psnr": 10.0 * n, "ssim": 0.1 * n, "nmse": 1.0, "hfn": 1.0}
        for n, file in enumerate(files, start=1)
    ]
    recorded = tmp_path / "report.json"
    own = {"mask": mask.name, "splits": ["brain"], "rows": {"teacher-b": rows}}
    # The same volumes stand there under other masks and of other splits.
    others = [{**row, "psnr": 99.0} for row in rows]
    strange = [{**own, "rows": {"teacher-b": others}, **key} for key in (
        {"mask": "another"}, {"splits": ["brain-fold-1"]},
    )]  # fmt: skip
    write_json(recorded, {"groups": [*strange, own]})
    report = compare([_request(brains, "fixed", f"{recorded}:teacher-b", one)])
    (case,) = report["cases"]
    (teacher,) = case["teachers"]
    assert [row["psnr"] for row in teacher["rows"]] == [20.0, 10.0]
    pairs = zip(case["student"]["rows"], teacher["rows"], strict=True)
    value = np.mean([ours["psnr"] - theirs["psnr"] for ours, theirs in pairs])
    assert teacher["student_minus_teacher"]["psnr"]["value"] == pytest.approx(value)
    write_json(recorded, {"groups": [*strange, {**own, "rows": {"teacher-b": rows[:1]}}]})
    with pytest.raises(BenchError, match="no figures of 'teacher-b' for all"):
        compare([_request(brains, "fixed", f"{recorded}:teacher-b", one)])


def test_what_would_be_unfair_is_refused(
    brains: Path, network: Callable[..., str], tmp_path: Path
) -> None:
    one, other = network("one", "brain"), network("other", "brain-fold-1")
    with pytest.raises(BenchError, match=r"split 'brain-fold-1'.*'brain'"):
        compare([_request(brains, "x", other, one)])
    # the volume itself, and the same subject in a file that was written anew
    for seen in (
        {"sha256": sha256_file(brains / "sub-04_ses-1_T1w.npy")},
        {"subject": "04", "sha256": "0" * 64},
    ):
        with pytest.raises(BenchError, match="trained on a volume or subject that it would be"):
            compare([_request(brains, "x", one, network("leak", "brain", data=[seen]))])
    with pytest.raises(BenchError, match="does not say on which volumes"):
        compare([_request(brains, "x", one, network("silent", "brain", data=[]))])
    with pytest.raises(BenchError, match="'x' test a volume twice"):
        compare([_request(brains, "x", one, one)] * 2)
    held = load_checkpoint(Path(one))
    masked = tmp_path / "mask.safetensors"
    save_checkpoint(masked, replace(held, mask=random_lines(32, 2.0, seed=1)))
    with pytest.raises(BenchError, match="another mask"):
        compare([_request(brains, "x", str(masked), one)])
    with pytest.raises(BenchError, match="different numbers of networks"):
        compare([_request(brains, "x", one, one), _request(brains, "x", one, one, one)])


def test_a_teacher_of_several_cases_is_measured_once(
    brains: Path, network: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def counted(weights: Path, cases: Any) -> Any:
        measured.append(weights.stem)
        return reconstruct(weights, cases)

    monkeypatch.setattr(non_inferiority, "reconstruct", counted)
    teacher, other = network("teacher", "brain-fold-1"), network("other", "brain-fold-2")
    requests = [
        _request(brains, "first", teacher, network("one", "brain-fold-1", scale=1.1)),
        _request(brains, "second", teacher, network("two", "brain-fold-1", scale=1.2)),
        # other volumes are measured for themselves
        _request(brains, "third", other, network("three", "brain-fold-2", scale=1.1)),
    ]
    first, second, third = compare(requests)["cases"]
    assert measured == ["teacher", "one", "two", "other", "three"]
    assert first["teachers"][0]["rows"] == second["teachers"][0]["rows"]
    assert first["subjects"] == second["subjects"] != third["subjects"]
    assert first["student"]["rows"] != second["student"]["rows"]
