"""What property tests of formats draw: oblique affines, odd and even images."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from kdmri_edge.data.geometry import Affine, from_axes
from kdmri_edge.data.volume import Volume

_ANGLES = st.floats(-3.1, 3.1)
_STEPS = st.floats(0.3, 6.0)


@st.composite
def rotations(draw: st.DrawFn) -> np.ndarray:
    """A rotation [3, 3] from three angles."""
    a, b, c = draw(_ANGLES), draw(_ANGLES), draw(_ANGLES)
    about_z = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    again_z = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
    return np.array(about_z) @ np.array(about_x) @ np.array(again_z)


@st.composite
def affines(draw: st.DrawFn) -> Affine:
    """An oblique affine of either handedness, voxels of any shape, anywhere in the magnet."""
    axes = draw(rotations()) * [draw(_STEPS), draw(_STEPS), draw(_STEPS)]
    axes[:, 0] *= draw(st.sampled_from([1, -1]))
    origin = [draw(st.floats(-200, 200)) for _ in range(3)]
    return from_axes(axes[:, 0], axes[:, 1], axes[:, 2], origin)


@st.composite
def images(draw: st.DrawFn, *, complex_values: bool | None = None) -> np.ndarray:
    """[S, H, W], few pixels, float32 or complex64."""
    shape = tuple(draw(st.integers(1, 6)) for _ in range(3))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    image = random.uniform(1, 900, shape).astype(np.float32)
    if draw(st.booleans()) if complex_values is None else complex_values:
        image = (image * np.exp(1j * random.uniform(-3, 3, shape))).astype(np.complex64)
    return image


def check_places(
    volume: Volume, pixels: np.ndarray, affine: Affine, tolerance: float = 0.0
) -> None:
    """Assert that a volume has every one of some pixels at the same place in the patient."""
    assert volume.affine is not None
    assert volume.image.size == pixels.size
    indices = np.indices(pixels.shape).reshape(3, -1)
    places = np.linalg.inv(volume.affine) @ affine @ [*indices, np.ones(pixels.size)]
    ours = np.rint(places[:3]).astype(int)
    np.testing.assert_allclose(places[:3], ours, atol=2e-2)
    np.testing.assert_allclose(volume.image[tuple(ours)], pixels.ravel(), atol=tolerance)
