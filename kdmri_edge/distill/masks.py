"""Another line mask at every step, for networks that are to serve any mask of their matrix.

Data consistency takes the mask as an input (its projection matrix P), so one network can serve all
line masks; it only has to have met many. The families are those that scanners play out (random and
equispaced lines around a centre, as fastMRI defines them) and the variable density of KD-MRI.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from kdmri_edge.physics.masks import (
    Mask,
    equispaced_lines,
    random_lines,
    variable_density_lines,
)

__all__ = ["ACCELERATIONS", "HELD_OUT", "SMALLEST", "sees_other_mask", "step_mask"]

ACCELERATIONS: Final = (3.0, 9.0)
"""Nominal accelerations that training draws from, uniformly."""

HELD_OUT: Final = 1000
"""Training draws its masks with seeds from here on; seeds below are for testing."""

SMALLEST: Final = 90
"""Phase-encode lines of which every acceleration leaves a centre."""

_FAMILIES: Final = (random_lines, equispaced_lines, variable_density_lines)


def step_mask(height: int, *, seed: int, step: int) -> Mask:
    """Draw the mask of a step; the same in every process and after every restart.

    Args:
        height: Phase-encode lines N, at least `SMALLEST`.
        seed: The recipe's.
        step: Step of the network.
    """
    random = np.random.default_rng([seed, step, HELD_OUT])
    family = _FAMILIES[int(random.integers(len(_FAMILIES)))]
    acceleration = float(random.uniform(*ACCELERATIONS))
    return family(height, acceleration, seed=int(random.integers(HELD_OUT, 2**31)))


def sees_other_mask(part: float, *, seed: int, step: int) -> bool:
    """Decide whether a step's batch is sampled with `step_mask` instead of the run's own mask.

    Args:
        part: Part of the steps that are.
        seed: The recipe's.
        step: Step of the network.
    """
    return bool(np.random.default_rng([seed, step, HELD_OUT + 1]).random() < part)
