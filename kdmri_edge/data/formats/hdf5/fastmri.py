"""fastMRI's HDF5 files (Zbontar et al., arXiv 1811.08839): measured complex k-space.

`kspace` is [slices, (coils), readout, phase encode], zero frequency in the middle; knee files are
640 x 368 or so, the readout sampled twice as densely as the image needs. `reconstruction_esc`
(320 x 320; of several coils `reconstruction_rss`) is the magnitude of its central part, and tells
how much of the readout is image; without it the header's fields of view do. Lines that are zero at
the edges alone are padding, which the reference holds too: k-space counts as fully sampled then.

Other software writes files of this kind for one slice of several coils, [coils, readout, phase
encode]. Where a reference does not tell that three axes begin with slices, images that look like
those of coils are refused: their axes have to be named. The attribute `patient_id` names the
subject: one patient may have several files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.formats.coil_axis import look_like_coils
from kdmri_edge.data.formats.hdf5.attributes import attribute_text
from kdmri_edge.data.formats.hdf5.opening import open_hdf5, values
from kdmri_edge.data.formats.measured import mask_of, remove_oversampling, volume_of
from kdmri_edge.data.formats.mrd_header import readout_pixels
from kdmri_edge.data.formats.registry import Origin, origin_of
from kdmri_edge.data.origins import zero_first
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.sources import AXES_HELP
from kdmri_edge.data.volume import Volume, checked_image
from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import kspace_to_image
from kdmri_edge.physics.masks import Mask
from kdmri_edge.utils.console import say

__all__ = ["fastmri_facts", "header_text", "is_fastmri", "read_fastmri_h5", "scan_fastmri_h5"]

_REFERENCES: Final = ("reconstruction_esc", "reconstruction_rss")


def is_fastmri(names: list[str]) -> bool:
    """Tell by the names of its datasets whether a file has this layout, whole or in part."""
    own = {"kspace", "ismrmrd_header", "reconstruction_esc", "reconstruction_rss"}
    submitted = list(names) == ["reconstruction"]  # to its leaderboards
    return submitted or (bool(own & set(names)) and "volfs" not in names)


class FileFacts(NamedTuple):
    """What a file says of itself; None where it does not, or is no file of fastMRI's."""

    subject: str | None = None
    contrast: str | None = None


def fastmri_facts(path: Path) -> FileFacts:
    """Return the patient and the acquisition ("AXT2") that a file names, without reading images."""
    try:
        with open_hdf5(path) as file:
            if not is_fastmri(list(file)):
                return FileFacts()
            told = (attribute_text(file.attrs.get(key)) for key in ("patient_id", "acquisition"))
            return FileFacts(*told)
    except DataError:
        return FileFacts()  # reading it will say what is wrong


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
    with open_hdf5(path) as file:
        node = file.get("kspace")
        stored = values(node) if isinstance(node, h5py.Dataset) else None
        readout = None if stored is None or stored.ndim < 2 else _readout(file, stored.shape[-2])
        slices = _slices(file)
        contrast = file.attrs.get("acquisition")
        names = [str(name) for name in file]
    if stored is None:
        only = ", ".join(name for name in names if name.startswith("reconstruction"))
        raise DataError(
            f"{path} holds no kspace{f', but {only}' if only else ''}.",
            "`kdmri-edge evaluate` compares such images; of k-space give a fastMRI training or"
            " validation file."
            if only
            else "Give a fastMRI training or validation file.",
        )
    if set(stored.dtype.names or ()) == {"real", "imag"}:
        stored = stored["real"] + np.complex64(1j) * stored["imag"]
    if stored.ndim not in (3, 4):
        remedy = (
            "fastMRI stores it as [slices, (coils), readout, phase encode]; name other axes, as"
            f" {path}:kspace:wh ({AXES_HELP})."
        )
        if stored.ndim > 4:
            remedy = (
                "fastMRI stores it as [slices, (coils), readout, phase encode]; give each"
                " measurement (average, contrast) in a file of its own."
            )
        if stored.dtype.kind == "f" and stored.ndim > 1 and stored.shape[-1] == 2:
            remedy = "Its last axis looks like real and imaginary parts: store complex numbers."
        raise DataError(f"kspace of {path} has shape {list(stored.shape)}.", remedy)
    if not stored.size:
        raise DataError(
            f"kspace of {path} is empty, of shape {list(stored.shape)}.", "Export the file again."
        )
    if stored.dtype.kind != "c":
        raise DataError(
            f"kspace of {path} holds {stored.dtype} values, not complex ones.",
            "Store complex k-space, not its magnitude.",
        )
    if stored.ndim == 3 and len(stored) > 1 and slices != len(stored):
        _check_slices(path, stored)
    return _Held(kspace=stored, readout=readout, contrast=attribute_text(contrast))


