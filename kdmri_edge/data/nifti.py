"""NIfTI-1/2 volumes, slices last in the file (nibabel, extra `formats`)."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from kdmri_edge import extras
from kdmri_edge.data.names import parse_name
from kdmri_edge.data.readers import stem_of
from kdmri_edge.data.volume import Volume, checked_image
from kdmri_edge.errors import DataError
from kdmri_edge.files import sha256_file


def read_nifti(path: Path) -> Volume:
    """Read a NIfTI volume.

    The file's axes (x, y, slice) become [S, H, W] with H = x: phase encode is left-right. No
    rotation or flip is applied; the header's intensity slope and intercept are.

    Args:
        path: a `.nii` or `.nii.gz` file of three axes (a fourth of length 1 is dropped).

    Returns:
        float32 magnitude or complex64 volume, with voxel sizes in millimetres.

    Raises:
        DataError: unreadable, truncated, wrong rank, or not an MR image.
        MissingExtraError: nibabel is not installed.
    """
    nibabel: Any = extras.require("nibabel", extra="formats")
    try:
        nifti = nibabel.load(path)
        pixels = np.asanyarray(nifti.dataobj)
        zooms = tuple(float(z) for z in nifti.header.get_zooms()[:3])
        units = nifti.header.get_xyzt_units()[0]
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        zlib.error,
        nibabel.filebasedimages.ImageFileError,
    ) as error:
        raise DataError(
            f"{path} cannot be read as NIfTI ({type(error).__name__}).",
            "The file is damaged or cut short: copy it again.",
        ) from error
    if pixels.ndim == 4 and pixels.shape[3] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 2, 0)
    stem = stem_of(path)
    subject, contrast = parse_name(stem)
    return Volume(
        image=checked_image(pixels, path),
        name=stem,
        subject=subject,
        contrast=contrast,
        sha256=sha256_file(path),
        voxel_mm=_voxel_mm(zooms, units),
    )


def _voxel_mm(zooms: tuple[float, ...], units: str) -> tuple[float, float, float] | None:
    """(S, H, W) in millimetres from the header's (x, y, slice), None where it is unusable."""
    factor = {"meter": 1e3, "mm": 1.0, "micron": 1e-3}.get(units, 1.0)
    if len(zooms) != 3 or not all(np.isfinite(z) and z > 0 for z in zooms):
        return None
    return zooms[2] * factor, zooms[0] * factor, zooms[1] * factor
