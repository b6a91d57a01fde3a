"""BART's arrays: NAME.cfl (complex64, first axis fastest) with its sizes in NAME.hdr.

Axes are READ, PHS1, PHS2, COIL, ... (BART's documentation): W = READ, H = PHS1, S = SLICE (axis
13). K-space has zero frequency at N // 2 (where its energy peaks at index 0 instead, that is taken
and said, see `data.origins`); BART's unitary transform is `physics.fourier`'s. A file
does not say whether it holds images or k-space: several coils are k-space, a single one is images
to `read_bart` and k-space to `scan_bart`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.formats.measured import mask_of
from kdmri_edge.data.formats.registry import origin_of
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.origins import zero_first
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.volume import Volume, checked_image
from kdmri_edge.errors import DataError
from kdmri_edge.utils.files import atomic_path
from kdmri_edge.utils.reading import check_claim, file_bytes, reading

__all__ = ["bart_is_kspace", "read_bart", "scan_bart", "write_bart", "write_bart_scan"]

_HEADER: Final = 1 << 16  # characters: sizes come first
_READ, _PHASE, _COIL, _SLICE, _AXES = 0, 1, 3, 13, 16
_NAMES: Final = ("READ", "PHS1", "PHS2", "COIL", "MAPS", "TE", "COEFF", "COEFF2", "ITER", "CSHIFT",
                 "TIME", "TIME2", "LEVEL", "SLICE", "AVG", "BATCH")  # fmt: skip


def _sizes(path: Path) -> list[int]:
    """The sizes of all 16 axes, from NAME.hdr."""
    header = path.with_suffix(".hdr")
    if not header.is_file():
        raise DataError(f"{path} cannot be read: its {header.name} is missing.", "Copy both files.")
    try:
        with header.open(encoding="utf-8", errors="replace") as file:
            # further down BART writes commands and paths, in whatever encoding they have
            lines = file.read(_HEADER).splitlines()
        at = next(n for n, line in enumerate(lines) if line.strip() == "# Dimensions")
        sizes = [int(word) for word in lines[at + 1].split()]
    except (OSError, ValueError, IndexError, StopIteration) as error:
        raise DataError(
            f"{path} cannot be read: {header.name} gives no dimensions.", "Write it with BART."
        ) from error
    if not sizes or min(sizes) < 1 or len(sizes) > _AXES:
        raise DataError(
            f"{path} cannot be read: {header.name} gives the dimensions {sizes}.",
            "Write it with BART.",
        )
    return sizes + [1] * (_AXES - len(sizes))


def bart_is_kspace(path: Path, kspace: bool) -> bool:
    """Tell whether a file holds k-space: of several coils it does, of one the user has to say so.

    Raises:
        DataError: No readable header.
    """
    return kspace or _sizes(path)[_COIL] > 1


def _load(path: Path) -> NDArray[np.complex64]:
    """[S, C, H, W] as stored.

    Raises:
        DataError: Unreadable, cut short, or more axes in use than a scan has.
    """
    sizes = _sizes(path)
    used = {_READ, _PHASE, _COIL, _SLICE}
    other = next((a for a in range(_AXES) if a not in used and sizes[a] > 1), None)
    if other is not None:
        raise DataError(
            f"{path} has {sizes[other]} entries along {_NAMES[other]}: more than one measurement,"
            " or three dimensions.",
            f"Give slices along SLICE (axis 13) alone: `bart slice {other} 0` takes one entry.",
        )
    needed = 8 * math.prod(sizes)
    held = file_bytes(path)
    check_claim(needed, path)
    if held != needed:
        raise DataError(
            f"{path} cannot be read: it has {held} bytes, and its header asks for {needed}.",
            "Copy both files again.",
        )
    with reading(path, "BART's array"):
        data = np.fromfile(path, dtype="<c8").reshape(sizes, order="F")
    data = data.transpose(_SLICE, _COIL, _PHASE, _READ, *(a for a in range(_AXES) if a not in used))
    return np.ascontiguousarray(data.reshape(data.shape[:4]), dtype=np.complex64)


def read_bart(path: Path) -> Volume:
    """Read images.

    Returns:
        complex64 volume; float32 where nothing is imaginary and nothing negative.

    Raises:
        DataError: Unreadable, cut short, several coils, more than one measurement, or no image.
    """
    pixels: NDArray[Any] = _load(path)
    if pixels.shape[1] > 1:
        raise DataError(
            f"{path} has {pixels.shape[1]} coils.",
            "Combine them first: `kdmri-edge data convert --magnitude`, or BART's pics or rss.",
        )
    if not pixels.imag.any() and pixels.real.min() >= 0:
        pixels = pixels.real
    return Volume(
        image=checked_image(pixels[:, 0], path),
        **origin_of(path),
    )


def scan_bart(path: Path) -> Scan:
    """Read k-space; its zeros tell the mask.

    Raises:
        DataError: Unreadable, cut short, more than one measurement, or slices that were sampled
            differently.
    """
    kspace, _ = zero_first(_load(path), path.name, centred=None, usual=True)
    origin = origin_of(path)
    return Scan(
        kspace=kspace,
        mask=mask_of(kspace, origin["name"]),
        **origin,
    )


def write_bart(path: Path, picture: ImageRecord) -> None:
    """Write images [S, H, W]; there is no place for voxel sizes or geometry.

    Raises:
        OutputError: The place cannot be written to.
    """
    _save(path, picture.image[:, None])


def write_bart_scan(path: Path, scan: Scan) -> None:
    """Write k-space, zero where it was not sampled; geometry and noise have no place.

    Raises:
        OutputError: The place cannot be written to.
    """
    _save(path, np.fft.fftshift(scan.kspace, axes=(-2, -1)))


def _save(path: Path, stored: NDArray[Any]) -> None:
    """Write [S, C, H, W] as a pair of files, the header last to arrive."""
    slices, coils, height, width = stored.shape
    sizes = [1] * _AXES
    sizes[_READ], sizes[_PHASE], sizes[_COIL], sizes[_SLICE] = width, height, coils, slices
    with (
        atomic_path(path.with_suffix(".hdr")) as header,
        atomic_path(path) as data,
    ):
        # C order of [S, C, H, W] is BART's order of READ, PHS1, COIL, SLICE.
        np.ascontiguousarray(stored, dtype="<c8").tofile(data)
        text = f"# Dimensions\n{' '.join(map(str, sizes))} \n"
        header.write_text(text, encoding="ascii")