def _readout(file: h5py.File, count: int) -> int | None:
    """How many of the readout's points are image: by the reference, else by the header."""
    for name in _REFERENCES:
        reference = file.get(name)
        if isinstance(reference, h5py.Dataset) and reference.ndim == 3:
            return int(reference.shape[-2])
    text = header_text(file)
    return None if text is None else readout_pixels(text, count)


def header_text(file: h5py.File) -> str | None:
    """The ISMRMRD header of a file, None without one."""
    header = file.get("ismrmrd_header")
    if not isinstance(header, h5py.Dataset) or header.size != 1:
        return None
    text = values(header).astype(object).reshape(-1)[0]
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)


def _slices(file: h5py.File) -> int | None:
    """How many slices the reference has, None without one."""
    for name in _REFERENCES:
        reference = file.get(name)
        if isinstance(reference, h5py.Dataset) and reference.ndim == 3:
            return int(reference.shape[0])
    return None


def _check_slices(path: Path, stored: NDArray[Any]) -> None:
    """Say that the first of three axes is taken for slices, or ask where it looks like coils.

    Raises:
        DataError: The images look like those of coils of one slice.
    """
    named = f"{path}:kspace"
    if look_like_coils(stored):
        raise DataError(
            f"kspace of {path} has three axes, {list(stored.shape)}, and its {len(stored)} images"
            " show one object, as coils see it; nothing says that they are slices.",
            f"Name the axes: {named}:cwh for coils (chw where phase encode comes before readout),"
            f" {named}:swh for slices.",
        )
    say(
        f"Note: kspace of {path.name} has three axes and no reference; they are taken for slices,"
        f" readout, phase encode. Name them where they are others, as {path.name}:kspace:chw"
        f" ({AXES_HELP})."
    )


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
            "Use networks that combine coils (dccnn-d3c5-sense); or give a single-coil file"
            " (singlecoil_train or singlecoil_val), or combine the coils: `kdmri-edge data convert"
            " --magnitude`.",
        )
    scan = _scan(path, loaded)
    if not scan.mask.samples.all():
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


def _without_padding(mask: Mask) -> Mask:
    """All lines, where only some at the edges are missing: the file was padded with zeros."""
    if not mask.is_lines:
        return mask
    measured = np.flatnonzero(np.fft.fftshift(mask.samples))
    if len(measured) <= measured[-1] - measured[0]:
        return mask
    return Mask(samples=np.ones_like(mask.samples), name=mask.name)


def _scan(path: Path, loaded: _Held) -> Scan:
    # Before cropping: resampling leaves exact zeros exact along phase encode alone.
    origin = _origin(path, loaded)
    what = f"kspace of {path.name}"
    kspace, _ = zero_first(_arranged(loaded.kspace), what, centred=None, usual=True)
    mask = _without_padding(mask_of(kspace, origin["name"]))
    if loaded.readout is not None:
        kspace = remove_oversampling(kspace, loaded.readout)
    return Scan(kspace=np.ascontiguousarray(kspace, dtype=np.complex64), mask=mask, **origin)


def _origin(path: Path, loaded: _Held) -> Origin:
    """What the file itself says goes before what its name says."""
    named = origin_of(path)
    subject, contrast = fastmri_facts(path).subject, loaded.contrast
    return {
        **named,
        "subject": subject or named["subject"],
        "contrast": contrast or named["contrast"],
    }


def _arranged(stored: NDArray[Any]) -> NDArray[Any]:
    """[S, C, phase encode, readout], zero frequency where the file has it."""
    kspace = stored[:, None] if stored.ndim == 3 else stored
    return np.swapaxes(kspace, -1, -2)
