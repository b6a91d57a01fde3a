"""Converting between formats, with nothing lost in silence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdmri_edge import __version__
from kdmri_edge.data.formats.measured import root_sum_of_squares, volume_of
from kdmri_edge.data.formats.registry import (
    WRITERS,
    Format,
    format_of,
    read_either,
    readable_suffix,
    write_image_record,
    writer_suffix,
)
from kdmri_edge.data.geometry import voxel_size
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.orientation import Orientation
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.sources import split_dataset
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import OutputError
from kdmri_edge.physics.fourier import kspace_to_image
from kdmri_edge.utils.extras import load_attribute

__all__ = ["Conversion", "convert"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What was done.

    Attributes:
        source: What was read.
        destination: What was written.
        wrote: What it holds, in words.
        lost: What the source has and the destination has not, in words; empty if nothing.
    """

    source: str
    destination: str
    wrote: str
    lost: tuple[str, ...]


def convert(
    source: Path,
    destination: Path,
    *,
    magnitude: bool = False,
    kspace: bool = False,
    orientation: Orientation | str = Orientation.VENDOR,
) -> Conversion:
    """Write what a file holds in another format.

    Args:
        source: A file, a dataset of one, or the folder of a DICOM series.
        destination: Its suffix names the format.
        magnitude: Write magnitudes: of complex images, and of the images of k-space, several coils
            combined by the root of their sum of squares.
        kspace: A BART array of one coil is k-space, which the file does not say.
        orientation: Of raw data, see `registry.read_scan`.

    Raises:
        DataError: The source cannot be read.
        OutputError: The destination's format is unknown or cannot hold k-space or phase, or it is
            the source itself, or cannot be written.
        MissingExtraError: A format needs a library that is not installed.
    """
    row = format_of(writer_suffix(destination))
    if row is None:
        raise OutputError(
            f"{destination} has a suffix that no writer knows.",
            f"Supported are {', '.join(WRITERS)}.",
        )
    given = split_dataset(source)[0].resolve()
    if destination.resolve() in (given, *given.parents):
        raise OutputError(f"{destination} is the input, or holds it.", "Choose another name.")
    held = read_either(source, kspace=kspace, orientation=orientation)
    scan = held if isinstance(held, Scan) else _scan(held)
    if scan is not None and not magnitude and row.scan_writer is not None:
        load_attribute(row.scan_writer)(destination, scan)
        lost = _left_behind(row, scan, noise=row.noise)
        if isinstance(held, Volume) and not _are_its_images(held):
            lost.insert(0, "fully sampled images")
        return _done(source, destination, f"k-space of {scan.coils} coil(s)", lost)
    if scan is not None and not magnitude:
        _check_images_will_do(held, scan, row, destination)
    if isinstance(held, Scan):
        volume = volume_of(held) if held.coils == 1 else None
        image = root_sum_of_squares(held.kspace) if volume is None else volume.image
    else:
        image = held.image
    if magnitude:
        image = np.abs(image)
    elif np.iscomplexobj(image) and not row.phase:
        raise OutputError(
            f"{destination} would lose the images' phase: {row.name} holds magnitudes.",
            "Add --magnitude, or write .nii.gz, .npy, .cfl or .h5.",
        )
    dicom = readable_suffix(source) == ".dcm"
    affine = held.affine
    picture = ImageRecord(
        image=image,
        voxel_mm=held.voxel_mm if affine is None else voxel_size(affine),
        affine=affine,
        derivation=f"Converted to this format by kdmri-edge {__version__}.",
        dicom=source if dicom else None,
    )
    write_image_record(destination, picture)
    lost = _left_behind(row, held)
    lost += held.left_out if isinstance(held, Volume) else ()
    if magnitude and scan is not None:
        lost = ["k-space and phase", *lost]
    elif magnitude and isinstance(held, Volume) and held.is_complex:
        lost = ["phase", *lost]
    if dicom and row.name != "DICOM":
        lost.append("patient and study, on purpose")
    kind = "complex images" if np.iscomplexobj(image) else "magnitude images"
    return _done(source, destination, f"{kind}, {len(image)} slice(s)", lost)


def _are_its_images(volume: Volume) -> bool:
    """Whether a volume's images are those of its k-space; KD-MRI's files have whole ones too."""
    if volume.kspace is None:
        return True
    own = np.abs(kspace_to_image(volume.kspace))
    return bool(np.allclose(own, np.abs(volume.image), atol=1e-3 * float(own.max())))


def _scan(volume: Volume) -> Scan | None:
    """The undersampled k-space that a volume carries, None without any."""
    if volume.kspace is None or volume.kspace_mask is None:
        return None
    return Scan(
        kspace=np.ascontiguousarray(volume.kspace[:, None]),
        mask=volume.kspace_mask,
        name=volume.name,
        subject=volume.subject,
        affine=volume.affine,
    )


def _check_images_will_do(held: Scan | Volume, scan: Scan, row: Format, destination: Path) -> None:
    """Refuse images instead of k-space, unless the one is the other's Fourier transform."""
    if isinstance(held, Scan) and held.coils == 1 and row.phase:
        return
    what = f"the k-space of {scan.coils} coil(s)"
    raise OutputError(
        f"{destination} would lose {what}: {row.name} holds images.",
        "Write .cfl or .h5, or add --magnitude for magnitude images.",
    )


def _left_behind(row: Format, held: Scan | Volume, *, noise: bool = False) -> list[str]:
    """What has no place in what is written; `noise` says that noise and reference lines have."""
    lost = row.unsupported_metadata(held.affine, held.voxel_mm)
    if isinstance(held, Scan) and held.noise is not None and not noise:
        lost.append("noise scan")
    if isinstance(held, Scan) and held.reference is not None and not noise:
        lost.append("reference lines")
    return lost


def _done(source: Path, destination: Path, wrote: str, lost: list[Any]) -> Conversion:
    return Conversion(
        source=str(source), destination=str(destination), wrote=wrote, lost=tuple(lost)
    )
