"""File formats: the table of them, and reading and writing by it.

Readers, writers, `kdmri-edge data` and the README's table follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.formats.dicom.files import is_dicom, is_series
from kdmri_edge.data.geometry import Affine
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.orientation import Orientation, known, not_raw, oriented
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.sources import HDF5_SUFFIXES, parse_name, source_sha256, split_dataset
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError, OutputError
from kdmri_edge.registry import Registry
from kdmri_edge.utils.extras import load_attribute
from kdmri_edge.utils.reading import reading

__all__ = [
    "FORMATS",
    "READERS",
    "SCAN_READERS",
    "WRITERS",
    "Format",
    "Origin",
    "Reader",
    "ScanReader",
    "Writer",
    "check_input",
    "format_of",
    "known_suffix",
    "may_be_fastmri",
    "origin_of",
    "read_either",
    "read_scan",
    "read_volume",
    "readable_suffix",
    "stem_of",
    "suffix_of",
    "write_image",
    "write_image_record",
    "writer_suffix",
]


_LEAST_PERCENT: Final = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A row of the table. Functions are import strings, "module:function".

    Attributes:
        name: For `kdmri-edge data inspect` and messages.
        suffixes: Lower case, with the dot.
        volume: Reader of images and single-coil data, `Reader`.
        scan: Reader of measured k-space of any number of coils, `ScanReader`; None without one.
        is_kspace: Of formats with both readers whose files may hold either: tells from a path,
            and whether the user calls it k-space, whether `scan` reads it. None: `scan` reads all.
        writer: Writer of images, `Writer`; None without one.
        scan_writer: Writer of measured k-space, `ScanWriter`; None without one.
        result: Suffix of reconstructions of its files where no name is given.
        phase: Whether the writer keeps complex images.
        clipped: Tells of real images which share of their pixels is negative and becomes 0 in the
            files; None where they keep negative values.
        geometry: Whether the writers keep position and orientation.
        noise: Whether the writer of k-space keeps a noise scan.
        extra: The extra that brings its library, None for the base install.
        reads: What it is read for, for the README.
        writes: What is written, for the README.
        keeps: What a round trip keeps besides the pixels.
    """

    name: str
    suffixes: tuple[str, ...]
    volume: str
    scan: str | None = None
    is_kspace: str | None = None
    writer: str | None = None
    scan_writer: str | None = None
    result: str = ".npy"
    phase: bool = True
    clipped: str | None = None
    geometry: bool = False
    noise: bool = False
    extra: str | None = None
    reads: str
    writes: str = "-"
    keeps: str = "-"

    def unsupported_metadata(self, affine: object | None, voxel_mm: object | None) -> list[str]:
        """Say which parts of an image's place its files cannot hold."""
        if self.geometry:
            return []
        parts = {"position and orientation": affine, "voxel size": voxel_mm}
        return [name for name, value in parts.items() if value is not None]

    def unsupported_values(self, image: NDArray[Any]) -> list[str]:
        """Say which values of images, as they are written, its files cannot hold."""
        if self.clipped is None:
            return []
        share = 100 * float(load_attribute(self.clipped)(image))
        if not share:
            return []
        rounded = f"{share:.1f} %" if share >= _LEAST_PERCENT else f"less than {_LEAST_PERCENT} %"
        return [f"negative values ({rounded} of the pixels, now 0)"]


