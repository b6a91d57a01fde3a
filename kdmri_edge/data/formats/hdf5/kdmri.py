"""KD-MRI's HDF5 layout: `volfs`, `img_volus_4x`, `kspace_volus_4x` (Murugesan et al., MIDL 2020).

`volfs` [H, W, S] is the fully sampled magnitude. `kspace_volus_Nx` is the masked k-space: NumPy's
plain orthonormal `fft2` of `volfs`, the image's origin at pixel 0, times the mask. `img_volus_Nx`
is the MAGNITUDE of the zero-filled image; data consistency needs its real part, so it is never
read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.formats.hdf5.opening import open_hdf5, values
from kdmri_edge.data.formats.measured import is_lines
from kdmri_edge.data.formats.registry import origin_of
from kdmri_edge.data.origins import origin_ramp
from kdmri_edge.data.volume import Volume, checked_image
from kdmri_edge.errors import DataError
from kdmri_edge.physics.masks import Mask

_KSPACE = re.compile(r"kspace_volus_(\d+(?:\.\d+)?x)$")
_OWN = ("img_volus_", "kspace_volus_")
_AGREEMENT = 1e-3
"""Largest relative distance of the stored k-space from that of `volfs`, on the sampled points."""


def is_kdmri(names: list[str]) -> bool:
    """Tell by the names of its datasets whether a file has this layout, whole or in part."""
    return any(name == "volfs" or name.startswith(_OWN) for name in names)


def read_kdmri_h5(path: Path) -> Volume:
    """Read a KD-MRI file.

    With one `kspace_volus_*` dataset the volume carries that k-space and the mask that its zeros
    tell, with phase encode brought to H. With none, or with several (each mask is then as good as
    the others), it carries the fully sampled image alone, to be undersampled retrospectively.

    Args:
        path: an `.h5` file.

    Returns:
        float32 magnitude volume.

    Raises:
        DataError: unreadable, other layout, only `img_volus_*`, shapes that differ, or k-space that
            is not the masked Fourier transform of `volfs`.
    """
    with open_hdf5(path) as file:
        names = list(file)
        full = _dataset(file, "volfs")
        encoded = [name for name in names if _KSPACE.match(name)]
        kspace = _dataset(file, encoded[0]) if len(encoded) == 1 else None
    if full is None:
        raise _no_reference(path, names)
    image = checked_image(np.moveaxis(full, 2, 0) if full.ndim == 3 else full, path)
    if np.iscomplexobj(image):
        raise DataError(
            f"volfs of {path} is complex; KD-MRI's layout stores its magnitude there.",
            "Save complex images as .npy, [slices, height, width].",
        )
    mask = None
    if kspace is not None:
        image, kspace, mask = _with_kspace(image, kspace, encoded[0], path)
    return Volume(
        image=image,
        **origin_of(path),
        kspace=kspace,
        kspace_mask=mask,
    )


def _dataset(file: h5py.File, name: str) -> NDArray[Any] | None:
    """The dataset's values, None where the file has no dataset of that name."""
    node = file.get(name)
    return values(node) if isinstance(node, h5py.Dataset) else None


def _no_reference(path: Path, names: list[str]) -> DataError:
    """Why a file without `volfs` is refused."""
    if any(_KSPACE.match(name) for name in names):
        return DataError(
            f"{path} holds undersampled k-space but no volfs, so there is nothing to compare with.",
            "Add the fully sampled magnitude as volfs, [height, width, slices].",
        )
    if any(name.startswith("img_volus_") for name in names):
        return DataError(
            f"{path} holds only img_volus_*, magnitudes of zero-filled images, with which data"
            " consistency does not hold.",
            "Add volfs (the fully sampled magnitude) or kspace_volus_* beside it.",
        )
    held = ", ".join(sorted(names)[:6]) or "nothing"
    return DataError(
        f"{path} is not in KD-MRI's layout (it holds {held}).",
        "It needs volfs, [height, width, slices], and optionally kspace_volus_4x.",
    )


def _with_kspace(
    image: NDArray[Any], stored: NDArray[Any], key: str, path: Path
) -> tuple[NDArray[Any], NDArray[np.complex64], Mask]:
    """Image, k-space and mask with phase encode along H and the image's origin at its centre."""
    if stored.ndim != 3 or stored.shape != (*image.shape[1:], image.shape[0]):
        raise DataError(
            f"{key} of {path} has shape {list(stored.shape)}, which is not that of volfs.",
            "Store both as [height, width, slices].",
        )
    if stored.dtype.kind != "c":
        raise DataError(
            f"{key} of {path} holds {stored.dtype} values, not complex ones.",
            "Store complex k-space, not its magnitude.",
        )
    kspace = np.moveaxis(stored, 2, 0).astype(np.complex64)
    if not np.isfinite(kspace).all():
        raise DataError(f"{key} of {path} holds NaN or infinite values.", "Export it again.")
    sampled = (kspace != 0).any(axis=0)
    if not sampled.any():
        raise DataError(f"{key} of {path} is all zero.", "Export it again.")
    reference = np.fft.fft2(image, norm="ortho") * sampled
    distance = np.linalg.norm(reference - kspace) / np.linalg.norm(kspace)
    if distance > _AGREEMENT:
        raise DataError(
            f"{key} of {path} is not the masked k-space of its volfs"
            f" (relative distance {distance:.2g}).",
            "Make it as numpy.fft.fft2(volfs, axes=(0, 1), norm='ortho') times the mask.",
        )
    ramps = [origin_ramp(size) for size in image.shape[1:]]  # exact zeros stay zero
    kspace = (kspace * ramps[0][:, None] * ramps[1]).astype(np.complex64)
    lines = sampled.mean(axis=1), sampled.mean(axis=0)
    name = f"{path.name}:{key.removeprefix('kspace_volus_')}"
    if is_lines(lines[0]):
        return image, kspace, Mask(samples=lines[0] > 0, name=name)
    if is_lines(lines[1]):
        image, kspace = np.swapaxes(image, 1, 2), np.swapaxes(kspace, 1, 2)
        mask = Mask(samples=lines[1] > 0, name=name)
        return np.ascontiguousarray(image), np.ascontiguousarray(kspace), mask
    return image, kspace, Mask(samples=sampled, name=name)
