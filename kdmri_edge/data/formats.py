"""The one table of file formats: what reads them, what writes them, what they keep.

Readers, writers, `kdmri-edge data` and the README's table follow it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["FORMATS", "Format", "format_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A row of the table. Functions are import strings, "module:function".

    Attributes:
        name: For `kdmri-edge data inspect` and messages.
        suffixes: Lower case, with the dot.
        volume: Reader of images and single-coil data, `Reader`.
        scan: Reader of measured k-space of any number of coils, `ScanReader`; None without one.
        writer: Writer of images, `Writer`; None without one.
        scan_writer: Writer of measured k-space, `ScanWriter`; None without one.
        result: Suffix of reconstructions of its files where no name is given.
        phase: Whether the writer keeps complex images.
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
    writer: str | None = None
    scan_writer: str | None = None
    result: str = ".npy"
    phase: bool = True
    geometry: bool = False
    noise: bool = False
    extra: str | None = None
    reads: str
    writes: str = "-"
    keeps: str = "-"

    def loses(self, affine: object | None, voxel_mm: object | None) -> list[str]:
        """Say which parts of an image's place its files cannot hold."""
        if self.geometry:
            return []
        parts = {"position and orientation": affine, "voxel size": voxel_mm}
        return [name for name, value in parts.items() if value is not None]


_DATA: Final = "kdmri_edge.data"

FORMATS: Final[tuple[Format, ...]] = (
    Format(
        name="NIfTI",
        suffixes=(".nii.gz", ".nii"),
        volume=f"{_DATA}.nifti:read_nifti",
        writer=f"{_DATA}.nifti:write_nifti",
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
        volume=f"{_DATA}.dicom:read_dicom",
        writer=f"{_DATA}.dicom_write:write_dicom",
        result=".dcm",
        phase=False,
        geometry=True,
        extra="formats",
        reads="magnitude images of a series, classic or enhanced: a folder, or a file",
        writes="MR images, or secondary captures where no geometry is known; a folder of one file"
        " per slice, called `NAME.dcm`",
        keeps="geometry; patient and study from DICOM to DICOM only",
    ),
    Format(
        name="HDF5",
        suffixes=(".h5", ".hdf5"),
        volume=f"{_DATA}.hdf5:read_hdf5",
        scan=f"{_DATA}.hdf5:scan_hdf5",
        writer=f"{_DATA}.mrd_h5:write_mrd_images",
        scan_writer=f"{_DATA}.mrd_h5:write_mrd_scan",
        geometry=True,
        noise=True,
        reads="KD-MRI's layout; fastMRI's, single- and multi-coil; ISMRMRD / MRD, readouts or"
        " images (extra `mrd`); any dataset of k-space, named as `FILE.h5:DATASET:AXES`",
        writes="MRD (extra `mrd`): images, or readouts of k-space",
        keeps="phase, geometry; k-space, coils, unsampled lines, noise",
    ),
    Format(
        name="Siemens TWIX",
        suffixes=(".dat",),
        volume=f"{_DATA}.twix:read_twix",
        scan=f"{_DATA}.twix:scan_twix",
        result=".nii.gz",
        extra="scanner",
        reads="raw data of Cartesian 2-D scans: slices, coils, averages, partial Fourier, noise,"
        " geometry",
    ),
    Format(
        name="BART",
        suffixes=(".cfl",),
        volume=f"{_DATA}.bart:read_bart",
        scan=f"{_DATA}.bart:scan_bart",
        writer=f"{_DATA}.bart:write_bart",
        scan_writer=f"{_DATA}.bart:write_bart_scan",
        result=".cfl",
        reads="images, or k-space of any number of coils, [READ, PHS1, 1, COIL, ..., SLICE]",
        writes="the same (`.cfl` and `.hdr`)",
        keeps="phase; k-space, coils, unsampled lines",
    ),
    Format(
        name="NumPy",
        suffixes=(".npy",),
        volume=f"{_DATA}.npy:read_npy",
        writer=f"{_DATA}.npy:write_npy",
        reads="magnitude or complex images [S, H, W]",
        writes="the same",
        keeps="phase",
    ),
)
"""Rows in the order of the README's table; a suffix belongs to one row."""


def format_of(suffix: str | None) -> Format | None:
    """The row of a suffix (lower case, with the dot), None where there is none."""
    return next((row for row in FORMATS if suffix in row.suffixes), None)