_ROWS: Final[tuple[Format, ...]] = (
    Format(
        name="NIfTI",
        suffixes=(".nii.gz", ".nii"),
        volume="kdmri_edge.data.formats.nifti:read_nifti",
        writer="kdmri_edge.data.formats.nifti:write_nifti",
        result=".nii.gz",
        geometry=True,
        extra="formats",
        reads="magnitude or complex images",
        writes="the same",
        keeps="phase, geometry",
    ),
    Format(
        name="DICOM",
        suffixes=(".dcm",),
        volume="kdmri_edge.data.formats.dicom.reading:read_dicom",
        writer="kdmri_edge.data.formats.dicom.writing:write_dicom",
        result=".dcm",
        phase=False,
        clipped="kdmri_edge.data.formats.dicom.writing:clipped_share",
        geometry=True,
        extra="formats",
        reads="magnitude images of a series, classic or enhanced: a folder, or a file",
        writes="MR images, or secondary captures where no geometry is known; a folder of one file"
        " per slice, called `NAME.dcm`",
        keeps="geometry; patient and study from DICOM to DICOM only",
    ),
    Format(
        name="HDF5",
        suffixes=HDF5_SUFFIXES,
        volume="kdmri_edge.data.formats.hdf5.layouts:read_hdf5",
        scan="kdmri_edge.data.formats.hdf5.layouts:scan_hdf5",
        is_kspace="kdmri_edge.data.formats.hdf5.layouts:hdf5_is_kspace",
        writer="kdmri_edge.data.formats.hdf5.mrd:write_mrd_images",
        scan_writer="kdmri_edge.data.formats.hdf5.mrd:write_mrd_scan",
        geometry=True,
        noise=True,
        reads="KD-MRI's layout; fastMRI's, single- and multi-coil; ISMRMRD / MRD, readouts (as"
        " streams too) or images (extra `mrd`), of several scans one as `FILE.h5:GROUP`; any"
        " dataset of k-space, named as `FILE.h5:DATASET:AXES`",
        writes="MRD (extra `mrd`): images, or readouts of k-space",
        keeps="phase, geometry; k-space, coils, unsampled lines, noise",
    ),
    Format(
        name="Siemens TWIX",
        suffixes=(".dat",),
        volume="kdmri_edge.data.formats.twix:read_twix",
        scan="kdmri_edge.data.formats.twix:scan_twix",
        result=".nii.gz",
        extra="scanner",
        reads="raw data of Cartesian 2-D scans: slices, coils, averages, partial Fourier, noise,"
        " geometry",
    ),
    Format(
        name="BART",
        suffixes=(".cfl",),
        volume="kdmri_edge.data.formats.bart:read_bart",
        scan="kdmri_edge.data.formats.bart:scan_bart",
        is_kspace="kdmri_edge.data.formats.bart:bart_is_kspace",
        writer="kdmri_edge.data.formats.bart:write_bart",
        scan_writer="kdmri_edge.data.formats.bart:write_bart_scan",
        result=".cfl",
        reads="images, or k-space of any number of coils, [READ, PHS1, 1, COIL, ..., SLICE]",
        writes="the same (`.cfl` and `.hdr`)",
        keeps="phase; k-space, coils, unsampled lines",
    ),
    Format(
        name="NumPy",
        suffixes=(".npy",),
        volume="kdmri_edge.data.formats.npy:read_npy",
        writer="kdmri_edge.data.formats.npy:write_npy",
        reads="magnitude or complex images [S, H, W]",
        writes="the same",
        keeps="phase",
    ),
)


FORMATS: Final = Registry(
    "kdmri_edge.formats",
    Format,
    "format",
    {row.name: row for row in _ROWS},
    error=DataError,
    claims=lambda row: row.suffixes,
)
"""Rows in the order of the README's table; a suffix belongs to one row."""


class _BySuffix(Mapping[str, str]):
    """What the formats have of one kind, by suffix: "module:function".

    The formats of installed packages are looked at where the built-in ones do not have a suffix.

    Args:
        of: Returns what a format has; None for nothing.
    """

    def __init__(self, of: Callable[[Format], str | None]) -> None:
        self._of = of

    def __getitem__(self, suffix: str) -> str:
        row = format_of(suffix)
        found = None if row is None else self._of(row)
        if found is None:
            raise KeyError(suffix)
        return found

    def __iter__(self) -> Iterator[str]:
        return (suffix for row in FORMATS.values() if self._of(row) for suffix in row.suffixes)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def format_of(suffix: str | None) -> Format | None:
    """The row of a suffix (lower case, with the dot), None where there is none."""
    return next((row for row in FORMATS.values() if suffix in row.suffixes), None)


Reader = Callable[[Path], Volume]

