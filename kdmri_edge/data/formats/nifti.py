"""NIfTI-1/2 volumes, slices last in the file (nibabel, extra `formats`).

The affine is kept both ways: the sform, or the qform where the sform is not coded or no affine
(some software leaves it all zero). One whose code says "unknown" is not believed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.formats.registry import origin_of
from kdmri_edge.data.geometry import Affine, usable_affine, voxel_size
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.volume import Volume, checked_image
from kdmri_edge.errors import DataError
from kdmri_edge.utils import extras
from kdmri_edge.utils.console import say
from kdmri_edge.utils.files import atomic_path
from kdmri_edge.utils.reading import check_claim, file_bytes, reading


def read_nifti(path: Path) -> Volume:
    """Read a NIfTI volume.

    Where the header's dim_info tells which axes are slice, phase encode and readout, those become
    S, H and W; what it does not tell, or contradicts itself in, is as in (x, y, slice) with H = x:
    phase encode is left-right. No rotation or flip is applied; the header's intensity slope and
    intercept are.

    Args:
        path: a `.nii` or `.nii.gz` file of three axes (further ones of length 1 are dropped), or of
            two, which is a single slice.

    Returns:
        float32 magnitude or complex64 volume, with voxel sizes in millimetres and the affine where
        the header has one.

    Raises:
        DataError: unreadable, truncated, wrong rank, or not an MR image.
        MissingExtraError: nibabel is not installed.
    """
    pixels, stored, zooms, units, axes = _stack(path)
    affine = _affine(stored, units, axes)
    return Volume(
        image=checked_image(pixels, path),
        **origin_of(path),
        voxel_mm=_voxel_mm(zooms, units, axes, affine),
        affine=affine,
    )


def read_nifti_mask(path: Path) -> tuple[NDArray[np.bool_], Affine | None]:
    """Read a segmentation, on the axes that `read_nifti` gives to a volume of that header.

    Args:
        path: as for `read_nifti`; every voxel that is not zero belongs to what is segmented. It
            may be all zero, unlike an image.

    Returns:
        bool [S, H, W], and the affine where the header has one.

    Raises:
        DataError: unreadable, truncated, or of another number of axes.
        MissingExtraError: nibabel is not installed.
    """
    pixels, stored, _, units, axes = _stack(path)
    if pixels.ndim != 3 or pixels.dtype.kind not in "buif":
        raise DataError(
            f"{path} holds {pixels.dtype} values of shape {list(pixels.shape)}, no mask.",
            "Store one number for each voxel, zero outside.",
        )
    return np.ascontiguousarray(np.nan_to_num(pixels) != 0), _affine(stored, units, axes)


def _stack(path: Path) -> tuple[Any, Any, tuple[float, ...], str, tuple[int, int, int]]:
    """Read a file: pixels with slices first, affine as stored, steps, their unit, order of axes."""
    nibabel: Any = extras.require("nibabel", extra="formats")
    with reading(path, "NIfTI"), nibabel.imageglobals.LoggingOutputSuppressor():
        _check_name(path)
        nifti = nibabel.load(path)
        _check_size(path, nifti)
        pixels = np.asanyarray(nifti.dataobj)
        zooms = tuple(float(z) for z in nifti.header.get_zooms()[:3])
        units = nifti.header.get_xyzt_units()[0]
        stored = _coded_affine(nifti.header)
        axes = _axes(nifti.header.get_dim_info())
        coded = any(int(nifti.header[key]) > 0 for key in ("sform_code", "qform_code"))
    if coded and (stored is None or usable_affine(np.array(stored, np.float64)) is None):
        say(
            f"Note: the header of {path.name} has a geometry (sform, qform) that is none: where the"
            " images lie in the patient is taken as unknown."
        )
    if pixels.ndim == 2:
        pixels = pixels[..., None]  # a single slice
    while pixels.ndim > 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 3:
        pixels = pixels.transpose(axes)
    return pixels, stored, zooms, units, axes


_GZIP: Final = b"\x1f\x8b"
_HEADERS: Final = tuple(
    size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big")
)
"""What a file that is not compressed begins with: the size of its header."""


def _check_name(path: Path) -> None:
    """Refuse a compressed file without `.gz`, and one with it that is not: they are not damaged.

    Raises:
        DataError: The name says something else than the content.
    """
    with path.open("rb") as stream:
        begins = stream.read(4)
    named = path.name.lower().endswith(".gz")
    if begins.startswith(_GZIP) and not named:
        raise DataError(f"{path} is compressed.", f"Rename it to {path.name}.gz.")
    if named and begins in _HEADERS:
        raise DataError(f"{path} is not compressed.", f"Rename it to {path.name[:-3]}.")


_SCALED: Final = 8
"""Bytes of a voxel once slope and intercept were applied."""


def _check_size(path: Path, nifti: Any) -> None:
    """Compare what the header claims with what is allowed, and with the size of the file."""
    stored = int(nifti.dataobj.dtype.itemsize)
    voxels = math.prod(int(size) for size in nifti.shape)
    check_claim(voxels * max(stored, _SCALED), path)
    # a compressed file is unpacked up to its last voxel
    end = int(nifti.dataobj.offset) + voxels * stored
    packed = path.name.lower().endswith(".gz")
    if packed:
        check_claim(end, path, stored=file_bytes(path))
    elif end > file_bytes(path):
        raise ValueError("fewer bytes than its header says")


def _millimetres(units: str) -> float:
    """Millimetres of the header's unit of length; an unknown one is taken as the usual one."""
    return {"meter": 1e3, "mm": 1.0, "micron": 1e-3}.get(units, 1.0)


