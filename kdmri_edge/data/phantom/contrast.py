"""Random tissue intensities in the manner of T1w, T2w and FLAIR."""

from __future__ import annotations

from typing import Final

import numpy as np

TISSUES: Final = (
    *("skin", "fat", "bone", "marrow", "csf", "grey"),
    *("white", "nucleus", "muscle", "lesion", "vessel", "fluid"),
)
"""What the phantom is made of; air is what is left. `fluid` is the eye's."""

# Typical relative intensities, in the order of TISSUES.
_TYPICAL: Final[dict[str, tuple[float, ...]]] = {
    "T1w": (0.45, 1.00, 0.05, 0.55, 0.14, 0.36, 0.46, 0.40, 0.34, 0.32, 0.30, 0.16),
    "T2w": (0.40, 0.70, 0.05, 0.40, 0.95, 0.50, 0.36, 0.40, 0.22, 0.75, 0.20, 0.95),
    "FLAIR": (0.35, 0.50, 0.05, 0.28, 0.10, 0.62, 0.50, 0.55, 0.30, 0.95, 0.30, 0.12),
}

CONTRASTS: Final = tuple(_TYPICAL)


def draw_contrast(rng: np.random.Generator, turn: int) -> tuple[str, dict[str, float]]:
    """Draw each tissue's intensity in the contrast whose turn it is.

    One volume in five gets intensities that no sequence gives, so that a network learns edges, not
    tissues.

    Returns:
        The contrast's name and tissue -> intensity (brightest about 1).
    """
    name = CONTRASTS[turn % len(CONTRASTS)]  # in turn, so that a small set holds them all
    values = np.array(_TYPICAL[name])
    if rng.random() < 0.2:
        values = rng.uniform(0.05, 1.0, len(TISSUES))
    else:
        values = values * np.exp(rng.normal(0.0, 0.14, len(TISSUES)))
    table = dict(zip(TISSUES, (float(v) for v in values), strict=True))
    # Fat saturation, coil profiles and windowing make the scalp the most variable part of real
    # heads.
    table["fat"] *= float(rng.uniform(0.35, 1.6))
    return name, table
