from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdmri_edge.data.datasets import KNOWN_SPLITS, assign, find_volumes, load_volumes, split_for
from kdmri_edge.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("sub-02_ses-1_T1w", "sub-01_ses-1_T2w", "sub-01_ses-1_T1w", "plain"):
        np.save(tmp_path / f"{name}.npy", np.ones((2, 8, 8), np.float32))
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / "README.md").write_text("read me")
    (tmp_path / ".hidden.npy").write_bytes(b"rubbish")
    (tmp_path / "deeper").mkdir()
    np.save(tmp_path / "deeper" / "sub-09_T1w.npy", np.ones((2, 8, 8)))
    return tmp_path


def test_finds_what_readers_know_in_order(folder: Path) -> None:
    files = find_volumes(folder)
    assert [f.name for f in files] == [
        "plain",
        "sub-01_ses-1_T1w",
        "sub-01_ses-1_T2w",
        "sub-02_ses-1_T1w",
    ]
    assert [(f.subject, f.contrast) for f in files[:2]] == [("plain", None), ("01", "T1w")]


@pytest.mark.parametrize("contrast", ["T1w", "t1W"])
def test_contrast_in_any_case(folder: Path, contrast: str) -> None:
    assert [f.subject for f in find_volumes(folder, contrast)] == ["01", "02"]


def test_masks_of_lesions_beside_volumes_are_no_volumes(tmp_path: Path) -> None:
    """They would be trained, calibrated and measured on like images."""
    np.save(tmp_path / "sub-01_lesions.npy", np.ones((2, 8, 8), np.float32))
    assert [f.name for f in find_volumes(tmp_path)] == ["sub-01_lesions"]  # nothing else is meant
    np.save(tmp_path / "sub-01_FLAIR.npy", np.ones((2, 8, 8), np.float32))
    assert [f.name for f in find_volumes(tmp_path)] == ["sub-01_FLAIR"]
    assert [f.name for f in find_volumes(tmp_path, "lesions")] == ["sub-01_lesions"]
    assert [f.name for f in find_volumes(tmp_path / "sub-01_lesions.npy")] == ["sub-01_lesions"]
    with pytest.raises(DataError, match=r"Present are FLAIR\.$"):
        find_volumes(tmp_path, "T1w")


def test_single_file_is_a_folder_of_one(folder: Path) -> None:
    file = folder / "sub-02_ses-1_T1w.npy"
    assert [f.path for f in find_volumes(file)] == [file]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        find_volumes(tmp_path / "absent")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no volume") as caught:
        find_volumes(tmp_path)
    assert ".nii.gz" in caught.value.remedy


def test_folder_of_notes_only(tmp_path: Path) -> None:
    (tmp_path / "LICENSE.txt").write_text("free")
    with pytest.raises(DataError, match="holds no volume"):
        find_volumes(tmp_path)


def test_file_of_another_kind(folder: Path) -> None:
    with pytest.raises(DataError, match="no reader knows"):
        find_volumes(folder / "README.md")


def test_unknown_contrast_names_those_present(folder: Path) -> None:
    with pytest.raises(DataError, match=r"'FLAIR'.*T1w, T2w"):
        find_volumes(folder, "FLAIR")


def test_contrast_where_names_tell_none(folder: Path) -> None:
    with pytest.raises(DataError, match="tell no contrast"):
        find_volumes(folder / "plain.npy", "T1w")


def test_load_brings_all_to_one_matrix(folder: Path) -> None:
    np.save(folder / "sub-03_T1w.npy", np.ones((1, 9, 12)))
    volumes = load_volumes(find_volumes(folder), 8)
    assert {v.matrix for v in volumes} == {(8, 8)}
    assert [v.name for v in volumes] == [f.name for f in find_volumes(folder)]


def test_load_stops_at_a_bad_file_and_names_it(folder: Path) -> None:
    np.save(folder / "sub-03_T1w.npy", np.zeros((1, 9, 9)))
    with pytest.raises(DataError, match="sub-03_T1w"):
        load_volumes(find_volumes(folder), 8)


@pytest.mark.parametrize(("name", "parts"), [("brain", (17, 3, 6)), ("cardiac", (3, 1, 1))])
def test_real_folders_follow_their_known_split(
    real_data: Path, name: str, parts: tuple[int, int, int]
) -> None:
    files = find_volumes(real_data / name)
    split = split_for(files)
    assert split is KNOWN_SPLITS[name]
    assert tuple(len(part) for part in assign(files, split).values()) == parts
