"""The phantom of `kdmri-edge assess`, its measures, and what is done to k-space."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_bench.assessment import phantom
from kdmri_bench.assessment.disagreement import WINDOW, local_rms, most_different
from kdmri_bench.assessment.perturbations import PERTURBATIONS
from kdmri_bench.assessment.shapes import Disc, Rectangle, drawn, sampled
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.masks import variable_density_lines

MATRIX = 120  # pixels of 2 mm
MM = phantom.FIELD_MM / MATRIX


@pytest.fixture(scope="module")
def disc() -> np.ndarray:
    radius = phantom.DISC_MM / 2 / MM
    return drawn([Disc(row=0, column=0, radius=radius, value=1.0)], MATRIX)


@settings(max_examples=20, deadline=None)
@given(
    row=st.floats(-8, 8), column=st.floats(-8, 8), size=st.floats(1, 8), side=st.integers(31, 34)
)
def test_the_sum_of_pixels_is_the_area(row: float, column: float, size: float, side: int) -> None:
    round_one = Disc(row=row, column=column, radius=size, value=2.0)
    image = drawn([round_one], side)
    assert image.sum() == pytest.approx(2 * np.pi * size**2)
    square = Rectangle(row=row, column=column, height=size, width=2 * size, value=-1.0)
    assert drawn([square, round_one], side).sum() == pytest.approx(
        2 * np.pi * size**2 - 2 * size**2
    )


def test_a_disc_lies_where_it_is_put() -> None:
    image = drawn([Disc(row=5.0, column=-7.0, radius=3.0, value=1.0)], 64)
    assert np.unravel_index(image.argmax(), image.shape)[0] in range(32 + 2, 32 + 9)
    centre = [
        float((image.sum(axis) * (np.arange(64) - 32)).sum() / image.sum()) for axis in (1, 0)
    ]
    assert centre == pytest.approx([5.0, -7.0], abs=0.3)


def test_a_perfect_disc_passes_every_test(disc: np.ndarray) -> None:
    assert phantom.uniformity_percent(disc, MM) > 99
    assert phantom.ghosting_percent(np.abs(disc), MM) < 0.1
    np.testing.assert_allclose(phantom.diameters_mm(disc, MM), phantom.DISC_MM, atol=0.5)


def test_a_shaded_disc_is_less_uniform(disc: np.ndarray) -> None:
    shading = np.linspace(0.8, 1.2, MATRIX)[:, None]
    # of the inner 80 % of 95 mm the ends of 1 cm² lie at +-70 mm: 1 +- 0.4 * 70 / 240
    assert phantom.uniformity_percent(disc * shading, MM) == pytest.approx(100 - 11.7, abs=1.0)


def test_a_ghost_along_phase_encode_is_found(disc: np.ndarray) -> None:
    ghosted = np.abs(disc) + 0.05 * np.roll(np.abs(disc), MATRIX // 2, axis=0)
    # in half of the field of view the strips above and below lie wholly within the ghost
    assert phantom.ghosting_percent(ghosted, MM) == pytest.approx(5.0, abs=0.6)


def test_blurred_holes_run_into_each_other() -> None:
    grid = phantom._Grid(matrix=240)
    shapes, places = phantom._resolution(grid)
    image = drawn(shapes, 240)
    sharp = {size: phantom.modulation(image, middles) for size, middles in places.items()}
    assert all(value > 0.1 for both in sharp.values() for value in both)
    kspace = image_to_kspace(image)
    kspace[np.abs(np.fft.fftfreq(240)) > 0.2] = 0  # phase encode loses what is below 2.5 mm
    blurred = np.abs(kspace_to_image(kspace))
    readout, phase = phantom.modulation(blurred, places[1.5])
    assert phase < 0.1 < readout


def test_spokes_are_seen_by_their_contrast() -> None:
    grid = phantom._Grid(matrix=240)

    def seen(contrast: float) -> float:
        image = drawn(phantom._spokes(grid, contrast), 240)
        draws = [np.abs(phantom._noisy(image, seed)) for seed in range(4)]
        return float(np.mean(phantom.seen_spokes(np.stack(draws), 1.0)))

    counts = [seen(contrast) for contrast in (0.0, 1.4, 5.1)]
    assert counts[0] < 0.5
    assert counts[0] < counts[1] < counts[2]
    assert counts[2] > 9


def test_regions_are_found_and_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    target = rng.uniform(0.5, 1, (2, 64, 64)).astype(np.float32)
    target[0, 0, 0] = 2.0  # the volume's maximum
    candidate, reference = target.copy(), target.copy()
    candidate[1, 20:25, 30:35] += 0.5
    reference[0, 50:55, 10:15] -= 0.2
    first, second = most_different(7, candidate, reference, target, 2)
    assert (first.volume, first.slice) == (7, 1)
    assert abs(first.row - 22) <= 2
    assert abs(first.column - 32) <= 2
    assert first.rms == pytest.approx(0.5 * 5 / WINDOW / 2, rel=1e-4)
    assert first.candidate > first.reference == 0
    assert second.slice == 0
    assert second.reference > second.candidate == 0
    assert most_different(0, target, target, target, 3) == []


def test_local_rms_of_a_constant_is_its_value() -> None:
    rms = local_rms(np.full((1, 32, 32), -3.0))
    assert rms[0, 16, 16] == pytest.approx(3.0)


@pytest.mark.parametrize("row", PERTURBATIONS, ids=lambda row: row.name)
def test_perturbations_do_what_they_say(row: object) -> None:
    assert isinstance(row, type(PERTURBATIONS[0]))
    mask = variable_density_lines(64, 4, centre_lines=6, seed=1)
    image = drawn([Disc(row=3, column=2, radius=15, value=2.0)], 64)
    kspace = sampled(image[None])
    before = kspace.copy()
    changed, another = row.change(kspace, mask, np.random.default_rng(0))
    np.testing.assert_array_equal(kspace, before)  # what is given stays
    assert changed.shape == kspace.shape
    assert changed.dtype == np.complex64
    lines = np.flatnonzero(np.abs(changed - kspace).max((0, 1, 3)) > 1e-6)
    if row.name == "none":
        assert not len(lines)
    if row.name in ("motion", "lost_lines"):
        assert len(lines) == 1  # of 16 sampled lines
        assert mask.samples[lines[0]]
        assert not another
    if row.name == "motion":  # magnitudes of k-space stay
        np.testing.assert_allclose(np.abs(changed), np.abs(kspace), atol=1e-4)
    if row.name in ("shift", "phase"):
        assert another
        np.testing.assert_allclose(np.abs(changed), np.abs(kspace), atol=1e-4)
    if row.name == "inverted":
        made = np.abs(kspace_to_image(changed))[0, 0]
        assert made[35, 34] < 0.3 * made.max()  # the middle of the disc is dark, its rim is not
        assert another
    if row.name == "noise_3":
        error = changed - kspace
        assert np.sqrt(np.mean(np.abs(error) ** 2)) == pytest.approx(
            0.03 * np.abs(image).max(), rel=0.1
        )
