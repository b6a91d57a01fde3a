"""The lines of fastMRI's masks: the same for the same seed as its public code draws (numpy).

Written after the masks of the package `fastmri` 0.3 (`fastmri.data.subsample`), which the
challenges' test data follows. A block around zero frequency is sampled whole; elsewhere each line
is taken by chance (`RandomMaskFunc`), every n-th is (`EquiSpacedMaskFunc`), or lines at equal
distances are, wide enough that all together come to N / acceleration
(`EquispacedMaskFractionFunc`). The generator is NumPy's of old, `RandomState`, whose numbers stay
the same for ever.

For validation and testing fastMRI seeds the generator with the letters of a volume's file name, so
that all slices of a volume, and all who evaluate on it, have the same lines.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import MaskError

__all__ = ["FastmriMask", "fastmri_lines"]

_NO_ROOM: Final = "Lower the acceleration or the centre fraction."


class FastmriMask(StrEnum):
    """How the lines outside the centre are chosen; the names are fastMRI's."""

    RANDOM = "random"
    EQUISPACED = "equispaced"
    EQUISPACED_FRACTION = "equispaced-fraction"


def fastmri_lines(
    kind: FastmriMask,
    height: int,
    acceleration: float,
    *,
    centre_fraction: float | None = None,
    seed: int | str = 0,
) -> NDArray[np.bool_]:
    """Draw the lines that fastMRI's public code draws.

    Args:
        kind: Which of its masks.
        height: Number of phase-encode lines N (columns, in fastMRI's files).
        acceleration: Of the mask; equispaced lines have a whole number.
        centre_fraction: Part of the lines that are the centre; None takes fastMRI's 0.32 /
            acceleration: 8 % at 4x, 4 % at 8x.
        seed: A number below 2^32, or the name of a volume's file with its suffix
            ("file1000001.h5"), as fastMRI has it for validation.

    Returns:
        Booleans [N], zero frequency at index N // 2.

    Raises:
        MaskError: There is no such mask, or no such seed.
    """
    fraction = 0.32 / acceleration if centre_fraction is None else centre_fraction
    if not 0 < fraction <= 1:
        raise MaskError(
            f"Centre fraction {fraction:g} is not between 0 and 1.", "Give a value such as 0.08."
        )
    random = np.random.RandomState()
    random.seed(_seed(seed))
    random.randint(1)  # fastMRI draws which of its accelerations it takes, here of one
    centre = round(height * fraction)
    if not 1 <= centre <= height:
        raise MaskError(
            f"{fraction:.2%} of {height} lines are no line for the centre.",
            "Raise the centre fraction, or use more lines.",
        )
    samples = np.zeros(height, dtype=np.bool_)
    start = (height - centre + 1) // 2
    samples[start : start + centre] = True
    if centre == height:
        return samples
    if kind is FastmriMask.EQUISPACED:
        if acceleration != math.floor(acceleration):
            raise MaskError(
                f"fastMRI's equispaced masks take every n-th line, and {acceleration:g} is no"
                " whole number.",
                f"Give {math.floor(acceleration)} or {math.ceil(acceleration)}.",
            )
        spacing = int(acceleration)
        samples[random.randint(0, high=spacing) :: spacing] = True
        return samples
    if height / acceleration < centre:
        raise MaskError(
            f"The {centre} lines of the centre alone are more than {height} / {acceleration:g}.",
            _NO_ROOM,
        )
    if kind is FastmriMask.RANDOM:
        chance = (height / acceleration - centre) / (height - centre)
        return samples | (random.uniform(size=height) < chance)
    if height / acceleration == centre:
        raise MaskError(
            f"The {centre} lines of the centre are all that {height} / {acceleration:g} leaves.",
            _NO_ROOM,
        )
    apart = acceleration * (centre - height) / (centre * acceleration - height)
    offset = random.randint(0, high=round(apart))
    lines = np.around(np.arange(offset, height - 1, apart)).astype(np.uint)
    samples[lines] = True
    return samples


def _seed(given: int | str) -> int | tuple[int, ...]:
    """Return what the generator is seeded with: a number, or the code of each letter."""
    if isinstance(given, str):
        if not given:
            raise MaskError("A mask cannot be seeded by an empty name.", "Give a file's name.")
        return tuple(map(ord, given))
    if not 0 <= given < 1 << 32:
        raise MaskError(
            f"Seed {given} is not between 0 and 2^32 - 1.", "fastMRI's masks take no others."
        )
    return given