def _coded_affine(header: Any) -> Any:
    """The header's sform, else its qform; None where neither is coded and an affine."""
    if header["sform_code"] > 0 and usable_affine(header.get_sform()) is not None:
        return header.get_sform()
    return header.get_qform() if header["qform_code"] > 0 else None


def _axes(dim_info: tuple[int | None, int | None, int | None]) -> tuple[int, int, int]:
    """The file's axes that are S, H and W.

    Args:
        dim_info: Axes of frequency encode (readout), phase encode and slice; None where not told.
    """
    readout, phase, across = dim_info
    told = [axis for axis in dim_info if axis is not None]
    if len(set(told)) < len(told):
        readout = phase = across = None
    free = [axis for axis in range(3) if axis not in (readout, phase, across)]
    if across is None:
        across = free.pop()  # the last of them
    if phase is None:
        phase = free.pop(0)
    return across, phase, free.pop(0) if readout is None else readout


def _affine(stored: Any, units: str, axes: tuple[int, int, int]) -> Affine | None:
    """From the file's axes to our (s, h, w), in millimetres."""
    if stored is None:
        return None
    affine = np.array(stored, np.float64)[:, [*axes, 3]]
    affine[:3] *= _millimetres(units)
    return usable_affine(affine)


def _voxel_mm(
    zooms: tuple[float, ...], units: str, axes: tuple[int, int, int], affine: Affine | None
) -> tuple[float, float, float] | None:
    """(S, H, W) in millimetres from the header's steps, None where one is unusable.

    The affine says where the voxels are: where it contradicts the steps, or they are fewer than
    three, as those of a single slice are, its steps count.
    """
    factor = _millimetres(units)
    told = None if affine is None else voxel_size(affine)
    if len(zooms) != 3 or not all(np.isfinite(z) and z > 0 for z in zooms):
        return told
    across, height, width = (zooms[axis] * factor for axis in axes)
    if told is not None and not np.allclose(told, (across, height, width), rtol=1e-3):
        return told
    return across, height, width


def write_nifti(path: Path, picture: ImageRecord) -> None:
    """Write NIfTI-1 with the axes (H, W, slice), as `read_nifti` reads them.

    A known affine becomes the sform, coded "aligned". Without one
    the codes say that position and orientation are unknown, and voxel sizes alone are recorded.
    The header's description is how the images came about, as far as its 79 letters go.

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
    nifti.header["descrip"] = picture.derivation.encode("ascii", "replace")[:79]
    with atomic_path(path) as temporary:
        nibabel.save(nifti, temporary)
