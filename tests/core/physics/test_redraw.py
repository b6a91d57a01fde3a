"""Masks that are drawn anew for another matrix."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdmri_edge.errors import MaskError
from kdmri_edge.physics.masks import (
    MASK_FAMILIES,
    Mask,
    centre_block,
    variable_density_2d,
    variable_density_lines,
)
from kdmri_edge.physics.redraw import lines_around_zero, redrawn


@pytest.mark.parametrize("family", ["variable-density", "random", "equispaced"])
def test_drawn_masks_are_what_their_family_draws(family: str) -> None:
    draw = MASK_FAMILIES[family].draw
    assert redrawn(draw(240, 4.0, 3, 0), 192, 208) == draw(192, 4.0, 3, 0)
    # with as wide a centre as coils need
    assert lines_around_zero(redrawn(draw(240, 4.0, 3, 24), 192, 192)) >= 24


def test_2d_masks_and_blocks_keep_their_kind() -> None:
    drawn = redrawn(variable_density_2d((240, 240), 5, seed=2), 192, 208)
    assert drawn.samples.shape == (192, 208)
    assert drawn.nominal_acceleration == pytest.approx(5, rel=1e-3)
    assert redrawn(centre_block((240, 240), (60, 60)), 320, 160) == centre_block(
        (320, 160), (80, 40)
    )


def test_masks_of_files_become_variable_density_of_their_own_acceleration() -> None:
    own = Mask(samples=variable_density_lines(240, 4, seed=5).samples, name="mrbrain_4x")
    made = redrawn(own, 192, 256)
    assert made.nominal_acceleration == 4
    assert lines_around_zero(made) >= 10
    assert made.samples[0]


def test_what_fits_or_samples_everything_stays() -> None:
    own = variable_density_lines(32, 3, centre_lines=4)
    assert redrawn(own, 32, 48) is own
    every = Mask(samples=np.ones(32, np.bool_), name="every line")
    assert redrawn(every, 20, 20).samples.all()


@given(st.integers(24, 400), st.floats(2, 8), st.integers(0, 9))
def test_any_matrix_gets_a_mask_of_that_acceleration(
    height: int, acceleration: float, seed: int
) -> None:
    own = variable_density_lines(240, acceleration, seed=seed)
    made = redrawn(own, height, height)
    assert made.height == height
    asked = float(own.name.split("-")[2].removesuffix("x"))  # its name has six digits
    assert int(made.samples.sum()) == max(1, round(height / asked))
    assert made.samples[0]


def test_acceleration_that_leaves_no_centre_is_refused() -> None:
    with pytest.raises(MaskError, match="ACS"):
        redrawn(MASK_FAMILIES["random"].draw(240, 4.0, 0, 24), 40, 40)


@pytest.mark.parametrize("family", ["variable-density", "random", "equispaced", "fastmri-random"])
@pytest.mark.parametrize(
    "stated",
    ["1.2.3x-s0", ".x-s0", "0x-s0", "0.5x-s0", f"{'9' * 400}x-s0", "\u0664x-s0",
     f"4x-s{'7' * 5000}", f"4x-s{'7' * 21}"],
)  # fmt: skip
def test_names_of_files_that_state_no_draw_are_refused(family: str, stated: str) -> None:
    """They are whatever a file's author wrote."""
    own = variable_density_lines(48, 4, seed=1).samples
    for samples in (own, np.outer(own, own)):
        mask = Mask(samples=samples, name=f"{family}-{stated}")
        with pytest.raises(MaskError, match="states a draw that there is none of") as refused:
            redrawn(mask, 64, 64)
        assert len(str(refused.value)) < 300
        assert redrawn(mask, 48, 48) is mask


@given(
    st.from_regex(
        r"(variable-density|variable-density-2d|random|equispaced|fastmri-[a-z-]{1,9})-[0-9.]{1,9}x"
        r"-(s[0-9]{1,12}|of-.{1,9})",
        fullmatch=True,
    ),
    st.booleans(),
)
def test_whatever_a_name_states_is_drawn_or_refused(name: str, lines: bool) -> None:
    own = variable_density_lines(48, 4, seed=1).samples
    mask = Mask(samples=own if lines else np.outer(own, own), name=name)
    with contextlib.suppress(MaskError):
        assert redrawn(mask, 64, 64).height == 64


def test_a_mask_of_a_large_seed_and_a_fraction_is_drawn_anew() -> None:
    draw = MASK_FAMILIES["random"].draw
    assert redrawn(draw(240, 4.25, 2**64 - 1, 0), 192, 192) == draw(192, 4.25, 2**64 - 1, 0)
