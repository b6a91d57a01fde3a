"""NIfTI-1/2 volumes, slices last in the file (nibabel, extra `formats`).

The affine (sform, else qform) is kept both ways; one whose code says "unknown" is not believed.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from kdmri_edge.data.formats.registry import origin_of
from kdmri_edge.data.geometry import Affine, usable_affine
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.volume import Volume, checked_image
from kdmri_edge.errors import DataError
from kdmri_edge.utils import extras
from kdmri_edge.utils.files import atomic_path


def read_nifti(path: Path) -> Volume:
    """Read a NIfTI volume.

    The file's axes (x, y, slice) become [S, H, W] with H = x: phase encode is left-right. No
    rotation or flip is applied; the header's intensity slope and intercept are.

    Args:
        path: a `.nii` or `.nii.gz` file of three axes (a fourth of length 1 is dropped).

    Returns:
        float32 magnitude or complex64 volume, with voxel sizes in millimetres and the affine where
        the header has one.

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
        stored = _coded_affine(nifti.header)
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        zlib.error,
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
    ) as error:
        raise DataError(
            f"{path} cannot be read as NIfTI ({type(error).__name__}).",
            "The file is damaged or cut short: copy it again.",
        ) from error
    if pixels.ndim == 4 and pixels.shape[3] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 2, 0)
    return Volume(
        image=checked_image(pixels, path),
        **origin_of(path),
        voxel_mm=_voxel_mm(zooms, units),
        affine=_affine(stored, units),
    )


def _millimetres(units: str) -> float:
    """Millimetres of the header's unit of length; an unknown one is taken as the usual one."""
    return {"meter": 1e3, "mm": 1.0, "micron": 1e-3}.get(units, 1.0)


def _coded_affine(header: Any) -> Any:
    """The header's sform, else its qform; None where neither is coded."""
    if header["sform_code"] > 0:
        return header.get_sform()
    return header.get_qform() if header["qform_code"] > 0 else None


def _affine(stored: Any, units: str) -> Affine | None:
    """From the file's (x, y, slice) to our (s, h, w), in millimetres."""
    if stored is None:
        return None
    affine = np.array(stored, np.float64)[:, [2, 0, 1, 3]]
    affine[:3] *= _millimetres(units)
    return usable_affine(affine)


def _voxel_mm(zooms: tuple[float, ...], units: str) -> tuple[float, float, float] | None:
    """(S, H, W) in millimetres from the header's (x, y, slice), None where it is unusable."""
    factor = _millimetres(units)
    if len(zooms) != 3 or not all(np.isfinite(z) and z > 0 for z in zooms):
        return None
    return zooms[2] * factor, zooms[0] * factor, zooms[1] * factor


def write_nifti(path: Path, picture: ImageRecord) -> None:
    """Write NIfTI-1 with the axes (H, W, slice), as `read_nifti` reads them.

    A known affine becomes the sform, coded "aligned". Without one
    the codes say that position and orientation are unknown, and voxel sizes alone are recorded.

    Raises:
        OutputError: The place cannot be written to.
        MissingExtraError: nibabel is not installed.
    """
    nibabel: Any = extras.require("nibabel", extra="formats")
    pixels = np.moveaxis(picture.image, 0, 2)
    if picture.affine is not None:
        nifti = nibabel.Nifti1Image(pixels, picture.affine[:, [1, 2, 0, 3]])
        nifti.header.set_xyzt_units("mm")
    else:
        steps = picture.voxel_mm or (1.0, 1.0, 1.0)
        nifti = nibabel.Nifti1Image(pixels, None)
        nifti.header.set_zooms((steps[1], steps[2], steps[0]))
        nifti.header.set_xyzt_units("mm" if picture.voxel_mm else "unknown")
    with atomic_path(path) as temporary:
        nibabel.save(nifti, temporary)
