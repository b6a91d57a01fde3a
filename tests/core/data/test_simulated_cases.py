"""Simulated scans of magnitude volumes: consistent, and the same again from the seed."""

from __future__ import annotations

import numpy as np
import pytest

from kdmri_edge.data.case import NOISE, coil_sets, simulated_case
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.simulation import coil_maps, complex_noise, local_phase, smooth_phase
from kdmri_edge.errors import DataError, MaskError
from kdmri_edge.physics.coils import sense_normal
from kdmri_edge.physics.masks import variable_density_lines
from kdmri_edge.physics.operators import zero_filled

SIZE = 48
MASK = variable_density_lines(SIZE, 1.5, centre_lines=24)
VOLUME = phantom_volume(2, slices=3, matrix=SIZE)
MAPS = coil_sets(SIZE, SIZE, seed=1, coils=4, sets=5)


@pytest.mark.parametrize("maps", [None, MAPS], ids=["one coil", "coils"])
def test_the_zero_filled_image_belongs_to_the_target(maps: np.ndarray | None) -> None:
    case = simulated_case(VOLUME, MASK, seed=3, maps=maps)
    assert case.target.dtype == case.zero_filled.dtype == np.complex64
    np.testing.assert_allclose(np.abs(case.target), VOLUME.image, rtol=1e-5, atol=1e-6)
    clean = zero_filled(case.target, MASK)
    if maps is not None:
        assert case.received is not None
        clean = sense_normal(case.target, maps[case.received], MASK)
    noise = np.abs(case.zero_filled - clean).std(axis=(1, 2)) / VOLUME.image.max()
    assert (noise > 0).all()
    assert (noise < 1.2 * NOISE).all()
    assert len(set(np.round(noise, 6))) == len(noise)  # another level in each slice
    np.testing.assert_allclose(case.scale, np.abs(case.zero_filled).max((1, 2)), rtol=1e-6)


def test_everything_follows_from_seed_and_volume() -> None:
    def drawn(seed: int) -> np.ndarray:
        return simulated_case(VOLUME, MASK, seed=seed, maps=MAPS).zero_filled

    np.testing.assert_array_equal(drawn(3), drawn(3))
    assert not np.array_equal(drawn(3), drawn(4))
    other = phantom_volume(2, slices=3, matrix=SIZE, index=1)
    phases = [np.angle(simulated_case(v, MASK, seed=3).target[1, 20, 20]) for v in (VOLUME, other)]
    assert phases[0] != phases[1]


def test_a_phase_that_is_there_is_kept() -> None:
    volume = phantom_volume(2, slices=2, matrix=SIZE, complex_phase=True)
    np.testing.assert_array_equal(simulated_case(volume, MASK, seed=0).target, volume.image)


def test_sets_hold_both_kinds_of_coils() -> None:
    assert MAPS.shape == (5, 4, SIZE, SIZE)
    np.testing.assert_array_equal(MAPS, coil_sets(SIZE, SIZE, seed=1, coils=4, sets=5))
    assert not np.array_equal(MAPS, coil_sets(SIZE, SIZE, seed=2, coils=4, sets=5))


def test_phase_and_coils_do_not_depend_on_the_matrix() -> None:
    coarse, fine = smooth_phase(9, 5, seed=3), smooth_phase(17, 9, seed=3)
    np.testing.assert_allclose(fine[::2, ::2], coarse, atol=1e-5)
    np.testing.assert_allclose(coil_maps(3, 17, 9)[:, ::2, ::2], coil_maps(3, 9, 5), atol=1e-5)
    assert np.abs(np.diff(smooth_phase(256, 256, seed=1), axis=0)).max() < 0.3


def test_local_fields_are_steep_and_within_bounds() -> None:
    drawn = [local_phase(128, 128, seed=seed) for seed in range(40)]
    steepest = [float(np.abs(np.diff(phase, axis=0)).max()) for phase in drawn]
    assert any(not phase.any() for phase in drawn)  # some slices have no cavity
    assert sum(step > 0.2 for step in steepest) > 10
    assert max(steepest) < 3 * 40 * 2 / 127  # three fields at one place
    coarse, fine = local_phase(9, 5, seed=1), local_phase(17, 9, seed=1)
    assert coarse.any()
    np.testing.assert_allclose(fine[::2, ::2], coarse, atol=1e-4)


def test_noise_is_white_of_variance_one() -> None:
    noise = complex_noise((200, 200), seed=1)
    assert noise.dtype == np.complex64
    assert np.var(noise.real) == pytest.approx(0.5, rel=0.03)
    assert np.var(noise.imag) == pytest.approx(0.5, rel=0.03)


def test_what_cannot_be_simulated() -> None:
    narrow = variable_density_lines(SIZE, 2, centre_lines=10)
    with pytest.raises(MaskError, match="24 lines"):
        simulated_case(VOLUME, narrow, seed=0, maps=MAPS)
    simulated_case(VOLUME, narrow, seed=0)  # one coil needs no calibration
    with pytest.raises(DataError, match="matrix"):
        simulated_case(VOLUME, MASK, seed=0, maps=MAPS[..., :40])
    with pytest.raises(DataError, match="1 coil"):
        coil_maps(0, 8, 8)
