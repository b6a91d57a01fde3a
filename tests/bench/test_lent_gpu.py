"""Volumes packed for a lent machine, and what is trained there."""

from __future__ import annotations

import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from kdmri_edge.data.datasets import attribution_of, find_volumes, read_found
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.errors import BenchError, DataError
from kdmri_edge.physics.masks import variable_density_lines
from maintainer.lent_gpu import STUDIES, pack, study, unpack

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
    pieces = study(list(STUDIES), tmp_path, masks, tmp_path / "out", steps=40, settings=["seed=3"])
    known: set[Path] = set()
    for piece in pieces:
        assert set(piece.after) <= known
        known.add(piece.out)
        recipe = piece.settings.recipe
        assert recipe.teacher_steps == recipe.student_steps == 40
        assert piece.settings.distilled == bool(piece.after)
    assert len(known) == len(pieces)
    assert {piece.settings.recipe.seed for piece in pieces} == {0, 1, 2}