READERS: Final[Mapping[str, str]] = _BySuffix(lambda row: row.volume)
"""Suffix (lower case, with the dot) -> "module:function" of a `Reader`."""


def known_suffix(path: Path, table: Iterable[str]) -> str | None:
    """The suffix of a table that a file's name ends with, None without one; case is ignored."""
    name = path.name.lower()
    return next((suffix for suffix in table if name.endswith(suffix) and name != suffix), None)


def suffix_of(path: Path) -> str | None:
    """The key of `READERS` for this file, None when there is none; letter case is ignored."""
    return known_suffix(path, READERS)


def stem_of(path: Path) -> str:
    """The file's name without its known suffix (`.nii.gz` is one suffix)."""
    suffix = suffix_of(path)
    return path.name[: -len(suffix)] if suffix else path.stem


class Origin(TypedDict):
    """What a file's name and bytes tell, as arguments of a volume or a scan."""

    name: str
    subject: str
    contrast: str | None
    sha256: str


def origin_of(path: Path) -> Origin:
    """Return the name, subject and contrast that a file's name holds, and its SHA-256."""
    stem = stem_of(path)
    subject, contrast = parse_name(stem)
    return Origin(name=stem, subject=subject, contrast=contrast, sha256=source_sha256(path))


def check_input(path: Path) -> None:
    """Refuse what is not there, and a folder that is no DICOM series.

    Raises:
        DataError: In one sentence.
    """
    file, _ = split_dataset(path)
    if not file.exists():
        raise DataError(f"{file} does not exist.", "Check the path.")
    if file.is_dir() and not is_series(file):
        raise DataError(f"{file} is a folder, not a file.", "Give one of the files in it.")
    if not file.is_dir() and not file.is_file():
        raise DataError(f"{file} is a device or a pipe.", "Give a file.")


def unknown_suffix(path: Path) -> DataError:
    """Say that no reader knows a file, or which one it belongs to."""
    data = path.with_suffix(".cfl")
    if path.suffix.lower() == ".hdr" and data.is_file():
        return DataError(f"{path} is the header of {data.name}.", f"Give {data}.")
    return DataError(
        f"{path} has a suffix that no reader knows.", f"Supported are {', '.join(READERS)}."
    )


def read_volume(path: Path) -> Volume:
    """Read one file with the reader that its suffix names.

    Args:
        path: a file in one of the formats of `READERS`; a dataset of one, FILE.h5:DATASET:AXES; or
            a folder that holds one DICOM series.

    Returns:
        The volume as stored, at its own matrix size.

    Raises:
        DataError: missing, not a file, unknown suffix, unreadable, or not an MR volume.
        MissingExtraError: the format needs an optional library that is not installed.
    """
    path = Path(path)
    check_input(path)
    suffix = readable_suffix(path)
    if suffix is None:
        raise unknown_suffix(path)
    with _read_as(suffix, path):
        reader: Reader = load_attribute(READERS[suffix])
        return reader(path)


def _read_as(suffix: str, path: Path) -> AbstractContextManager[None]:
    """Whatever a reader raises, its own or another package's, is one sentence."""
    if suffix in HDF5_SUFFIXES:
        from kdmri_edge.data.formats.hdf5.opening import begin

        begin()  # while the readers load
    row = format_of(suffix)
    return reading(path, suffix if row is None else row.name)


def readable_suffix(path: Path) -> str | None:
    """The key of `READERS` for what lies at a path, None when there is none.

    DICOM goes by more than the name: `.dcm` stands for files without suffix and for folders too.
    """
    file, _ = split_dataset(path)
    return ".dcm" if is_series(file) or is_dicom(file) else suffix_of(file)


def may_be_fastmri(path: Path) -> bool:
    """Tell by its name whether a file may be fastMRI's: HDF5, of which no one dataset is named."""
    return readable_suffix(path) in HDF5_SUFFIXES and split_dataset(path)[1] is None


ScanReader = Callable[[Path], Scan]

SCAN_READERS: Final[Mapping[str, str]] = _BySuffix(lambda row: row.scan)
"""Suffix (lower case, with the dot) -> "module:function" of a `ScanReader`."""


