"""Which volumes of a folder count as test data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdmri_bench.planning.testdata import (
    RETROSPECTIVE,
    check_same_input,
    choose_files,
    load_cases,
    run_split,
)
from kdmri_edge.data.datasets import Split
from kdmri_edge.errors import BenchError, DataError, KdmriError
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.masks import centre_block, variable_density_lines

MakeFolder = Callable[..., Path]
OWN = Split(name="mine", train=("a",), validation=("b",), test=("c", "d"))


@pytest.fixture
def folder(tmp_path: Path) -> MakeFolder:
    """Make a folder with one tiny volume per named file."""

    def make(*stems: str) -> Path:
        for index, stem in enumerate(stems):
            rng = np.random.default_rng(index)
            np.save(tmp_path / f"{stem}.npy", rng.uniform(0, 9, (2, 24, 24)).astype(np.float32))
        return tmp_path

    return make


def subjects(folder: Path, **options: Any) -> tuple[list[str], str | None]:
    files, split = choose_files(folder, **options)
    return [file.subject for file in files], split


def test_recorded_files_give_their_test_subjects(real_data: Path, tmp_path: Path) -> None:
    """Some of them are enough, under the same names; the same names alone are not."""
    for name in ("101", "401", "501"):
        file = f"sub-{name}_cine.nii.gz"
        (tmp_path / file).write_bytes((real_data / "cardiac" / file).read_bytes())
    assert subjects(tmp_path) == (["501"], "cardiac")
    np.save(tmp_path / "sub-201_cine.npy", np.ones((2, 24, 24), np.float32))
    assert subjects(tmp_path) == (["101", "201", "401", "501"], None)


def test_a_folder_that_follows_no_split_is_all_test_data(folder: MakeFolder) -> None:
    data = folder("sub-04_T1w", "sub-77_T1w")
    assert subjects(data) == (["04", "77"], None)
    assert subjects(data, own=OWN) == (["04", "77"], None)


def test_the_split_of_the_run_comes_first(folder: MakeFolder) -> None:
    data = folder("sub-a_T1w", "sub-b_T1w", "sub-c_T1w")
    assert subjects(data, own=OWN) == (["c"], "mine")
    known = Split(name="folds", train=("04",), test=("01",))
    assert subjects(folder("sub-01_T1w"), own=known)[1] is None  # a, b and c are strangers to it


def test_run_split_reads_what_a_run_recorded() -> None:
    data = {
        "split": "brain",
        "train": [{"subject": "01", "name": "x"}, {"subject": "01", "name": "y"}],
        "validation": [],
        "test": [{"subject": "04", "name": "z"}],
    }
    split = run_split({"data": data})
    assert split == Split(name="brain", train=("01",), test=("04",))
    assert run_split({}) is None


def test_named_subjects_overrule_the_split(folder: MakeFolder) -> None:
    data = folder("sub-01_T1w", "sub-04_T1w")
    assert subjects(data, subjects=["sub-01"]) == (["01"], None)
    with pytest.raises(BenchError, match="no volume of subject 99"):
        choose_files(data, subjects=["99"])


def test_contrast_filters(folder: MakeFolder) -> None:
    data = folder("sub-04_T1w", "sub-04_FLAIR")
    files, _ = choose_files(data, contrast="flair")
    assert [file.contrast for file in files] == ["FLAIR"]
    with pytest.raises(DataError, match="contrast"):
        choose_files(data, contrast="T9w")


def test_no_test_subject_is_said_with_a_remedy(folder: MakeFolder) -> None:
    with pytest.raises(BenchError, match=r"no test subject.*--subjects"):
        choose_files(folder("sub-a_T1w", "sub-b_T1w"), own=OWN)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        choose_files(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no volume"):
        choose_files(tmp_path)


def test_cases_are_at_the_matrix_of_the_mask(folder: MakeFolder) -> None:
    files, _ = choose_files(folder("sub-x_T1w"))
    mask = variable_density_lines(16, 2, centre_lines=4)
    data = load_cases(files, mask=mask, matrix=16, spec=preset("dccnn-d3c5"), split="s")
    assert data.cases[0].target.shape == (2, 16, 16)
    assert data.statement == RETROSPECTIVE
    assert data.split == "s"
    with pytest.raises(KdmriError, match="made for"):
        load_cases(files, mask=mask, matrix=20, spec=preset("dccnn-d3c5"))
    with pytest.raises(DataError, match="never"):
        load_cases(files, mask=variable_density_lines(32, 2), matrix=32, spec=preset("dccnn-d3c5"))


def test_super_resolution_is_measured_on_magnitudes(folder: MakeFolder) -> None:
    files, _ = choose_files(folder("sub-x_T1w"))
    np.save(files[0].path, np.pad(np.ones((2, 8, 8), np.float32), ((0, 0), (8, 8), (8, 8))))
    mask = centre_block((16, 16), (6, 6))
    (real,) = load_cases(files, mask=mask, matrix=16, spec=preset("dccnn-d3c5")).cases
    (magnitude,) = load_cases(files, mask=mask, matrix=16, spec=preset("vdsr-7")).cases
    assert real.zero_filled.min() < 0 <= magnitude.zero_filled.min()


def test_networks_with_different_inputs_are_refused() -> None:
    dccnn, vdsr = ("one", preset("dccnn-d3c5")), ("other", preset("vdsr-7"))
    check_same_input([dccnn, dccnn])
    with pytest.raises(BenchError, match="one and other"):
        check_same_input([dccnn, vdsr])
    with pytest.raises(BenchError, match=r"one takes 1 channel\(s\), other 2"):
        check_same_input([dccnn, ("other", replace(dccnn[1], channels=2))])
    coils = "coils", replace(dccnn[1], channels=2, coils=True)
    check_same_input([coils, coils])
    with pytest.raises(BenchError, match="coils is given several coils, one one image"):
        check_same_input([dccnn, coils])
