from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdmri_edge.errors import DataError
from kdmri_edge.physics.scaling import (
    FLOOR,
    SCALING_RULE,
    network_image,
    network_input,
    slice_scale,
)


def test_each_slice_has_its_own_scale() -> None:
    x_u = np.zeros((3, 4, 5), np.float32)
    x_u[0, 1, 1], x_u[1, 2, 2] = 7.0, -9.0

    scale = slice_scale(x_u)

    assert scale.dtype == np.float32
    np.testing.assert_array_equal(scale, [7.0, 9.0, 1.0])  # the blank slice keeps 1


@given(st.floats(1e-6, 1e6), st.integers(0, 2**32 - 1))
def test_follows_the_scale_of_the_data(factor: float, seed: int) -> None:
    x_u = np.random.default_rng(seed).normal(size=(2, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(
        slice_scale(x_u * np.float32(factor)), slice_scale(x_u) * factor, rtol=1e-5
    )


def test_complex_goes_by_magnitude() -> None:
    x_u = np.full((1, 2, 2), 3 + 4j, np.complex64)
    assert slice_scale(x_u) == pytest.approx([5.0])


def test_floor_is_what_the_rule_records() -> None:
    assert SCALING_RULE == {"rule": "max-abs-zero-filled", "floor": FLOOR}
    below = np.full((2, 2, 2), FLOOR / 2, np.float64)
    below[1] = 1.0
    assert slice_scale(below)[0] == 1.0
    assert slice_scale(below[:1] * 4)[0] == pytest.approx(2 * FLOOR)
    with pytest.raises(DataError, match="too small"):
        slice_scale(below[:1])


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 4), (1, 1, 4, 4)])
def test_refuses_what_is_no_stack_of_slices(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="shape"):
        slice_scale(np.ones(shape, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_nan_and_infinity(bad: float) -> None:
    x_u = np.ones((2, 3, 3), np.float32)
    x_u[1, 0, 0] = bad
    with pytest.raises(DataError, match="Slice 1"):
        slice_scale(x_u)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_network_input_is_normalised_and_undone(dtype: type) -> None:
    random = np.random.default_rng(0)
    image = (random.standard_normal((3, 6, 5)) + 1j * random.standard_normal((3, 6, 5))) * 250
    image = (image if dtype is np.complex64 else image.real).astype(dtype)
    scale = slice_scale(image)
    seen = network_input(image, scale)
    assert seen.shape == (3, 2 if dtype is np.complex64 else 1, 6, 5)
    assert seen.dtype == np.float32
    assert seen.flags.c_contiguous
    peak = np.sqrt((seen**2).sum(1)).max((1, 2))
    np.testing.assert_allclose(peak, 1, rtol=1e-6)
    undone = network_image(seen, scale)
    assert undone.dtype == dtype
    np.testing.assert_allclose(undone, image, rtol=1e-5)
