"""NumPy arrays: [S, H, W] or one slice [H, W], real or complex."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdmri_edge.data.formats.registry import origin_of
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.volume import Volume, checked_image
from kdmri_edge.utils.arrays import read_array
from kdmri_edge.utils.files import atomic_path


def read_npy(path: Path) -> Volume:
    """Read a `.npy` file of images (not of k-space), phase encode along H.

    Args:
        path: an array [S, H, W] or [H, W]; real values are magnitudes, complex values carry phase.

    Returns:
        float32 or complex64 volume without voxel sizes.

    Raises:
        DataError: unreadable, truncated, pickled objects, wrong rank, or not an MR image.
    """
    pixels = read_array(path)
    if pixels.ndim == 2:
        pixels = pixels[None]
    return Volume(
        image=checked_image(pixels, path),
        **origin_of(path),
    )


def write_npy(path: Path, picture: ImageRecord) -> None:
    """Write a NumPy array [S, H, W]; it has no place for a voxel size."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, picture.image)  # given a name, numpy would append its own suffix
