"""What the convolutions of a network to be quantised read."""

from __future__ import annotations

from kdmri_edge.models.equalise import equalise
from kdmri_edge.reconstructor import Reconstructor

__all__ = ["ranges_of"]


def ranges_of(lowered: Reconstructor) -> dict[str, float]:
    """Return the largest magnitude that each convolution reads, by its name.

    A network trained with rounding brings its ranges, and stays as it is; another one is
    equalised, in place.
    """
    return lowered.ranges or equalise(lowered.model, lowered.maxima)
