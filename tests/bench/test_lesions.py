"""Contrast of lesions: the right values, and every way in which there is none to measure."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from experiments.lesions import _rows, by_place, markdown, summary
from kdmri_bench.assessment.annotations import (
    box_mask,
    boxes_in,
    mask_beside,
    nothing_beside,
    read_boxes,
    read_mask,
    to_grid,
)
from kdmri_bench.assessment.assess import assess
from kdmri_bench.assessment.data import load
from kdmri_bench.assessment.lesions import (
    caution,
    contrasts,
    figures,
    find_sections,
    retained,
    weighted_quantile,
)
from kdmri_bench.assessment.networks import describe
from kdmri_edge.data.formats.nifti import write_nifti
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.data.volume import Volume
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import BenchError, DataError
from kdmri_edge.physics.masks import Mask

SIZE = 32


def _brain(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Two slices of tissue with a lesion of 16, one of 6 and one of 1 pixel in the first."""
    image = np.random.default_rng(seed).uniform(90, 110, (2, SIZE, SIZE)).astype(np.float32)
    image[:, :2] = 0  # air
    mask = np.zeros(image.shape, bool)
    mask[0, 10:14, 8:12] = mask[0, 20:22, 20:23] = mask[0, 5, 25] = True
    image[mask] += 60
    return image, mask


def test_sections_and_their_contrast() -> None:
    image, mask = _brain()
    found = find_sections(image, mask)
    assert [one.pixels for one in found.kept] == [16, 6]
    assert [one.is_small for one in found.kept] == [False, True]
    assert found.left_out == {"of fewer than 4 pixels": 1}
    flat = image[0].ravel()
    for one in found.kept:
        expected = flat[one.inside].mean() - flat[one.around].mean()
        assert one.contrast == pytest.approx(expected, rel=1e-5)
        # four steps around, without one step beside any lesion
        own = np.zeros(mask[0].shape, bool)
        own.flat[one.inside] = True
        ring = ndimage.binary_dilation(own, iterations=4) & ~ndimage.binary_dilation(mask[0])
        assert set(one.around) == set(np.flatnonzero(ring & (image[0] > 0)))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), factor=st.floats(0.01, 100), offset=st.floats(0, 1e3))
def test_identity_scale_and_offset(seed: int, factor: float, offset: float) -> None:
    image, mask = _brain(seed)
    kept = find_sections(image, mask).kept
    assert (retained(image, image, kept) == 1.0).all()
    # an image in another unit is compared in that unit: all of the contrast is there
    scaled = image * np.float32(factor)
    again = find_sections(scaled, mask).kept
    np.testing.assert_allclose(retained(scaled, scaled, again), 1.0)
    np.testing.assert_allclose(contrasts(scaled, kept), factor * contrasts(image, kept), rtol=1e-3)
    np.testing.assert_allclose(retained(image, image + np.float32(offset), kept), 1.0, rtol=1e-3)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), width=st.floats(0.5, 3))
def test_blur_loses_contrast(seed: int, width: float) -> None:
    image, mask = _brain(seed)
    kept = find_sections(image, mask).kept
    blurred = ndimage.gaussian_filter(image, (0, width, width))
    assert (retained(image, blurred, kept) < 1).all()


def test_dark_lesions_keep_their_sign() -> None:
    image, mask = _brain()
    image[mask] -= 110
    kept = find_sections(image, mask).kept
    assert all(one.contrast < 0 for one in kept)
    assert (retained(image, image, kept) == 1.0).all()
    assert retained(image, 200 - image, kept) == pytest.approx(-1.0)


