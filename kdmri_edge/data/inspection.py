"""What is in a file, and what `kdmri-edge run` would take it as."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdmri_edge.data.formats.registry import format_of, read_either, readable_suffix
from kdmri_edge.data.geometry import Affine, directions, voxel_size
from kdmri_edge.data.orientation import Orientation
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.sources import HDF5_SUFFIXES
from kdmri_edge.data.volume import Volume
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.redraw import lines_around_zero

__all__ = ["FileInfo", "MaskInfo", "inspect", "scans_in"]


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
    """Name the scans of a file that holds several, each as `inspect` takes it; else the path alone.

    Args:
        path: As `inspect` takes it; what is no such file is returned as it is.
    """
    if not path.is_file() or readable_suffix(path) not in HDF5_SUFFIXES:
        return [path]
    from kdmri_edge.data.formats.hdf5.layouts import mrd_scans

    names = mrd_scans(path)
    return [path.with_name(f"{path.name}:{name}") for name in names] if len(names) > 1 else [path]


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
