from __future__ import annotations

from pathlib import Path

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


@pytest.mark.parametrize(
    ("subjects", "name"),
    [
        (["01", "20"], "brain"),
        (["501"], "cardiac"),
        (["01", "501"], None),
        (["01", "99"], None),
        ([], None),
    ],
)
def test_recognising_a_folder(subjects: list[str], name: str | None) -> None:
    split = split_for(subjects)
    assert (split.name if split else None) == name


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