def read_either(
    path: Path, *, kspace: bool = False, orientation: Orientation | str = Orientation.VENDOR
) -> Scan | Volume:
    """Read measured k-space as a scan, whatever its number of coils, and everything else as images.

    Args:
        path: As for `read_scan` and `read_volume`.
        kspace: A BART array of one coil is k-space, which the file does not say.
        orientation: See `read_scan`.

    Raises:
        DataError: See `read_scan` and `read_volume`; or images that are to be k-space, or whose
            orientation is to be another.
        MissingExtraError: The format needs an optional library that is not installed.
    """
    path = Path(path)
    check_input(path)
    row = format_of(readable_suffix(path))
    measured = row is not None and row.scan is not None
    if row is not None and row.is_kspace is not None:
        with _read_as(str(readable_suffix(path)), path):
            measured = load_attribute(row.is_kspace)(path, kspace)
    if measured:
        return read_scan(path, orientation=orientation)
    volume = read_volume(path)
    if kspace and volume.kspace is None:
        raise DataError(
            f"{path} holds images, not k-space.",
            "Leave --kspace out: it is of BART arrays (.cfl), which do not say what they hold.",
        )
    if known(orientation) is not Orientation.VENDOR:
        raise not_raw(volume.name)
    return volume


def read_scan(path: Path, *, orientation: Orientation | str = Orientation.VENDOR) -> Scan:
    """Read a file of measured k-space.

    Args:
        path: A file in one of the formats of `SCAN_READERS`, or a dataset of one,
            FILE.h5:DATASET:AXES.
        orientation: How H and W run to the directions that raw data gives: "along" or "against"
            them, or as its vendor's data does; see `data.orientation`.

    Returns:
        All slices and coils.

    Raises:
        DataError: Missing, unreadable, no k-space that a `Scan` holds, or no directions that
            `orientation` could be said of.
        MissingExtraError: The format needs an optional library that is not installed.
    """
    path = Path(path)
    check_input(path)
    suffix = readable_suffix(path)
    if suffix is None or suffix not in SCAN_READERS:
        raise DataError(
            f"{split_dataset(path)[0]} is of a format that holds no measured k-space.",
            f"Formats that do are {', '.join(SCAN_READERS)}.",
        )
    with _read_as(suffix, path):
        reader: ScanReader = load_attribute(SCAN_READERS[suffix])
        return oriented(reader(path), orientation)


Writer = Callable[[Path, ImageRecord], None]

WRITERS: Final[Mapping[str, str]] = _BySuffix(lambda row: row.writer)
"""Suffix (lower case, with the dot) -> "module:function" of a `Writer`, which writes atomically."""


def writer_suffix(path: Path) -> str | None:
    """Return the key of `WRITERS` for a file's name, None when there is none."""
    return known_suffix(path, WRITERS)


def write_image_record(path: Path, picture: ImageRecord) -> None:
    """Write images in the format that the name asks for, atomically.

    Args:
        path: Destination; an earlier file is replaced.
        picture: The images, and what is known of them.

    Raises:
        OutputError: A suffix that no writer knows, images that the format cannot hold, or the
            place cannot be written to.
        MissingExtraError: The format needs a library that is not installed.
    """
    suffix = writer_suffix(path)
    if suffix is None:
        raise OutputError(
            f"{path} has a suffix that no writer knows.", f"Supported are {', '.join(WRITERS)}."
        )
    if not np.isfinite(picture.image).all():
        raise OutputError(
            f"The images for {path} hold NaN or infinite values.", "Check what they were made from."
        )
    writer: Writer = load_attribute(WRITERS[suffix])
    writer(path, picture)


def write_image(
    path: Path,
    image: NDArray[Any],
    voxel_mm: tuple[float, float, float] | None = None,
    affine: Affine | None = None,
) -> None:
    """Write images [S, H, W] of which nothing more is known; see `write_image_record`."""
    write_image_record(path, ImageRecord(image=image, voxel_mm=voxel_mm, affine=affine))
