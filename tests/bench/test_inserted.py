"""Lesions that are inserted: known exactly, so that what is measured of them is known, too."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from experiments.inserted_lesions import drops, markdown, roc_svg
from kdmri_bench.assessment.inserted import (
    DROP,
    PATCH,
    Grid,
    Scene,
    area_weights,
    areas,
    disc,
    false_structures,
    find_places,
    first_drop,
    fully_sampled,
    inserted,
    make_scene,
    measure_scenes,
    patches,
    response_pairs,
    retained_contrast,
    subjects_of,
    tissue,
)
from kdmri_bench.assessment.observers import roc_area
from kdmri_bench.results.statistics import Interval
from kdmri_edge.errors import BenchError, DataError

GRID = Grid(sizes_mm=(4.0, 8.0), contrasts=(0.2,), noise=0.0, places=4)


def _head(seed: int = 0, size: int = 128) -> NDArray[np.float32]:
    """A disc of uneven tissue in air."""
    x = np.arange(size) - size // 2
    inside = np.hypot(x[:, None], x[None, :]) < 0.45 * size
    texture = np.random.default_rng(seed).normal(100, 5, (size, size))
    return np.where(inside, texture, 0).astype(np.float32)


def _scene(seed: int = 0, grid: Grid = GRID, subject: str = "a") -> Scene:
    scene = make_scene(_head(seed), 1.0, grid, peak=120.0, seed=[seed], subject=subject)
    assert scene is not None
    return scene


@settings(deadline=None, max_examples=40)
@given(diameter=st.floats(1.5, 12), pixel=st.floats(0.5, 1.5))
def test_a_disc_has_its_area(diameter: float, pixel: float) -> None:
    found = disc(diameter, pixel, 33)
    assert found.sum() * pixel**2 == pytest.approx(np.pi * diameter**2 / 4, rel=0.08)
    np.testing.assert_array_equal(found, found[::-1, ::-1])
    assert 0 <= found.min() <= found.max() <= 1
    with pytest.raises(DataError, match="does not fit"):
        disc(34 * pixel, pixel, 33)


def test_places_lie_in_tissue_and_apart() -> None:
    image = _head()
    lesions = np.zeros(image.shape, bool)
    lesions[50:60, 50:60] = True
    places = find_places(image, 1.0, largest_mm=8.0, count=4, seed=1, lesions=lesions)
    assert len(places) > 1
    np.testing.assert_array_equal(
        places, find_places(image, 1.0, largest_mm=8.0, count=4, seed=1, lesions=lesions)
    )
    away = ndimage.distance_transform_edt((image > 0) & ~lesions)
    assert all(away[tuple(place)] > 4 for place in places)
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    assert apart[apart > 0].min() >= 24
    assert not len(find_places(np.ones((64, 64)), 1.0, largest_mm=60.0, count=4))
    assert not tissue(np.zeros((16, 16)), 1.0).any()
    blank = np.zeros((64, 64), np.float32)
    assert make_scene(blank, 1.0, GRID, peak=1.0, seed=[0], subject="a") is None


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 99), size=st.sampled_from([3.0, 4.0, 8.0]), contrast=st.floats(0.01, 1))
def test_what_is_inserted_is_retained_by_the_identity(
    seed: int, size: float, contrast: float
) -> None:
    scene = _scene(seed)
    absent = patches(fully_sampled(inserted(scene, 0.0, 0.0)), scene)
    present = patches(fully_sampled(inserted(scene, size, contrast)), scene)
    profile = disc(size, 1.0, PATCH)
    found = retained_contrast(present, absent, profile, contrast)
    np.testing.assert_allclose(found, 1.0, atol=2e-3)
    scaled = retained_contrast(3 * present, 3 * absent, profile, contrast)
    np.testing.assert_allclose(scaled, 3 * found)
    blurred = ndimage.gaussian_filter(present - absent, (0, 1.5, 1.5))
    assert (retained_contrast(blurred, np.zeros_like(blurred), profile, contrast) < 1).all()


def test_dark_lesions_are_turned_bright() -> None:
    scene = make_scene(_head(), 1.0, GRID, peak=120.0, seed=[0], subject="a", contrast="T1w")
    assert scene is not None
    image = inserted(scene, 4.0, 0.2).real
    assert image[tuple(scene.places[0])] < scene.image[tuple(scene.places[0])]
    found = retained_contrast(
        patches(image, scene), patches(scene.image, scene), disc(4.0, 1.0, PATCH), 0.2
    )
    np.testing.assert_allclose(found, 1.0, atol=2e-3)


@settings(deadline=None, max_examples=25)
@given(count=st.integers(2, 12), seed=st.integers(0, 99))
def test_areas_of_all_places_are_the_area(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    absent, present = random.normal(size=count), random.normal(0.5, 1, count)
    pairs = (present[:, None] > absent[None, :]).astype(float)
    weights = area_weights(["a", "b"] * count, 50, 0)[:, :count]
    weights = weights[weights.sum(1) > 0]
    found = areas(pairs, np.ones_like(pairs), weights)
    assert found[0] == pytest.approx(roc_area(absent, present))
    assert ((found >= 0) & (found <= 1)).all()
    assert len(area_weights(["a"] * 3, 50, 0)) == 1


def test_too_few_places_leave_the_hotelling_observer_out() -> None:
    random = np.random.default_rng(0)
    few = random.normal(size=(8, PATCH, PATCH))
    assert set(response_pairs(few, few + 1, disc(4.0, 1.0, PATCH), 1.0)) == {"NPWE"}
    many = random.normal(size=(40, PATCH, PATCH))
    signal = disc(8.0, 1.0, PATCH)
    found = response_pairs(many, many[::-1] + 3 * signal, signal, 1.0)
    assert set(found) == {"NPWE", "CHO"}
    for pairs, counted in found.values():
        assert areas(pairs, counted, np.ones((1, 40)))[0] > 0.95
        same = response_pairs(many, many, signal, 1.0)["NPWE"]
    assert areas(*same, np.ones((1, 40)))[0] == 0.5


def test_false_structures() -> None:
    scene = _scene()
    assert false_structures(scene.image, scene, 0.05) == 0
    wrong = scene.image.copy()
    spot = 0.3 * 100 * disc(4.0, 1.0, 5)
    wrong[58:63, 68:73] += spot.astype(np.float32)
    wrong[68:73, 48:53] -= spot.astype(np.float32)  # what is lost is no false lesion
    assert false_structures(wrong, scene, 0.2) == 1
    assert false_structures(wrong, scene, 0.5) == 0


def test_noise_hides_lesions_and_scenes_agree() -> None:
    grid = Grid(sizes_mm=(3.0, 8.0), contrasts=(0.1,), noise=0.1, places=6)
    scenes = [_scene(n, grid, "ab"[n % 2]) for n in range(8)]
    subjects = subjects_of(scenes)
    weights = area_weights(subjects, 50, 0)
    counted: list[int] = []
    found = measure_scenes(scenes, grid, fully_sampled, weights, advance=counted.append)
    assert sum(counted) == len(scenes) * 3
    small, large = (found.area("NPWE", (size, 0.1)).value or 0 for size in grid.sizes_mm)
    assert 0.5 < small < large
    assert found.contrast((8.0, 0.1)).value == pytest.approx(1.0, abs=1e-3)
    behind = found.behind(found, "NPWE", (3.0, 0.1))
    assert (behind.value, behind.low, behind.high) == (0, 0, 0)
    assert set(found.false) == {0.05, 0.1, 0.2}
    odd = make_scene(_head(1), 2.0, grid, peak=120.0, seed=[1], subject="a")
    if odd is not None:
        with pytest.raises(DataError, match="one resolution"):
            measure_scenes([scenes[0], odd], grid, fully_sampled, weights)


def test_where_a_student_falls_behind() -> None:
    def at(value: float) -> Interval:
        return Interval(value=value, low=None, high=None)

    assert first_drop({2.0: at(-0.05), 4.0: at(-DROP), 8.0: at(-0.01)}) == 4.0
    assert first_drop({2.0: at(0.0), 4.0: at(0.1)}) is None


def test_the_record_is_told_in_sentences_and_a_plot() -> None:
    value = {"value": 0.8, "low": 0.7, "high": 0.9}
    rows = [
        {"network": key, "size_mm": size, "contrast": 0.1, "retained": value,
         "area": {"NPWE": value, "CHO": value}}
        for key in ("fully sampled", "zero-filled", "t fp32", "s fp32", "s int8")
        for size in (2.0, 4.0)
    ]  # fmt: skip
    drop = {"network": "s fp32", "observer": "CHO", "contrast": 0.1, "size_mm": None,
            "worst_size_mm": 2.0, "worst": {"value": -0.01, "low": -0.02, "high": 0.0}}  # fmt: skip
    report = {
        "grid": {"sizes_mm": [2.0, 4.0], "contrasts": [0.1], "noise": 0.02, "seed": 0},
        "places": [{
            "mask": {"name": "m"}, "teacher": "t", "networks": [{"name": "t"}, {"name": "s"}],
            "rows": rows, "scenes": 2, "places": 9, "subjects": ["a"], "drops": [drop],
            "false": {"s fp32": {"0.1": 3}},
        }],
        "method": "M.", "contrast": "FLAIR", "caution": "", "statement": "S.",
    }  # fmt: skip
    assert "| m | `s`, fp32 | 10% | none | -0.010 at 2 mm (-0.020 to +0.000) |" in drops(report)
    text = markdown(report)
    assert "| s fp32 | 1.5 |" in text
    assert "0.800 (0.800), 0.80" in text
    drawing = roc_svg(report)
    assert drawing.count("<polyline") == 5
    assert "NaN" not in drawing


def _drawn(*students: str) -> dict[str, str]:
    """Draw a teacher and students, the last at a second mask too; return the legend's colours."""
    value = {"value": 0.8, "low": None, "high": None}
    places = [
        {
            "mask": {"name": "m"}, "teacher": "t@a",
            "networks": [],
            "rows": [
                {
                    "network": f"{name} fp32", "size_mm": size, "contrast": 0.1,
                    "area": {"CHO": value},
                }
                for name in names for size in (2.0, 4.0)
            ],
        }
        for names in (["t@a", *(f"{one}@a" for one in students)], [f"{students[-1]}@b"])
    ]  # fmt: skip
    text = roc_svg({"grid": {"sizes_mm": [2.0, 4.0], "contrasts": [0.1]}, "places": places})
    lines = re.findall(r'stroke="(#\w+)" stroke-width="1.8"><title>([^<]+)', text)
    legend = re.findall(r'stroke="(#\w+)" stroke-width="2.5"/><text[^>]*>([^<]+)', text)
    by_title = {title: colour for colour, title in legend}
    for colour, title in lines:
        name = title.partition("@")[0]
        assert by_title["t (teacher)" if name == "t" else name] == colour
    return by_title


def test_a_network_has_its_own_colour_at_every_mask() -> None:
    students = list("abcdef")
    assert len(set(_drawn(*students).values())) == 1 + len(students)
    with pytest.raises(BenchError, match="tells 6 students apart, not 7"):
        _drawn(*students, "g")