def test_what_cannot_be_measured_has_a_reason() -> None:
    image, mask = _brain()
    assert find_sections(image, np.zeros_like(mask)).kept == ()
    flat = find_sections(np.ones_like(image), mask)
    assert flat.kept == ()
    assert flat.left_out["of a contrast below 5% of the surroundings"] == 2
    alone = find_sections(np.where(mask, image, 0), mask)
    assert alone.kept == ()
    assert alone.left_out["without surroundings"] == 2
    with pytest.raises(DataError, match="own grid"):
        find_sections(image, mask[:, 1:])
    kept = find_sections(image, mask).kept
    with pytest.raises(DataError, match="one volume"):
        retained(image, image[:, 1:], kept)
    with pytest.raises(DataError, match="NaN"):
        retained(image, np.where(mask, np.nan, image), kept)


@settings(deadline=None, max_examples=50)
@given(
    values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30),
    level=st.floats(0, 1),
)
def test_quantiles_of_equal_weights_are_those_of_numpy(values: list[float], level: float) -> None:
    own = np.array(values)
    found = weighted_quantile(own, np.ones((1, len(own))), level)
    np.testing.assert_allclose(found, np.quantile(own, level), atol=1e-9)


def test_figures() -> None:
    values = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    found = figures(values, list("aabbcc"), values + 0.06)
    assert found is not None
    assert found.median.value == pytest.approx(0.65)
    assert found.by_subject == {"a": pytest.approx(0.85), "b": pytest.approx(0.65),
                                "c": pytest.approx(0.45)}  # fmt: skip
    assert found.lost is not None
    assert found.lost.value == 1.0
    assert found.median.low is not None
    assert found.median.high is not None
    assert 0.4 <= found.median.low < 0.65 < found.median.high <= 0.9
    alone = figures(values, ["a"] * 6)
    assert alone is not None
    assert (alone.median.low, alone.lost) == (None, None)
    assert figures(values[:0], []) is None
    assert "One subject" in caution(1)
    assert "3 subjects" in caution(3)
    assert caution(5) == ""


