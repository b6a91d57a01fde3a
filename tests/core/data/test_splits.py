from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdmri_edge.data.datasets import (
    BRAIN_FOLDS,
    KNOWN_SPLITS,
    PARTS,
    Split,
    VolumeFile,
    assign,
    find_parts,
    find_volumes,
    load_split,
    split_for,
)
from kdmri_edge.errors import DataError

NAMES = st.text("abc0123456789", min_size=1, max_size=3)


def files(*subjects: str) -> list[VolumeFile]:
    return [
        VolumeFile(path=Path(f"sub-{s}_T1w.npy"), name=f"sub-{s}_T1w", subject=s, contrast="T1w")
        for s in subjects
    ]


@given(st.sets(NAMES, min_size=1), st.data())
def test_a_subject_in_two_parts_is_refused_by_name(subjects: set[str], data: st.DataObject) -> None:
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for subject in sorted(subjects):
        parts[data.draw(st.sampled_from(PARTS))].append(subject)
    fair = Split(name="s", **{k: tuple(v) for k, v in parts.items()})
    assert fair.subjects == subjects

    twice = data.draw(st.sampled_from(sorted(subjects)))
    parts[data.draw(st.sampled_from(PARTS))].append(twice)
    with pytest.raises(DataError, match=rf"subject {twice} "):
        Split(name="s", **{k: tuple(v) for k, v in parts.items()})


def test_the_recorded_splits() -> None:
    brain, cardiac = KNOWN_SPLITS["brain"], KNOWN_SPLITS["cardiac"]
    assert (brain.train, brain.validation, brain.test) == (
        ("01", "03", "12"),
        ("20", "09"),
        ("04", "19"),
    )
    assert (cardiac.train, cardiac.validation, cardiac.test) == (
        ("101", "201", "301"),
        ("401",),
        ("501",),
    )


def test_folds_test_every_brain_once() -> None:
    tested = [subject for fold in BRAIN_FOLDS for subject in fold]
    assert sorted(tested) == sorted(KNOWN_SPLITS["brain"].subjects)


class TestRecognisingAFolder:
    """A recorded split is recognised by its files, whatever subjects of others are called."""

    def folder(self, tmp_path: Path, *names: str) -> Path:
        for n, name in enumerate(names):
            np.save(tmp_path / f"{name}.npy", np.full((2, 9, 9), n + 1, np.float32))
        return tmp_path

    @pytest.mark.parametrize("subjects", ["01", "01 03 04", "01 03 04 09 12 19 20", "101 201"])
    def test_names_alone_tell_nothing(self, tmp_path: Path, subjects: str) -> None:
        folder = self.folder(tmp_path, *(f"sub-{subject}_T1w" for subject in subjects.split()))
        assert split_for(find_volumes(folder)) is None
        if len(subjects.split()) < 3:
            with pytest.raises(DataError, match="need three"):
                find_parts(folder)
        else:
            parts = find_parts(folder)
            assert parts.split.name == "automatic"
            assert parts.train
            assert parts.validation
            assert parts.test

    def test_no_files(self) -> None:
        assert split_for([]) is None

    @pytest.mark.parametrize(
        ("names", "whole", "some"),
        [
            (("101", "201", "301", "401", "501"), "cardiac", "cardiac"),
            (("101", "401", "501"), None, "cardiac"),
        ],
    )
    def test_recorded_files(
        self, real_data: Path, tmp_path: Path, names: tuple[str, ...], whole: str, some: str
    ) -> None:
        for name in names:
            (tmp_path / f"sub-{name}_cine.nii.gz").symlink_to(
                real_data / "cardiac" / f"sub-{name}_cine.nii.gz"
            )
        files = find_volumes(tmp_path)
        for asked, wanted in ((True, whole), (False, some)):
            split = split_for(files, whole=asked)
            assert (split.name if split else None) == wanted

    @pytest.mark.parametrize(
        ("contrast", "name"), [("T1w", "brain"), ("FLAIR", "brain"), ("T2w", "automatic")]
    )
    def test_a_contrast_of_recorded_files(self, real_data: Path, contrast: str, name: str) -> None:
        """T2w has no validation subject of the recorded split."""
        parts = find_parts(real_data / "brain", contrast=contrast)
        assert parts.split.name == name
        assert parts.train
        assert parts.validation
        assert parts.test

    @pytest.mark.parametrize("part", ["validation", "test"])
    def test_no_part_is_empty_without_being_asked(self, tmp_path: Path, part: str) -> None:
        kept = {"validation": "sub-04_T1w", "test": "sub-09_T1w"}[part]
        folder = self.folder(tmp_path, "sub-01_T1w", "sub-03_T1w", kept)
        with pytest.raises(DataError, match=f"no volume of the {part} subjects of split 'brain'"):
            find_parts(folder, split="brain", needed=PARTS)
        file = tmp_path / "mine.toml"
        if part == "validation":
            file.write_text('train = ["01", "03"]\ntest = ["04"]')
            assert not find_parts(folder, split=str(file), needed=PARTS).validation


def test_assign_sorts_every_file_once() -> None:
    split = Split(name="s", train=("a", "b"), test=("c",))
    parts = assign(files("c", "a", "b", "a"), split)
    assert {k: [f.subject for f in v] for k, v in parts.items()} == {
        "train": ["a", "b", "a"],
        "validation": [],
        "test": ["c"],
    }


def test_subject_of_the_folder_in_no_part() -> None:
    with pytest.raises(DataError, match="Subject d is in no part"):
        assign(files("a", "d"), Split(name="s", train=("a",)))


def test_subject_of_the_split_not_in_the_folder() -> None:
    with pytest.raises(DataError, match=r"names subject b, .*Present are a\."):
        assign(files("a"), Split(name="s", train=("a", "b")))


def test_own_split_under_a_known_name_is_still_checked() -> None:
    with pytest.raises(DataError, match="names subject b"):
        assign(files("a"), Split(name="brain", train=("a", "b")))


def test_part_of_a_known_folder_is_enough() -> None:
    parts = assign(files("04"), KNOWN_SPLITS["brain"])
    assert [len(parts[part]) for part in PARTS] == [0, 0, 1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mine.toml", 'train = ["01", "sub-02"]\nvalidation = ["03"]\ntest = ["04"]'),
        ("mine.json", '{"train": ["01", "02"], "validation": ["03"], "test": ["04"]}'),
    ],
)
def test_split_file(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert load_split(path) == Split(
        name="mine", train=("01", "02"), validation=("03",), test=("04",)
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.toml", 'train = ["1"]\ntest = ["1"]', "subject 1 in both train and test"),
        ("s.toml", 'train = ["1", "1"]', "twice in train"),
        ("s.toml", 'train = ["1"]\ntrain = ["2"]', "cannot be read"),
        ("s.toml", "train = [1, 2]", "with quotes"),
        ("s.toml", 'train = "1"', "not a list"),
        ("s.toml", 'training = ["1"]', "unknown key 'training'"),
        ("s.toml", "", "names no subject"),
        ("s.json", "{", "cannot be read"),
        ("s.json", "[]", "not a table"),
        ("s.txt", "train", "neither TOML nor JSON"),
    ],
)
def test_bad_split_file(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_split(path)


def test_split_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        load_split(path)


def test_missing_split_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_split(tmp_path / "s.toml")
