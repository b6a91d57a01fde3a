"""A mask like another one, for images of another matrix.

The lines of a mask belong to its number of phase encodes. A network of any matrix is trained with
masks of one matrix or a few, and meets scans of others: what they would be sampled with is drawn
anew, by the family, the acceleration and the seed that the mask was drawn with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from kdmri_edge.errors import MaskError
from kdmri_edge.physics.espirit import CALIBRATION
from kdmri_edge.physics.masks import (
    MASK_FAMILIES,
    Mask,
    centre_block,
    fastmri_mask,
    variable_density_2d,
    variable_density_lines,
)

__all__ = ["MaskDraw", "lines_around_zero", "redrawn"]

_DRAWN: Final = re.compile(
    r"(?P<family>variable-density-2d|variable-density|random|equispaced|fastmri-[a-z-]+)"
    r"-(?P<acceleration>[\d.]+)x-(?:s(?P<seed>\d+)|of-(?P<file>.+))"
)
# What the families write of themselves; a name comes from a file, and may say anything.
_ACCELERATION: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?")
_SEED: Final = re.compile(r"[0-9]{1,20}")  # all that 64 bits hold
_BLOCK: Final = re.compile(r"centre-(?P<height>\d+)x(?P<width>\d+)")


def lines_around_zero(mask: Mask) -> int:
    """Return how many lines of a line mask are sampled without a gap around zero frequency.

    However many lie on either side; `combining.centre_lines` counts as many on both.
    """
    if mask.samples.all():
        return mask.height
    if not mask.samples[0]:
        return 0
    above = int(np.argmin(mask.samples))
    below = int(np.argmin(mask.samples[::-1]))
    return above + below


def redrawn(mask: Mask, height: int, width: int) -> Mask:
    """Return a mask of the same kind for images of height x width.

    Masks that this project drew have their family, acceleration and seed in their names. Others,
    such as KD-MRI's, are taken for variable density with their own acceleration and as many lines
    around zero frequency, but no more than three quarters of all that are sampled. The block of
    super-resolution keeps its part of each axis, and every line or sample stays every one.

    Args:
        mask: The mask of another matrix.
        height: Phase-encode lines H.
        width: Readout samples W; line masks serve any.

    Returns:
        The mask itself where it fits.

    Raises:
        MaskError: The acceleration leaves such a matrix without a centre, or the mask's name states
            an acceleration or a seed that no mask was drawn with.
    """
    if mask.height == height and (mask.is_lines or mask.samples.shape[1] == width):
        return mask
    if mask.samples.all():
        shape = (height,) if mask.is_lines else (height, width)
        return Mask(samples=np.ones(shape, np.bool_), name=mask.name)
    drawn = _drawn(mask.name)
    acceleration = float(drawn["acceleration"]) if drawn else mask.nominal_acceleration
    seed = int(drawn["seed"] or 0) if drawn else 0
    family = drawn["family"] if drawn else "variable-density"
    if not mask.is_lines:
        rows, columns = mask.samples.shape
        if _BLOCK.fullmatch(mask.name):
            # a corner of the block is sampled exactly where both of its sides are
            kept = (int(mask.samples[:, 0].sum()), int(mask.samples[0].sum()))
            sides = (
                max(1, round(kept[0] * height / rows)),
                max(1, round(kept[1] * width / columns)),
            )
            return centre_block((height, width), sides)
        centre = max(1, min(16, round(min(height, width) / acceleration / 2)))
        return variable_density_2d((height, width), acceleration, centre=centre, seed=seed)
    centre = lines_around_zero(mask)
    if drawn and family.startswith("fastmri-"):
        kind = family.removeprefix("fastmri-")
        return fastmri_mask(kind, height, acceleration, seed=drawn["file"] or seed)
    if family in ("random", "equispaced"):
        # as wide as the family has it, or as coils need it where the mask was drawn for them
        wanted = CALIBRATION if centre >= CALIBRATION else 0
        return MASK_FAMILIES.named(family).draw(height, acceleration, seed, wanted)
    most = max(1, 3 * round(height / acceleration) // 4)
    return variable_density_lines(height, acceleration, centre_lines=min(centre, most), seed=seed)


def _drawn(name: str) -> re.Match[str] | None:
    """Return what a name states of its mask's draw; None for one that states none.

    Raises:
        MaskError: An acceleration or a seed that no mask was drawn with.
    """
    found = _DRAWN.fullmatch(name)
    if found is None:
        return None
    acceleration, seed = found["acceleration"], found["seed"] or "0"
    if _ACCELERATION.fullmatch(acceleration) and float(acceleration) >= 1 and _SEED.fullmatch(seed):
        return found
    # to take it for a mask of another kind would be a guess, and a silent one
    raise MaskError(
        f"The mask's name {name[:60]!r} states a draw that there is none of, so that it cannot be"
        " drawn anew for another matrix.",
        "Use data of the mask's own matrix, or give the mask another name.",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskDraw:
    """How a mask is drawn for each scan, at its own matrix.

    Attributes:
        family: Of `MASK_FAMILIES`.
        acceleration: Nominal.
        seed: Of every draw; None seeds each by the name of the scan's file, as fastMRI does for
            validation and test, so that all who evaluate on a volume have the same lines.
    """

    family: str
    acceleration: float
    seed: int | None = 0

    def of(self, file: str, height: int, width: int, *, coils: bool = False) -> Mask:
        """Draw the mask of a scan.

        Args:
            file: Name of its file, with the suffix.
            height: Phase-encode lines H.
            width: Readout samples W.
            coils: Sensitivities are estimated from the centre, which has to be wide enough.

        Raises:
            MaskError: There is no such family, it takes no names, or it has no such mask.
        """
        family = MASK_FAMILIES.named(self.family)
        centre = CALIBRATION if coils else 0
        if self.seed is not None:
            drawn = family.draw(height, self.acceleration, self.seed, centre)
        elif family.draw_for is not None:
            drawn = family.draw_for(height, self.acceleration, file, centre)
        else:
            named = ", ".join(name for name, row in MASK_FAMILIES.items() if row.draw_for)
            raise MaskError(
                f"Masks of family {self.family!r} are seeded by numbers, not by names of files.",
                f"Give a number, or a family that goes by names: {named}.",
            )
        return redrawn(drawn, height, width)
