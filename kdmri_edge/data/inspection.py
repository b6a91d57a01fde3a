"""What is in a file, and what `kdmri-edge run` would take it as."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from kdmri_edge.data.datasets import find_volumes
from kdmri_edge.data.formats.dicom.files import is_series
from kdmri_edge.data.formats.registry import format_of, read_either, readable_suffix
from kdmri_edge.data.geometry import Affine, directions, voxel_size
from kdmri_edge.data.orientation import Orientation
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.sources import HDF5_SUFFIXES, split_dataset
from kdmri_edge.data.volume import Volume
from kdmri_edge.physics.masks import Mask, load_mask, load_masks
from kdmri_edge.physics.redraw import lines_around_zero
from kdmri_edge.utils.arrays import read_array

__all__ = ["FileInfo", "MaskInfo", "inspect", "masks_in", "scans_in"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskInfo:
    """What was sampled.

    Attributes:
        kind: "lines" along readout, or single "points".
        sampled: How many of them.
        of: How many there are.
        acceleration: of / sampled.
        centre_lines: Contiguous sampled lines around zero frequency; None for points.
    """

    kind: str
    sampled: int
    of: int
    acceleration: float
    centre_lines: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FileInfo:
    """What `kdmri-edge data inspect` says of a file.

    Attributes:
        file: As it was given.
        format: With its layout.
        holds: "k-space", "magnitude images", "complex images", or images with k-space.
        slices: S.
        matrix: (H, W): phase encode, readout.
        coils: C; None for images.
        mask: None for images.
        voxel_mm: Along (S, H, W), None where unknown.
        directions: Where S, H and W grow to in the patient, see `geometry.directions`.
        noise_samples: Of each coil, 0 without a noise scan; None for images.
        subject: What splits go by.
        contrast: None where unknown.
        taken: Whether `kdmri-edge run` takes the file as it is.
        run: As what it does, or why it does not and the remedy.
        orientation: How H and W run to the directions of phase encode and readout that raw data
            gives, "along" or "against"; None where the format gives none.
        vendor: Who made the scanner, where raw data tells.
        left_out: What else the file holds that is not read, in words.
        reference: Of a fastMRI file, the images that `kdmri-edge evaluate` compares with, in words.
        remarks: What one should know of it besides, in sentences.
    """

    file: str
    format: str
    holds: str
    slices: int
    matrix: tuple[int, int]
    coils: int | None
    mask: MaskInfo | None
    voxel_mm: tuple[float, float, float] | None
    directions: str | None
    noise_samples: int | None
    subject: str
    contrast: str | None
    taken: bool
    run: str
    orientation: str | None = None
    vendor: str | None = None
    left_out: tuple[str, ...] = ()
    reference: str | None = None
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def inspect(
    path: Path, *, kspace: bool = False, orientation: Orientation | str = Orientation.VENDOR
) -> FileInfo:
    """Read a file and say what is in it.

    Args:
        path: A file, a dataset of one, or the folder of a DICOM series.
        kspace: A BART array of one coil is k-space, which the file does not say.
        orientation: Of raw data, see `registry.read_scan`.

    Raises:
        DataError: It cannot be read, or holds nothing that this project reads.
        MissingExtraError: Its format needs a library that is not installed.
    """
    loaded = read_either(path, kspace=kspace, orientation=orientation)
    taken, run = _run(loaded, path)
    common: dict[str, Any] = {
        "file": str(path),
        "format": _format(path),
        "matrix": loaded.matrix,
        "subject": loaded.subject,
        "contrast": loaded.contrast,
        "directions": _directions(loaded.affine),
        "remarks": _remarks(loaded),
        "taken": taken,
        "run": run,
    }
    if isinstance(loaded, Scan):
        return FileInfo(
            **common,
            holds="k-space",
            slices=len(loaded.kspace),
            coils=loaded.coils,
            mask=_mask(loaded.mask),
            voxel_mm=loaded.voxel_mm,
            noise_samples=0 if loaded.noise is None else int(loaded.noise.shape[1]),
            orientation=loaded.orientation,
            vendor=loaded.vendor,
            reference=_reference(path),
        )
    kind = "complex images" if loaded.is_complex else "magnitude images"
    return FileInfo(
        **common,
        holds=kind if loaded.kspace is None else f"{kind} and their undersampled k-space",
        slices=len(loaded.image),
        coils=None if loaded.kspace is None else 1,
        mask=None if loaded.kspace_mask is None else _mask(loaded.kspace_mask),
        voxel_mm=voxel_size(loaded.affine) if loaded.affine is not None else loaded.voxel_mm,
        noise_samples=None,
        left_out=loaded.left_out,
    )


def scans_in(path: Path) -> list[Path]:
    """Name all that a folder holds, and the scans of a file that holds several.

    Args:
        path: As `inspect` takes it, or a folder of files; what is neither is returned as it is.

    Returns:
        Each as `inspect` takes it.

    Raises:
        DataError: A folder without volumes.
    """
    if path.is_dir() and not is_series(path):
        return [scan for file in find_volumes(path) for scan in scans_in(file.path)]
    if not path.is_file() or readable_suffix(path) not in HDF5_SUFFIXES:
        return [path]
    from kdmri_edge.data.formats.hdf5.layouts import mrd_scans

    names = mrd_scans(path)
    return [path.with_name(f"{path.name}:{name}") for name in names] if len(names) > 1 else [path]


def masks_in(path: Path) -> dict[str, MaskInfo] | None:
    """Describe the sampling masks of a file by their keys, as in FILE:KEY; "" for a sole one.

    Returns:
        None for a file that is none of masks.

    Raises:
        MaskError: It is one, and is damaged.
    """
    if path.suffix.lower() == ".json" and path.is_file():
        return {key: _mask(mask) for key, mask in load_masks(path).items()}
    if path.suffix.lower() != ".npy" or not path.is_file():
        return None
    array = read_array(path)
    if array.size < 2 or sum(size > 1 for size in array.shape) > _MASK_AXES:
        return None
    if array.dtype.kind not in "buif" or not np.isin(array, (0, 1)).all():
        return None
    return {"": _mask(load_mask(path))}


_MASK_AXES: Final = 2
_LABELS: Final = 16
"""Fewer values than this in a whole volume are labels, not intensities."""
_LOOKED_AT: Final = 1 << 20
"""Pixels of which the values are counted."""
_GRID: Final = (
    "The directions are those of a plain grid that begins at 0, as software writes it that knows"
    " none: they may be made up."
)


def _remarks(loaded: Scan | Volume) -> tuple[str, ...]:
    said = []
    if isinstance(loaded, Volume) and not loaded.is_complex:
        pixels = loaded.image.reshape(-1)
        values = np.unique(pixels[:: max(1, len(pixels) // _LOOKED_AT)])
        if len(pixels) > _LABELS > len(values) > 1 and (values == np.round(values)).all():
            said.append(
                f"Its pixels have no more than {len(values)} values: this looks like a mask of a"
                " lesion or an organ, not like an MR image."
            )
    if isinstance(loaded, Scan) and loaded.mask.samples.all():
        empty = int((~loaded.kspace.any(axis=(0, 1, 3))).sum())
        if empty:
            said.append(
                f"{empty} of the lines are zeros at the edges, which count as measured: padding, or"
                " what a partial Fourier scan left out."
            )
    if loaded.affine is not None and _is_plain_grid(loaded.affine):
        said.append(_GRID)
    return tuple(said)


def _is_plain_grid(affine: Affine) -> bool:
    steps = affine[:3, :3]
    return bool(
        not affine[:3, 3].any() and np.count_nonzero(steps) == len(steps) and (steps >= 0).all()
    )


def _reference(path: Path) -> str | None:
    """Name the reference of a fastMRI file, None for other files and those without."""
    if readable_suffix(path) not in HDF5_SUFFIXES or split_dataset(path)[1] is not None:
        return None
    from kdmri_edge.data.formats.hdf5.fastmri_images import named_reference
    from kdmri_edge.data.formats.hdf5.layouts import is_fastmri_layout

    return named_reference(path) if is_fastmri_layout(path) else None


def _format(path: Path) -> str:
    suffix = readable_suffix(path)
    if suffix in HDF5_SUFFIXES:
        from kdmri_edge.data.formats.hdf5.layouts import layout_of

        return layout_of(path).name
    row = format_of(suffix)
    return row.name if row else ""


def _directions(affine: Affine | None) -> str | None:
    return None if affine is None else directions(affine)


def _mask(mask: Mask) -> MaskInfo:
    return MaskInfo(
        kind="lines" if mask.is_lines else "points",
        sampled=int(mask.samples.sum()),
        of=int(mask.samples.size),
        acceleration=round(mask.nominal_acceleration, 4),
        centre_lines=lines_around_zero(mask) if mask.is_lines else None,
    )


def _run(loaded: Scan | Volume, path: Path) -> tuple[bool, str]:
    """Whether `kdmri-edge run` takes it, and as what, or why not and the remedy."""
    if isinstance(loaded, Scan) and loaded.coils == 1 and readable_suffix(path) == ".cfl":
        return False, (
            "a .cfl file of one coil is read as images, since it does not say that it holds"
            f" k-space; `kdmri-edge data convert {path} OUT.h5 --kspace` writes k-space that run"
            " knows (extra mrd)"
        )
    mask = loaded.mask if isinstance(loaded, Scan) else loaded.kspace_mask
    if mask is not None:
        coils = loaded.coils if isinstance(loaded, Scan) else 1
        several = (
            "" if coils == 1
            else f"; run combines the {coils} coils for a network of one image, and networks such"
            " as dccnn-d3c5-sense combine them themselves"
        )  # fmt: skip
        if mask.samples.all():
            return True, f"fully sampled k-space: give --undersample{several}"
        return True, (
            "undersampled k-space, for a network of this sampling mask or one that was exported"
            f" with --mask input or --matrix any{several}"
        )
    if isinstance(loaded, Volume) and loaded.is_complex:
        return True, (
            "complex images: zero-filled ones of undersampled k-space, for a network of the mask"
            " that they were sampled with; for fully sampled ones give --undersample"
        )
    return True, (
        "magnitude images: for fully sampled ones give --undersample; images of low resolution go"
        " to a network for super-resolution (vdsr-7)"
    )
