"""What the pixels of an image are: the one decision for DICOM series and MRD images.

Scanners store a complex image as up to four series of real numbers, and often put two of them into
one. Only magnitudes are intensities: phases are angles, real and imaginary parts have an offset
that is not always told. None of those passes for a magnitude here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from kdmri_edge.errors import DataError

__all__ = ["Component", "intensities"]


class Component(StrEnum):
    """What of a complex image is stored."""

    MAGNITUDE = "magnitude"
    COMPLEX = "complex"
    PHASE = "phase"
    REAL = "real-part"
    IMAGINARY = "imaginary-part"
    COLOUR = "colour"


_INTENSITIES = (Component.MAGNITUDE, Component.COMPLEX)


def intensities(components: Sequence[Component], source: Path) -> tuple[list[int], tuple[str, ...]]:
    """Find the images of a series that show intensities.

    Args:
        components: Of each image; MAGNITUDE where the file does not tell.
        source: For the message.

    Returns:
        Which they are, and in words what is left out: the phases beside the magnitudes, say.

    Raises:
        DataError: There are none, or magnitudes and complex images are mixed.
    """
    kept = [index for index, each in enumerate(components) if each in _INTENSITIES]
    others = Counter(each for each in components if each not in _INTENSITIES)
    words = tuple(f"{count} {each} image{'s' * (count > 1)}" for each, count in others.items())
    if not kept:
        raise DataError(
            f"{source} holds {' and '.join(f'{each} images' for each in others)}, no intensities.",
            "Give the series of the magnitudes; or put real and imaginary parts together, and store"
            " complex images as .npy or .nii.gz.",
        )
    if len({components[index] for index in kept}) > 1:
        raise DataError(
            f"{source} holds magnitude and complex images.", "Give each kind as a file of its own."
        )
    return kept, words
