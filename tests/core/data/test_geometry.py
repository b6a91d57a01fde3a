"""Where pixels lie: what resampling, cropping and flipping must not change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_edge.data.geometry import (
    LPS,
    Affine,
    directions,
    from_axes,
    regridded,
    usable_affine,
    voxel_size,
)
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.data.volume import Volume
from tests.core.data.strategies import affines


def blob(height: int, width: int, centre: tuple[float, float]) -> np.ndarray:
    """A smooth spot around (h, w) in a field of view that it does not leave."""
    h, w = np.arange(height)[:, None], np.arange(width)
    spot = np.exp(-(((h - centre[0]) / 3.5) ** 2) - ((w - centre[1]) / 3.5) ** 2)
    return spot.astype(np.float32)[None]


def patient_centre(image: np.ndarray, affine: Affine) -> np.ndarray:
    """Centre of mass of an image in millimetres."""
    indices = np.indices(image.shape).reshape(3, -1)
    mean = indices @ image.ravel() / image.sum()
    return (affine @ [*mean, 1])[:3]


@settings(deadline=None, max_examples=60)
@given(affines(), st.integers(30, 41), st.integers(30, 41), st.integers(22, 30), st.data())
def test_resampling_leaves_the_patient_where_he_is(
    affine: Affine, height: int, width: int, matrix: int, data: st.DataObject
) -> None:
    """Padding and cropping, odd and even, square voxels or not: the spot stays in its place."""
    # Voxels of similar sides, so that the field of view is not squared to thousands of pixels.
    affine[:3, 1] *= voxel_size(affine)[2] / voxel_size(affine)[1] * data.draw(st.floats(0.8, 1.25))
    at = (data.draw(st.floats(11, height - 12)), data.draw(st.floats(11, width - 12)))
    image = blob(height, width, at)
    volume = Volume(image=image, name="a", subject="a", affine=affine, voxel_mm=voxel_size(affine))

    result = to_matrix(volume, matrix)

    assert result.affine is not None
    assert result.voxel_mm == pytest.approx(voxel_size(result.affine))
    small = voxel_size(affine)
    tolerance = 0.1 * max(small[1:])
    np.testing.assert_allclose(
        patient_centre(result.image, result.affine),
        patient_centre(image, affine),
        atol=tolerance,
    )


@given(affines(), st.data())
def test_another_grid_is_the_same_patient(affine: Affine, data: st.DataObject) -> None:
    numbers = st.tuples(*[st.floats(-20, 20)] * 3)
    old, new, further = data.draw(numbers), data.draw(numbers), data.draw(numbers)
    step = data.draw(st.tuples(*[st.sampled_from([-1, 0.5, 1, 2.25])] * 3))
    grid = regridded(affine, old=old, new=new, step=step)
    at_new = np.add(new, further)
    at_old = np.add(old, np.multiply(step, further))
    np.testing.assert_allclose(grid @ [*at_new, 1], affine @ [*at_old, 1], atol=1e-8)


@given(affines())
def test_directions_name_three_different_axes(affine: Affine) -> None:
    letters = directions(affine)
    assert sorted("LPI".find(c) if c in "LPI" else "RAS".find(c) for c in letters) == [0, 1, 2]
    turned = regridded(affine, old=(0, 0, 0), new=(0, 0, 0), step=(-1, -1, -1))
    opposite = str.maketrans("LRAPIS", "RLPASI")
    assert directions(turned) == letters.translate(opposite)


def test_directions_of_a_plain_axial_scan() -> None:
    assert directions(from_axes((0, 0, 4), (-1, 0, 0), (0, 1, 0), (0, 0, 0))) == "SLA"


def test_lps_is_its_own_inverse() -> None:
    np.testing.assert_array_equal(LPS @ LPS, np.eye(4))


@pytest.mark.parametrize(
    "matrix",
    [np.zeros((4, 4)), np.full((4, 4), np.nan), np.ones((4, 4)), np.eye(3), np.diag([1, 1, 0, 1])],
)
def test_what_is_no_affine(matrix: np.ndarray) -> None:
    assert usable_affine(matrix) is None


@given(affines())
def test_an_affine_of_unequal_voxels_is_usable(affine: Affine) -> None:
    affine[:3, 0] *= 40
    assert usable_affine(affine) is not None
