"""A folder laid out by BIDS: subjects are its sub- folders, and stay on one side of a split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdmri_edge.data.datasets import find_parts, find_volumes, load_volumes
from kdmri_edge.errors import DataError
from kdmri_edge.runtime.files import plan_jobs
from tests.core.data.written_dicom import write_series


def put(root: Path, *places: str) -> None:
    for place in places:
        path = root / f"{place}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.ones((1, 16, 16), np.float32))


def test_volumes_lie_in_anat_of_subjects_and_sessions(tmp_path: Path) -> None:
    put(
        tmp_path,
        "sub-02/ses-1/anat/sub-02_ses-1_T2w",
        "sub-02/ses-1/anat/sub-02_ses-1_T1w",
        "sub-01/anat/sub-01_T1w",
        "sub-03_T1w",
    )
    found = [(f.name, f.subject, f.contrast) for f in find_volumes(tmp_path)]
    assert found == [
        ("sub-03_T1w", "03", "T1w"),
        ("sub-01_T1w", "01", "T1w"),
        ("sub-02_ses-1_T1w", "02", "T1w"),
        ("sub-02_ses-1_T2w", "02", "T2w"),
    ]
    assert [f.subject for f in find_volumes(tmp_path, "T2w")] == ["02"]


def test_other_folders_hold_no_volumes(tmp_path: Path) -> None:
    put(
        tmp_path,
        "sub-01/anat/sub-01_T1w",
        "sub-01/func/sub-01_task-rest_bold",
        "derivatives/sub-01/anat/sub-01_T1w",
        "subjects/sub-01_T1w",
        "sub-01/anat/old/sub-01_T1w",
    )
    (tmp_path / "dataset_description.json").write_text("{}")
    assert [f.path for f in find_volumes(tmp_path)] == [tmp_path / "sub-01/anat/sub-01_T1w.npy"]


def test_files_that_do_not_tell_are_their_folders(tmp_path: Path) -> None:
    put(tmp_path, "sub-01/anat/T1w", "sub-02/anat/T1w", "sub-02/ses-a/T1w", "sub-02/ses-b/T1w")
    files = find_volumes(tmp_path)
    assert [(f.name, f.subject) for f in files] == [
        ("sub-01_T1w", "01"),
        ("sub-02_T1w", "02"),
        ("sub-02_ses-a_T1w", "02"),
        ("sub-02_ses-b_T1w", "02"),
    ]
    assert {f.contrast for f in files} == {"T1w"}
    read = [(v.name, v.subject, v.contrast) for v in load_volumes(files, 16)]
    assert read == [(f.name, f.subject, f.contrast) for f in files]


def test_a_session_is_part_of_the_name(tmp_path: Path) -> None:
    put(tmp_path, "sub-01/anat/sub-01_T1w", "sub-01/ses-2/anat/sub-01_T1w")
    assert [f.name for f in find_volumes(tmp_path)] == ["sub-01_T1w", "sub-01_ses-2_T1w"]


def test_a_file_of_another_subject_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "sub-01/anat/sub-02_T1w")
    with pytest.raises(DataError, match="named after subject 02 and lies in the folder of 01"):
        find_volumes(tmp_path)


def test_one_subjects_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "sub-01/anat/T1w", "sub-01/ses-1/anat/T1w", "sub-02/anat/T1w")
    names = ["sub-01_T1w", "sub-01_ses-1_T1w"]
    assert [f.name for f in find_volumes(tmp_path / "sub-01")] == names
    monkeypatch.chdir(tmp_path / "sub-01")
    assert [f.name for f in find_volumes(Path())] == names


def test_a_series_in_anat_is_of_the_folders_subject_and_found_once(tmp_path: Path) -> None:
    for subject in ("01", "02"):  # both say the same PatientID
        write_series(tmp_path / f"sub-{subject}/anat", np.ones((2, 16, 16), int), np.eye(4))
        write_series(tmp_path / f"sub-{subject}/ses-1/T1w", np.ones((2, 16, 16), int), np.eye(4))
    found = [(f.name, f.subject) for f in find_volumes(tmp_path)]
    assert found == [
        ("sub-01_anat", "01"),
        ("sub-01_ses-1_T1w", "01"),
        ("sub-02_anat", "02"),
        ("sub-02_ses-1_T1w", "02"),
    ]


def test_subjects_stay_on_one_side_of_a_split(tmp_path: Path) -> None:
    subjects = [f"{number:02}" for number in range(50, 62)]
    for subject in subjects:
        put(tmp_path, f"sub-{subject}/ses-1/anat/T1w", f"sub-{subject}/ses-2/anat/T2w")
        put(tmp_path, f"sub-{subject}_FLAIR")  # of the same subjects, straight in the folder
    parts = find_parts(tmp_path)
    sides = [{f.subject for f in part} for part in (parts.train, parts.validation, parts.test)]
    assert sorted(subject for side in sides for subject in side) == subjects
    assert all(sides)
    assert sum(map(len, (parts.train, parts.validation, parts.test))) == 36


def test_subjects_follow_a_split_that_is_named(tmp_path: Path) -> None:
    put(tmp_path, *(f"sub-{s}/anat/sub-{s}_T1w" for s in ("01", "20", "04")))
    parts = find_parts(tmp_path, split="brain")
    assert parts.split.name == "brain"
    assert [f.subject for f in parts.test] == ["04"]


def test_reconstructions_of_a_folder_have_names_of_their_own(tmp_path: Path) -> None:
    put(tmp_path / "bids", "sub-01/anat/T1w", "sub-02/anat/T1w")
    jobs = plan_jobs([tmp_path / "bids"], tmp_path / "out")
    assert [job.destination.name for job in jobs] == ["sub-01_T1w.npy", "sub-02_T1w.npy"]


def test_the_remedy_of_an_empty_folder_names_both_layouts(tmp_path: Path) -> None:
    (tmp_path / "sub-01" / "func").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds no volume") as caught:
        find_volumes(tmp_path)
    assert "sub-01/anat" in caught.value.remedy
