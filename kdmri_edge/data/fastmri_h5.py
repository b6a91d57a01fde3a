"""fastMRI's single-coil HDF5 files (Zbontar et al., arXiv 1811.08839): measured complex k-space.

`kspace` is [slices, readout, phase encode], zero frequency in the middle; knee files are 640 x 368
or so, the readout sampled twice as densely as the image needs. `reconstruction_esc` (320 x 320) is
the magnitude of its central part, and tells how much of the readout is image. The attribute
`patient_id` names the subject: one patient may have several files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.names import parse_name
from kdmri_edge.data.readers import stem_of
from kdmri_edge.data.volume import Volume, checked_image
from kdmri_edge.errors import DataError
from kdmri_edge.files import sha256_file

__all__ = ["fastmri_subject", "is_fastmri", "read_fastmri_h5"]


def is_fastmri(names: list[str]) -> bool:
    """Tell by the names of its datasets whether a file has this layout, whole or in part."""
    own = {"kspace", "ismrmrd_header", "reconstruction_esc", "reconstruction_rss"}
    return bool(own & set(names)) and "volfs" not in names


def fastmri_subject(path: Path) -> str | None:
    """Return the patient that a file names, None where it names none or is no such file."""
    try:
        with h5py.File(path, "r") as file:
            value = file.attrs.get("patient_id") if is_fastmri(list(file)) else None
    except (OSError, RuntimeError, ValueError):
        return None  # reading it will say what is wrong
    return None if value is None else str(value)


def read_fastmri_h5(path: Path) -> Volume:
    """Read a single-coil file.

    The image is complex, [S, phase encode, readout], the readout cropped to the reference's where
    the file has one (without that, oversampling stays), phase encode whole: its lines are those
    that were measured, so a mask of as many lines undersamples them as a scanner would have.

    Args:
        path: an `.h5` file.

    Returns:
        complex64 volume, in the file's unit.

    Raises:
        DataError: unreadable, no `kspace`, several coils, real numbers, NaN, or all zero.
    """
    try:
        with h5py.File(path, "r") as file:
            node = file.get("kspace")
            stored = np.asarray(node[()]) if isinstance(node, h5py.Dataset) else None
            reference = file.get("reconstruction_esc")
            readout = reference.shape[-2] if isinstance(reference, h5py.Dataset) else None
            contrast = file.attrs.get("acquisition")
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as HDF5 ({type(error).__name__}).",
            "The file is damaged or cut short: copy it again.",
        ) from error
    if stored is None:
        raise DataError(f"{path} holds no kspace.", "Give a fastMRI training or validation file.")
    kspace = _checked(stored, path)
    image = _image(kspace)
    if readout is not None and readout < image.shape[1]:
        start = image.shape[1] // 2 - readout // 2
        image = image[:, start : start + readout]
    stem = stem_of(path)
    subject, named = parse_name(stem)
    return Volume(
        image=checked_image(np.swapaxes(image, 1, 2).astype(np.complex64), path),
        name=stem,
        subject=fastmri_subject(path) or subject,
        contrast=named if contrast is None else str(contrast),
        sha256=sha256_file(path),
        measured=True,
    )


def _checked(stored: NDArray[Any], path: Path) -> NDArray[Any]:
    if stored.ndim == 4:
        raise DataError(
            f"kspace of {path} has {stored.shape[1]} coils.",
            "Give a single-coil file (singlecoil_train or singlecoil_val).",
        )
    if stored.ndim != 3:
        raise DataError(
            f"kspace of {path} has shape {list(stored.shape)}.",
            "fastMRI stores it as [slices, readout, phase encode].",
        )
    if stored.dtype.kind != "c":
        raise DataError(
            f"kspace of {path} holds {stored.dtype} values, not complex ones.",
            "Store complex k-space, not its magnitude.",
        )
    return stored


def _image(kspace: NDArray[Any]) -> NDArray[Any]:
    """Transform k-space with zero frequency in the middle to images with their centre there."""
    axes = (-2, -1)
    images = np.fft.ifft2(np.fft.ifftshift(kspace, axes), axes=axes, norm="ortho")
    return np.asarray(np.fft.fftshift(images, axes))