def _write(path: Path, pixels: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    write_nifti(path, ImageRecord(image=pixels.astype(np.float32), affine=affine))


def test_a_mask_beside_its_volume(tmp_path: Path) -> None:
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    _, mask = _brain()
    volume = tmp_path / "sub-1_FLAIR.nii.gz"
    assert mask_beside(volume) is None
    _write(tmp_path / "sub-1_lesions.nii.gz", mask, affine)
    beside = mask_beside(volume)
    assert beside is not None
    np.testing.assert_array_equal(read_mask(beside, mask.shape, affine), mask)
    with pytest.raises(DataError, match="its volume has"):
        read_mask(beside, (3, SIZE, SIZE), affine)
    with pytest.raises(DataError, match=r"by up to 5\.0 mm"):
        read_mask(beside, mask.shape, affine + np.eye(4, k=3) * 5)
    _write(tmp_path / "sub-1_lesions.nii.gz", np.zeros_like(mask), affine)
    assert not read_mask(beside, mask.shape, affine).any()


def test_boxes(tmp_path: Path) -> None:
    path = tmp_path / "brain.csv"
    head = "file,slice,study_level,x,y,width,height,label\n"
    path.write_text(
        f"{head}scan,1,No,2,3,4,5,Mass\nscan,0,Yes,,,,,Normal for age\nother.h5,0,No,0,0,1,1,\n"
    )
    boxes = read_boxes(path)
    assert {name: len(own) for name, own in boxes.items()} == {"scan": 1, "other": 1}
    mask = box_mask(boxes["scan"], (2, 20, 30))
    # columns lie along H; rows are counted from the bottom
    columns, rows = np.nonzero(mask[1])
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (2, 5, 22, 26)
    assert not mask[0].any()
    with pytest.raises(DataError, match="lies outside"):
        box_mask(boxes["scan"], (2, 5, 30))
    for row, said in (
        ("scan,1,No,2,3,0,5,Mass", "makes no box"),
        ("scan,1,No,2,b,1,5,M", "line 2"),
    ):
        path.write_text(f"{head}{row}\n")
        with pytest.raises(DataError, match=said):
            read_boxes(path)
    path.write_text("file,slice,label\n")
    with pytest.raises(DataError, match="no column 'x'"):
        read_boxes(path)


def test_tables_that_hold_no_box_of_a_volume_are_named(tmp_path: Path) -> None:
    volume = tmp_path / "sub-1_FLAIR.nii.gz"
    table = tmp_path / "boxes.csv"
    assert (
        nothing_beside(None) == nothing_beside(volume) == "nothing beside it says where lesions are"
    )
    table.write_text("file;slice;x;y;width;height;label\nsub-1_FLAIR;0;1;1;2;2;\n")
    assert boxes_in(tmp_path) == {}
    assert "boxes.csv has no columns file, slice, x" in nothing_beside(volume)
    table.write_text("file,slice,x,y,width,height,label\nsub-1,0,1,1,2,2,\n")
    assert "boxes.csv has boxes of sub-1, not of sub-1_FLAIR" in nothing_beside(volume)
    (tmp_path / "folder.csv").mkdir()  # no table
    assert list(boxes_in(tmp_path)) == ["sub-1"]
    table.write_text("x,slice,y,width,height,label,file\n1\n")  # cut off within a row
    with pytest.raises(DataError, match="line 2"):
        boxes_in(tmp_path)


def test_masks_alone_are_no_volumes(tmp_path: Path) -> None:
    _write(tmp_path / "sub-1_lesions.nii.gz", np.ones((2, SIZE, SIZE), bool), np.eye(4))
    with pytest.raises(BenchError, match=r"sub-1_lesions\.nii\.gz is a mask of lesions"):
        load(tmp_path, describe("dccnn-d3c5@brain-4x")[0])


@settings(deadline=None, max_examples=20)
@given(old=st.integers(8, 20), new=st.integers(6, 24), seed=st.integers(0, 99))
def test_masks_go_where_their_volumes_go(old: int, new: int, seed: int) -> None:
    """A mask is brought to a matrix as the image of the same block is."""
    block = np.zeros((1, 2 * old, 2 * old), bool)
    top = seed % old
    block[0, top : top + 6, old - 3 : old + 3] = True
    volume = Volume(image=block.astype(np.float32), name="a", subject="a", voxel_mm=(1, 1, 1))
    matrix = min(2 * new, 2 * old)
    moved = to_matrix(volume, matrix)
    grid = to_grid(block, (matrix, matrix), volume.voxel_mm, moved.voxel_mm)
    centre = ndimage.center_of_mass(moved.image[0])
    np.testing.assert_allclose(ndimage.center_of_mass(grid[0]), centre, atol=1.0)
    padded = to_grid(block, (2 * old + 6, 2 * old + 6), None, None)
    assert padded.sum() == block.sum()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantoms with lesions beside them, one with an empty mask."""
    place = tmp_path_factory.mktemp("volumes")
    for seed in range(3):
        volume = phantom_volume(seed, slices=2, matrix=SIZE)
        image, mask = volume.image.copy(), np.zeros(volume.image.shape, bool)
        mask[0, 14:18, 14:18] = mask[1, 12:14, 12:14] = seed > 0
        image[mask] *= 1.5
        _write(place / f"sub-{seed}_FLAIR.nii.gz", image, np.eye(4))
        _write(place / f"sub-{seed}_lesions.nii.gz", mask, np.eye(4))
    return place


def test_the_section_of_an_assessment(
    folder: Path, make_run: Callable[..., Run], mask: Mask, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", mask, ("teacher", "student"))
    done = assess(run, folder, in_pytorch=True, int8=False, sections=["lesions"])
    section = done.section("lesions")
    assert section is not None
    assert section.reason is None
    whole = {m.network: m for m in section.measures if m.name == "retained_all" and not m.against}
    assert len(whole) == 3  # zero-filled images, teacher and student
    assert all(m.value is not None and m.subjects == 2 for m in whole.values())
    against = [m for m in section.measures if m.against]
    assert {m.name for m in against} == {"retained_all", "retained_small"}
    assert any("sub-0_FLAIR is left out: it has no lesion" in text for text in section.findings)
    assert any("2 subjects" in text for text in section.findings)


def test_a_mask_that_does_not_fit_is_found_out_first(
    folder: Path, make_run: Callable[..., Run], mask: Mask, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("sub-1_FLAIR.nii.gz", "sub-2_FLAIR.nii.gz"):
        shutil.copyfile(folder / name, data / name)
    _write(data / "sub-2_lesions.nii.gz", np.ones((2, SIZE, SIZE - 1), bool), np.eye(4))
    run = make_run(tmp_path / "run", mask, ("student",))
    report = tmp_path / "report"
    for section in ("lesions", "inserted"):
        with pytest.raises(DataError, match=r"sub-2_lesions.*2 x 32 x 31 voxels"):
            assess(run, data, in_pytorch=True, int8=False, sections=[section], out=report)
    assert not report.exists()
    done = assess(run, data, in_pytorch=True, int8=False, sections=["volumes"])
    assert [section.reason for section in done.sections] == [None]


def test_no_lesions_at_all(make_run: Callable[..., Run], mask: Mask, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", mask, ("student",))
    volume = replace(phantom_volume(1, slices=1, matrix=SIZE), name="one")
    done = assess(run, [volume], in_pytorch=True, int8=False, sections=["lesions"])
    section = done.section("lesions")
    assert section is not None
    assert section.reason is not None
    assert "one: nothing beside it says where lesions are" in section.reason
    assert not section.measures


def test_the_record_in_tables() -> None:
    values = {
        "zero-filled": [0.4, 0.5, 0.6, 0.5],
        "t fp32": [0.9, 0.9, 0.9, 0.8],
        "s fp32": [0.8, 0.9, 0.9, 0.8],
        "s int8": [0.7, 0.8, 0.9, 0.8],
    }
    small, odd = np.array([True, False, True, False]), np.array([True, True, False, False])
    rows = _rows(values, list("aabb"), small, odd, "t fp32", 0)
    assert len(rows) == 2 * 2 * len(values)
    networks = [
        {"key": key, "name": key[0], "precision": key[2:]} for key in list(values)[1:]
    ]  # fmt: skip
    place = {
        "place": "brain-4x", "mask": {"name": "m"}, "teacher": "t", "networks": networks,
        "rows": rows, "volumes": [{"subject": "a"}, {"subject": "b"}], "left_out": {"tiny": 3},
    }  # fmt: skip
    report = {
        "places": [place], "definition": "D.", "contrast": "FLAIR", "caution": "", "statement": "S."
    }  # fmt: skip
    text = markdown(report)
    assert "| m | `s`, int8 (student) | 0.800 (" in text
    assert "Left out: 3 tiny." in text
    assert "| m | at most 12 pixels (1) | `s`, fp32 (student) | 0.800 [0.80] | 100.0 |" in text
    lines = summary(report).splitlines()
    assert lines[:4] == [
        "| network | brain-4x |", "|---|---:|", "| zero-filled | 0.50, 0.50 |",
        "| `t` (teacher) | 0.90, 0.90 (float32 alone) |",
    ]  # fmt: skip
    assert "| `s` | 0.85, 0.85; int8 0.80, 0.80 |" in lines
    rows += [{**row, "network": "t int8"} for row in rows if row["network"] == "t fp32"]
    networks.append({"key": "t int8", "name": "t", "precision": "int8"})
    assert "| `t` (teacher) | 0.90, 0.90 |" in summary(report).splitlines()


def test_networks_are_grouped_by_mask() -> None:
    places = by_place()
    assert [own[0].partition("@")[2] for own in places] == [
        "brain-4x", "brain-5x", "brain-8x", "brain-any-mask",
    ]  # fmt: skip
    assert by_place(["dccnn-d3c5@brain-8x"]) == [["dccnn-d3c5@brain-8x"]]
    with pytest.raises(BenchError, match="no brain network"):
        by_place(["vdsr-7@brain-sr"])
