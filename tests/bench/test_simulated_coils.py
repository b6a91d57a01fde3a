"""Simulated multi-coil files: what is written is what `distill` can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.simulated_coils import received
from kdmri_edge.data.case import Case, measured_case
from kdmri_edge.data.formats.registry import read_scan
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.simulation import coil_maps
from kdmri_edge.mrd.format.hdf5 import write_scan
from kdmri_edge.physics.coils import sense_normal
from kdmri_edge.physics.masks import variable_density_lines

SIZE = 48
MASK = variable_density_lines(SIZE, 1.5, centre_lines=24, seed=0)


def case(slices: int) -> Case:
    volume = phantom_volume(1, slices=slices, matrix=SIZE)
    image = volume.image.astype(np.complex64)
    return Case(
        name="one",
        subject="1",
        contrast="T1w",
        sha256=volume.sha256,
        target=image,
        zero_filled=image,
        scale=np.ones(slices, np.float32),
        maps=None,
        received=None,
        reception=None,
        kspace=False,
    )


def test_a_file_of_simulated_coils_is_measured_k_space(tmp_path: Path) -> None:
    given = case(4)
    scan = received(given, 2)
    write_scan(tmp_path / "one.h5", scan)
    read = read_scan(tmp_path / "one.h5")
    assert read.kspace.shape == (2, 16, SIZE, SIZE)
    assert read.mask.samples.all()
    made = measured_case(read, MASK, SIZE)
    # combined with estimated sensitivities it is the image, up to their phase
    kept = np.abs(given.target)[[n for n in (0, 1, 2, 3) if np.abs(given.target[n]).any()]]
    peak = np.abs(kept).max()
    inside = np.abs(made.target) > 0
    assert 0.05 < inside.mean() < 0.95  # there is no sensitivity in air
    shown = np.abs(made.target[0])
    apart = [np.abs(shown - one / peak)[inside[0]].mean() / shown.mean() for one in kept]
    assert min(apart) < 0.1
    assert np.array_equal(received(given, 2).kspace, scan.kspace)


def test_closer_coils_encode_more() -> None:
    """The smallest eigenvalue within reach of P grows, here by the error that a step leaves."""
    random = np.random.default_rng(0)
    image = random.standard_normal((SIZE, SIZE)) + 1j * random.standard_normal((SIZE, SIZE))
    left = []
    for radius in (1.0, 2.0):
        maps = coil_maps(8, SIZE, SIZE, seed=1, radius=radius)
        error = image.copy()
        for _ in range(30):
            error = error - sense_normal(error, maps, MASK)
        left.append(np.linalg.norm(error))
    assert left[0] < 0.9 * left[1]


def test_the_default_radius_is_that_of_before() -> None:
    usual = coil_maps(4, 8, 8, seed=3)
    assert np.array_equal(usual, coil_maps(4, 8, 8, seed=3, radius=1.5))
    assert np.abs(np.abs(usual) ** 2).sum(0) == pytest.approx(1.0, abs=1e-5)
