"""The one table of formats that reconstructions are written in: suffix -> writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.readers import known_suffix
from kdmri_edge.errors import OutputError
from kdmri_edge.extras import load_attribute, require
from kdmri_edge.files import atomic_path

__all__ = ["WRITERS", "write_image", "writer_suffix"]

Voxel = tuple[float, float, float]
Writer = Callable[[Path, NDArray[Any], Voxel | None], None]

WRITERS: Final[dict[str, str]] = {
    ".nii.gz": "kdmri_edge.data.writers:write_nifti",
    ".nii": "kdmri_edge.data.writers:write_nifti",
    ".npy": "kdmri_edge.data.writers:write_npy",
}
"""Suffix (lower case, with the dot) -> "module:function" of a `Writer`."""


def writer_suffix(path: Path) -> str | None:
    """Return the key of `WRITERS` for a file's name, None when there is none."""
    return known_suffix(path, WRITERS)


def write_image(path: Path, image: NDArray[Any], voxel_mm: Voxel | None = None) -> None:
    """Write reconstructed images in the format that the name asks for, atomically.

    Args:
        path: Destination; an earlier file is replaced.
        image: [S, H, W], float32 or complex64.
        voxel_mm: Voxel size along (S, H, W) in millimetres, where it is known.

    Raises:
        OutputError: A suffix that no writer knows, or the place cannot be written to.
        MissingExtraError: The format needs a library that is not installed.
    """
    suffix = writer_suffix(path)
    if suffix is None:
        raise OutputError(
            f"{path} has a suffix that no writer knows.", f"Supported are {', '.join(WRITERS)}."
        )
    writer: Writer = load_attribute(WRITERS[suffix])
    with atomic_path(path) as temporary:
        writer(temporary, image, voxel_mm)


def write_npy(path: Path, image: NDArray[Any], voxel_mm: Voxel | None) -> None:
    """Write a NumPy array [S, H, W]; it has no place for a voxel size."""
    with path.open("wb") as stream:  # given a name, numpy would append its own suffix
        np.save(stream, image)


def write_nifti(path: Path, image: NDArray[Any], voxel_mm: Voxel | None) -> None:
    """Write NIfTI-1 with the axes (H, W, slice), as `read_nifti` reads them.

    Only voxel sizes are recorded; position and orientation of the patient are not.
    """
    nibabel: Any = require("nibabel", extra="formats")
    steps = voxel_mm or (1.0, 1.0, 1.0)
    affine = np.diag([steps[1], steps[2], steps[0], 1.0])
    nifti = nibabel.Nifti1Image(np.moveaxis(image, 0, 2), affine)
    nifti.header.set_xyzt_units("mm" if voxel_mm else "unknown")
    nibabel.save(nifti, path)
