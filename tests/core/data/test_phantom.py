from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from kdmri_edge.data.case import make_case
from kdmri_edge.data.datasets import find_volumes, load_volumes
from kdmri_edge.data.phantom.contrast import CONTRASTS
from kdmri_edge.data.phantom.fields import FieldMaker, line_distance, step
from kdmri_edge.data.phantom.volumes import phantom_set, phantom_volume
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError
from kdmri_edge.physics.masks import Mask, variable_density_lines


@pytest.fixture(scope="module")
def heads() -> list[Volume]:
    return list(phantom_set(2, 6, slices=8))


def spectrum(image: np.ndarray) -> np.ndarray:
    """log10 of the radial power spectrum in eight rings up to Nyquist, relative to the first."""
    height, width = image.shape[1:]
    k = 2 * np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    power = (np.abs(np.fft.fft2(image)) ** 2).mean(axis=0)
    rings = [power[(k >= a) & (k < a + 0.125)].mean() for a in np.arange(0, 1, 0.125)]
    return np.asarray(np.log10(np.array(rings) / rings[0]))


def zero_filled_psnr(volume: Volume, mask: Mask) -> float:
    case = make_case(volume, mask)
    error = np.mean((case.target - case.zero_filled) ** 2)
    return float(10 * np.log10(case.target.max() ** 2 / error))


class TestDraw:
    def test_same_seed_same_head(self) -> None:
        one, two = phantom_volume(4, slices=3, matrix=64), phantom_volume(4, slices=3, matrix=64)
        np.testing.assert_array_equal(one.image, two.image)
        assert one.sha256 == two.sha256
        assert one.contrast in CONTRASTS

    def test_every_head_differs(self) -> None:
        volumes = [
            *phantom_set(4, 3, slices=2, matrix=64),
            *phantom_set(5, 3, slices=2, matrix=64),
        ]
        for a, b in itertools.combinations(volumes, 2):
            assert a.sha256 != b.sha256
            assert a.subject != b.subject
            assert np.abs(a.image - b.image).mean() > 0.05 * a.image.mean()

    def test_set_is_the_volumes_one_by_one(self) -> None:
        third = list(phantom_set(9, 3, slices=2, matrix=48))[2]
        alone = phantom_volume(9, slices=2, matrix=48, index=2)
        np.testing.assert_array_equal(third.image, alone.image)

    @pytest.mark.parametrize(("slices", "matrix"), [(1, 64), (5, 65), (2, 16), (3, 150)])
    def test_any_size(self, slices: int, matrix: int) -> None:
        volume = phantom_volume(1, slices=slices, matrix=matrix)
        assert volume.image.shape == (slices, matrix, matrix)
        assert volume.image.dtype == np.float32
        assert np.isfinite(volume.image).all()
        assert (volume.image >= 0).all()
        assert volume.image.max() > 0

    def test_phase_is_smooth_and_the_magnitude_the_same(self) -> None:
        kept = phantom_volume(6, slices=2, matrix=96, complex_phase=True)
        assert kept.image.dtype == np.complex64
        plain = phantom_volume(6, slices=2, matrix=96).image
        np.testing.assert_allclose(np.abs(kept.image), plain, rtol=1e-4, atol=1e-3)
        inside = plain > 0.3 * plain.max()
        turn = np.angle(kept.image[:, 1:] * np.conj(kept.image[:, :-1]))
        both = inside[:, 1:] & inside[:, :-1]
        assert np.median(np.abs(turn[both])) < 0.2
        assert np.angle(kept.image[inside]).std() > 0.05

    @pytest.mark.parametrize(
        "bad", [{"slices": 0}, {"matrix": 8}, {"index": -1}, {"seed": -1}], ids=str
    )
    def test_senseless_sizes(self, bad: dict[str, int]) -> None:
        with pytest.raises(DataError):
            phantom_volume(**{"seed": 0, **bad})


class TestLikeness:
    """Bounds that hold for the seven real brains at 240 x 240 hold for the phantom as well."""

    def test_air_around_the_head(self, heads: list[Volume]) -> None:
        for head in heads:
            level = 0.07 * np.percentile(head.image, 99.5)
            assert 0.4 < np.mean(head.image < level) < 0.9
            assert np.median(head.image[:, :10]) < 0.05 * np.percentile(head.image, 99.5)

    def test_power_falls_off_as_in_brains(self, heads: list[Volume]) -> None:
        mean = np.mean([spectrum(head.image) for head in heads], axis=0)
        # Measured on real T1w, T2w and FLAIR volumes, plus or minus half a decade.
        real = np.array([0, -1.6, -2.3, -2.8, -3.15, -3.45, -3.7, -3.95])
        np.testing.assert_allclose(mean, real, atol=0.5)

    def test_undersampling_hurts_as_in_brains(self, heads: list[Volume]) -> None:
        mask = variable_density_lines(240, 4, seed=0)
        values = [zero_filled_psnr(head, mask) for head in heads]
        assert 23 < np.mean(values) < 33
        assert max(values) < 39

    def test_neighbouring_slices_belong_together(self) -> None:
        for head in phantom_set(3, 3, slices=24, matrix=120):
            r = np.corrcoef(head.image[4:18].reshape(14, -1))
            assert np.mean(np.diag(r, 1)) > 0.8
            assert np.mean(np.diag(r, 1)) > np.mean(np.diag(r, 5)) + 0.05
            assert np.diag(r, 1).max() < 0.999  # and yet no slice is a copy

    def test_spectrum_of_real_brains(self, real_data: Path, heads: list[Volume]) -> None:
        files = [f for f in find_volumes(real_data / "brain") if f.subject == "20"]
        real = np.mean([spectrum(v.image) for v in load_volumes(files, 240)], axis=0)
        mean = np.mean([spectrum(head.image) for head in heads], axis=0)
        np.testing.assert_allclose(mean, real, atol=0.5)


class TestFields:
    def test_mean_variance_and_smoothness(self) -> None:
        fields = FieldMaker(np.random.default_rng(0), (3, 64, 80))
        for field in (fields.smooth(3), fields.band(10), fields.power_law(1)):
            assert field.shape == (3, 64, 80)
            assert field.dtype == np.float32
            assert field.mean() == pytest.approx(0, abs=1e-4)
            assert field.std() == pytest.approx(1, abs=1e-3)
        rough, soft = fields.smooth(1), fields.smooth(5)
        assert np.abs(np.diff(soft, axis=1)).mean() < 0.4 * np.abs(np.diff(rough, axis=1)).mean()

    def test_band_has_its_wavelength(self) -> None:
        field = FieldMaker(np.random.default_rng(0), (4, 96, 96)).band(12.0, spread=0.1)
        crossings = np.mean(np.diff(np.sign(field), axis=1) != 0)
        # An isotropic field of wavelength L crosses zero sqrt(2) / L times per pixel (Rice).
        assert crossings == pytest.approx(np.sqrt(2) / 12, rel=0.1)

    def test_distance_to_a_straight_line(self) -> None:
        ramp = np.broadcast_to(np.arange(-8.0, 8.0, dtype=np.float32) * 0.3, (1, 16, 16))
        np.testing.assert_allclose(
            line_distance(ramp), np.abs(ramp / np.float32(0.3)), rtol=1e-5, atol=1e-6
        )

    def test_step_is_a_ramp(self) -> None:
        level = np.array([-3, -1, 0, 1, 3], np.float32)
        np.testing.assert_allclose(step(level, 4.0), [0, 0.25, 0.5, 0.75, 1])
