"""fastMRI's HDF5 files (Zbontar et al., arXiv 1811.08839): measured complex k-space.

`kspace` is [slices, (coils), readout, phase encode], zero frequency in the middle; knee files are
640 x 368 or so, the readout sampled twice as densely as the image needs. `reconstruction_esc`
(320 x 320; of several coils `reconstruction_rss`) is the magnitude of its central part, and tells
how much of the readout is image. The attribute `patient_id` names the subject: one patient may have
several files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.formats.hdf5.attributes import attribute_text
from kdmri_edge.data.formats.measured import mask_of, remove_oversampling, volume_of
from kdmri_edge.data.formats.registry import Origin, origin_of
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.volume import Volume, checked_image
from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import kspace_to_image
from kdmri_edge.physics.masks import Mask

__all__ = ["fastmri_subject", "is_fastmri", "read_fastmri_h5", "scan_fastmri_h5"]

_RECON_MATRIX: Final = re.compile(
    r"<reconSpace>.*?<matrixSize>\s*<x>\s*(\d+)\s*</x>.*?</reconSpace>", re.S
)


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
    return attribute_text(value)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Held:
    """What a file holds that is used: k-space as stored, the image's readout, the contrast."""

    kspace: NDArray[Any]
    readout: int | None
    contrast: str | None


def _held(path: Path) -> _Held:
    """Read a file, whatever its number of coils.

    Raises:
        DataError: unreadable, no `kspace`, a wrong rank, or real numbers.
    """
    try:
        with h5py.File(path, "r") as file:
            node = file.get("kspace")
            stored = np.asarray(node[()]) if isinstance(node, h5py.Dataset) else None
            readout = _readout(file)
            contrast = file.attrs.get("acquisition")
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as HDF5 ({type(error).__name__}).",
            "The file is damaged or cut short: copy it again.",
        ) from error
    if stored is None:
        raise DataError(f"{path} holds no kspace.", "Give a fastMRI training or validation file.")
    if stored.ndim not in (3, 4):
        raise DataError(
            f"kspace of {path} has shape {list(stored.shape)}.",
            "fastMRI stores it as [slices, (coils), readout, phase encode].",
        )
    if stored.dtype.kind != "c":
        raise DataError(
            f"kspace of {path} holds {stored.dtype} values, not complex ones.",
            "Store complex k-space, not its magnitude.",
        )
    return _Held(kspace=stored, readout=readout, contrast=attribute_text(contrast))


def _readout(file: h5py.File) -> int | None:
    """How many of the readout's points are image: by the reference, else by the header."""
    for name in ("reconstruction_esc", "reconstruction_rss"):
        reference = file.get(name)
        if isinstance(reference, h5py.Dataset) and reference.ndim == 3:
            return int(reference.shape[-2])
    header = file.get("ismrmrd_header")
    if not isinstance(header, h5py.Dataset) or header.shape != ():
        return None
    text = header[()]
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    found = _RECON_MATRIX.search(text)
    return int(found[1]) if found else None


def read_fastmri_h5(path: Path) -> Volume:
    """Read a single-coil file.

    The image is complex, [S, phase encode, readout], the readout cropped to the reference's where
    the file has one (without that, to the header's matrix; without either, oversampling stays),
    phase encode whole: its lines are those that were measured, so a mask of as many lines
    undersamples them as a scanner would have. Lines that are zero at the edges alone are padding;
    of a file with gaps (fastMRI's test and challenge sets) the volume carries its k-space and mask.

    Args:
        path: an `.h5` file.

    Returns:
        complex64 volume, in the file's unit.

    Raises:
        DataError: unreadable, no `kspace`, several coils, real numbers, NaN, all zero, or slices
            that were sampled differently.
    """
    loaded = _held(path)
    if loaded.kspace.ndim == 4 and loaded.kspace.shape[1] != 1:
        raise DataError(
            f"kspace of {path} has {loaded.kspace.shape[1]} coils.",
            "Give a single-coil file (singlecoil_train or singlecoil_val), or combine the coils:"
            " `kdmri-edge data convert --magnitude`.",
        )
    scan = _scan(path, loaded)
    if _has_gaps(scan.mask):
        return volume_of(scan)
    kspace = scan.kspace[:, 0]
    return Volume(
        image=checked_image(kspace_to_image(kspace).astype(np.complex64), path),
        **_origin(path, loaded),
        measured=True,
    )


def scan_fastmri_h5(path: Path) -> Scan:
    """Read a single- or multi-coil file as measured k-space; its zeros tell the mask.

    Raises:
        DataError: as for `read_fastmri_h5`, several coils apart, or slices that were sampled
            differently.
    """
    return _scan(path, _held(path))


def _has_gaps(mask: Mask) -> bool:
    """Whether lines are missing between the outermost ones that were measured."""
    if not mask.is_lines:
        return True
    measured = np.flatnonzero(np.fft.fftshift(mask.samples))
    return bool(len(measured) <= measured[-1] - measured[0])


def _scan(path: Path, loaded: _Held) -> Scan:
    # Before cropping: resampling leaves exact zeros exact along phase encode alone.
    origin = _origin(path, loaded)
    mask = mask_of(_arranged(loaded.kspace), origin["name"])
    return Scan(
        kspace=np.ascontiguousarray(_cropped(loaded), dtype=np.complex64),
        mask=mask,
        **origin,
    )


def _origin(path: Path, loaded: _Held) -> Origin:
    """What the file itself says goes before what its name says."""
    named = origin_of(path)
    subject, contrast = fastmri_subject(path), loaded.contrast
    return {
        **named,
        "subject": subject or named["subject"],
        "contrast": contrast or named["contrast"],
    }


def _arranged(stored: NDArray[Any]) -> NDArray[Any]:
    """[S, C, phase encode, readout], zero frequency at index 0."""
    kspace = stored[:, None] if stored.ndim == 3 else stored
    return np.fft.ifftshift(np.swapaxes(kspace, -1, -2), axes=(-2, -1))


def _cropped(loaded: _Held) -> NDArray[Any]:
    kspace = _arranged(loaded.kspace)
    return kspace if loaded.readout is None else remove_oversampling(kspace, loaded.readout)
