"""fastMRI's own masks, line by line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdmri_edge.errors import MaskError
from kdmri_edge.physics.espirit import CALIBRATION, check_calibration
from kdmri_edge.physics.fastmri_masks import FastmriMask, fastmri_lines
from kdmri_edge.physics.masks import MASK_FAMILIES, fastmri_mask
from kdmri_edge.physics.redraw import redrawn

FILE = "file1000001.h5"
# Lines that RandomMaskFunc, EquiSpacedMaskFunc and EquispacedMaskFractionFunc of the package
# fastmri 0.3.0 (fastmri.data.subsample) sample, zero frequency in the middle: lines, acceleration,
# seed (for a file tuple(map(ord, name)), as its data transforms make it), lines that are sampled;
# centre fractions 8 % at 4x and 4 % at 8x.
DRAWN = [
    ("random", 64, 4, 7, [0, 7, 13, 19, 25, *range(30, 35), 48, 55, 56, 62]),
    ("random", 64, 4, FILE, [3, 6, 7, 11, 15, 16, *range(30, 36), 38, 48, 50, 52, 57]),
    ("random", 61, 8, 7, [0, 7, 13, 19, 30, 31, 55, 56]),
    ("random", 61, 8, FILE, [3, 6, 7, 11, 15, 30, 31, 35, 57]),
    ("equispaced", 64, 4, 7, [*range(3, 64, 4), 30, 32, 33, 34]),
    ("equispaced", 61, 8, 7, [*range(7, 61, 8), 30]),
    ("equispaced", 61, 8, FILE, [*range(3, 61, 8), 30, 31]),
    ("equispaced-fraction", 64, 4, 7, [4, 9, 15, 20, 25, *range(30, 35), 36, 42, 47, 52, 58]),
    ("equispaced-fraction", 64, 4, FILE, [3, 8, 14, 19, 24, *range(30, 36), 41, 46, 51, 57, 62]),
    ("equispaced-fraction", 61, 8, FILE, [3, 13, 24, 30, 31, 34, 45, 55]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "height", "acceleration", "seed", "sampled"), DRAWN)
def test_lines_are_those_of_the_public_code(
    kind: str, height: int, acceleration: float, seed: int | str, sampled: list[int]
) -> None:
    mask = fastmri_mask(kind, height, acceleration, seed=seed)
    assert np.flatnonzero(np.fft.fftshift(mask.samples)).tolist() == sorted(sampled)
    family = MASK_FAMILIES[f"fastmri-{kind}"]
    assert family.draw_for is not None
    draw: Any = family.draw_for if isinstance(seed, str) else family.draw
    assert draw(height, acceleration, seed, 0) == mask


@pytest.mark.parametrize("kind", FastmriMask)
def test_a_mask_of_another_matrix_is_the_same_draw(kind: FastmriMask) -> None:
    for seed in (3, FILE):
        mask = fastmri_mask(kind, 320, 4, seed=seed)
        assert redrawn(mask, 368, 368) == fastmri_mask(kind, 368, 4, seed=seed)


@pytest.mark.parametrize("kind", FastmriMask)
def test_coils_get_their_centre_or_a_reason(kind: FastmriMask) -> None:
    draw = MASK_FAMILIES[f"fastmri-{kind}"].draw
    check_calibration(draw(368, 4.0, 0, CALIBRATION))  # 29 lines
    with pytest.raises(MaskError, match=r"has 15 lines .* estimated from 24"):
        draw(368, 8.0, 0, CALIBRATION)


@pytest.mark.parametrize(
    ("kind", "changed", "said"),
    [
        ("random", {"acceleration": 0.5}, "below 1"),
        ("random", {"seed": -1}, "between 0"),
        ("random", {"seed": 2**32}, "between 0"),
        ("random", {"seed": ""}, "empty name"),
        ("random", {"height": 4}, "no line for the centre"),
        ("random", {"centre_fraction": 0.5}, "alone are more"),
        ("equispaced-fraction", {"centre_fraction": 0.25}, "all that"),
        ("equispaced-fraction", {"centre_fraction": 0.3}, "alone are more"),
        ("equispaced", {"acceleration": 4.5}, "no whole number"),
        ("equispaced", {"centre_fraction": 1.5}, "between 0 and 1"),
        ("magic", {}, "no mask 'magic'"),
    ],
)
def test_what_fastmri_cannot_draw_is_refused(kind: str, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(MaskError, match=said):
        fastmri_mask(kind, **({"height": 64, "acceleration": 4.0} | changed))


def test_everything_may_be_sampled() -> None:
    assert fastmri_mask("random", 64, 1).samples.all()
    assert fastmri_mask("equispaced", 64, 1).samples.all()
    assert fastmri_mask("random", 64, 4, centre_fraction=1).samples.all()


@pytest.mark.nightly
def test_the_package_itself_draws_the_same_lines() -> None:
    subsample = pytest.importorskip("fastmri.data.subsample", exc_type=ImportError)
    makers = {
        FastmriMask.RANDOM: subsample.RandomMaskFunc,
        FastmriMask.EQUISPACED: subsample.EquiSpacedMaskFunc,
        FastmriMask.EQUISPACED_FRACTION: subsample.EquispacedMaskFractionFunc,
    }
    for kind, maker in makers.items():
        for acceleration in (2, 4, 6, 8):
            fraction = 0.32 / acceleration
            for height in (64, 213, 256, 320, 333, 368, 396, 640):
                for seed in (*range(20), FILE, "file_brain_AXT2_200_2000001.h5"):
                    own = tuple(map(ord, seed)) if isinstance(seed, str) else seed
                    theirs, _ = maker([fraction], [acceleration])((1, 8, height, 2), seed=own)
                    ours = fastmri_lines(kind, height, acceleration, seed=seed)
                    assert np.array_equal(ours, theirs.numpy().ravel().astype(bool))
