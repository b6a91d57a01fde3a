"""Volumes packed for a lent machine, and what is trained there."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from kdmri_edge.data.datasets import attribution_of, find_volumes, read_found
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import BenchError, DataError
from kdmri_edge.models.checkpoint import load_checkpoint, save_checkpoint
from kdmri_edge.physics.masks import Mask, variable_density_lines
from kdmri_edge.utils.files import write_json
from maintainer.lent_gpu import STUDIES, durations, home, pack, sentence, study, unpack

BITS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("volumes")
    for seed in range(2):
        image = phantom_volume(seed, slices=3, matrix=48).image * 700
        nifti = nibabel.Nifti1Image(np.moveaxis(image, 0, -1), np.diag([2.0, 2.0, 5.0, 1.0]))
        nifti.header.set_xyzt_units("mm")
        nibabel.save(nifti, made / f"sub-0{seed + 1}_T1w.nii.gz")
    (made / "LICENSE.txt").write_text("CC BY, somebody\n")
    return made


@pytest.mark.parametrize("matrix", [None, 40])
def test_what_is_unpacked_is_what_was_packed_up_to_its_bits(
    folder: Path, tmp_path: Path, matrix: int | None
) -> None:
    file = pack(folder, tmp_path / "one.tar", matrix=48, bits=BITS)
    out = unpack(file, tmp_path / "out", matrix=matrix)
    given, found = find_volumes(folder), find_volumes(out)
    assert [one.name for one in found] == [one.name for one in given]
    assert [one.subject for one in found] == ["01", "02"]
    for before, after in zip(map(read_found, given), map(read_found, found), strict=True):
        expected = before if matrix is None else to_matrix(before, matrix)
        assert after.image.shape == expected.image.shape
        assert after.voxel_mm == pytest.approx(expected.voxel_mm)
        # resampling adds up what was rounded
        allowed = (0.5001 if matrix is None else 2.0) / (2**BITS - 1)
        assert np.abs(after.image - expected.image).max() <= allowed * before.image.max()
        path = out / f"{after.name}.nii"
        assert str(nibabel.load(path).header["descrip"]).find(before.sha256) >= 0
    assert attribution_of(out) == attribution_of(folder) == "CC BY, somebody"


def test_the_same_volumes_make_the_same_file(folder: Path, tmp_path: Path) -> None:
    files = [pack(folder, tmp_path / name, matrix=48, bits=BITS) for name in ("a.tar", "b.tar")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_networks_that_come_home_name_the_volumes_themselves(
    folder: Path, tmp_path: Path, make_run: Callable[..., Run], mask: Mask
) -> None:
    copies = unpack(pack(folder, tmp_path / "one.tar", matrix=48, bits=BITS), tmp_path / "out")
    path = make_run(tmp_path / "runs" / "a", mask, ("teacher",)).weights("teacher")
    held = load_checkpoint(path)
    data = [
        {"name": v.name, "subject": v.subject, "sha256": v.sha256}
        for v in map(read_found, find_volumes(copies))
    ]
    save_checkpoint(path, replace(held, training={**held.training, "data": data}))
    assert home(tmp_path / "runs", folder) == [path]
    named = [one["sha256"] for one in load_checkpoint(path).training["data"]]
    assert named == [read_found(file).sha256 for file in find_volumes(folder)]
    assert load_checkpoint(path).state.keys() == held.state.keys()
    assert home(tmp_path / "runs", folder) == []  # they are there
    (tmp_path / "other").mkdir()
    np.save(tmp_path / "other" / "sub-01_T1w.npy", phantom_volume(0, slices=2, matrix=48).image)
    with pytest.raises(BenchError, match="sub-02_T1w of subject 02, which"):
        home(tmp_path / "runs", tmp_path / "other")


def test_a_damaged_file_is_said_to_be_damaged(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_bytes(b"nothing of the kind" * 60)
    with pytest.raises(DataError, match="holds no packed volumes"):
        unpack(tmp_path / "no.tar", tmp_path / "out")
    whole = pack(folder, tmp_path / "one.tar", matrix=48, bits=BITS)
    content = bytearray(whole.read_bytes())
    with tarfile.open(whole) as archive:
        place = archive.getmember("sub-02_T1w.xz").offset_data
    content[place + 40] ^= 0xFF
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"sub-02_T1w in .* is damaged"):
        unpack(tmp_path / "bad.tar", tmp_path / "out")
    with pytest.raises(BenchError, match="not between 1 and 16"):
        pack(folder, tmp_path / "one.tar", matrix=48, bits=0)


def test_students_come_after_their_teachers_and_have_as_many_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("brain", "brain-256", "cardiac"):
        (tmp_path / name).mkdir()
    protocol = "kdmri_bench.reproduce.protocol"
    monkeypatch.setattr(f"{protocol}._check_subjects", lambda *_, **__: None)
    mask = variable_density_lines(240, 4.0, seed=0)
    monkeypatch.setattr(f"{protocol}.load_mask", lambda *_: mask)
    masks = tmp_path / "masks.json"
    masks.touch()
    names = [*STUDIES, "folds"]  # named twice, trained once
    pieces = study(names, tmp_path, masks, tmp_path / "out", steps=40, settings=["seed=3"])
    known: set[Path] = set()
    for piece in pieces:
        assert set(piece.after) <= known
        known.add(piece.out)
        recipe = piece.settings.recipe
        assert recipe.teacher_steps == recipe.student_steps == 40
        assert piece.settings.distilled == bool(piece.after)
    assert len(known) == len(pieces)
    assert {piece.settings.recipe.seed for piece in pieces} == {0, 1, 2}


def _run(folder: Path, began: str, *, status: str = "complete", device: str = "a GPU") -> None:
    batches = {"size": 8, "strip": 60, "flip": True}
    settings = {
        "distilled": True, "student": "dccnn-edge", "teacher": "t.safetensors", "split": "brain",
        "mask": {"name": "4x"}, "matrix": 240, "recipe": {"seed": 0, "batches": batches},
    }  # fmt: skip
    provenance = {"git": {"revision": "abc", "dirty": False}, "time_utc": began}
    ran_on = {"device": device, "precision": "float32"}
    write_json(
        folder / "run.json",
        {
            "format": 1,
            "status": status,
            "settings": settings,
            "provenance": provenance,
            "ran_on": ran_on,
        },
    )
    (folder / "log.csv").write_text(
        "stage,step,seconds\r\nattention,100,10.0\r\nimitation,100,10.0\r\nimitation,300,30.0\r\n"
    )


def test_the_report_of_trainings_side_by_side_says_how_many_and_how_fast(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no finished trainings"):
        durations(tmp_path)
    _run(tmp_path / "a", "2026-11-28T06:00:00+00:00")
    _run(tmp_path / "deep" / "b", "2026-11-28T06:00:20+00:00")  # 40 s each: a and b overlap
    _run(tmp_path / "c", "2026-11-28T06:00:50+00:00")  # b and c, too
    _run(tmp_path / "unfinished", "2026-11-28T06:00:50+00:00", status="running")
    report = durations(tmp_path)
    assert report["at_once"] == 2
    assert [(one["steps"], one["seconds"]) for one in report["trainings"]] == [(400, 40.0)] * 3
    assert sentence(report) == (
        "On one a GPU (float32) up to 2 trainings side by side: 3 networks (3 `dccnn-edge`) of 400"
        " steps took 0.7 to 0.7 minutes, 100 ms a step, which makes 40 slices per second in all."
    )
    _run(tmp_path / "d", "2026-11-28T06:00:50+00:00", device="another GPU")
    with pytest.raises(BenchError, match="different devices"):
        durations(tmp_path)
