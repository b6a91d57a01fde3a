"""Measured k-space of a Cartesian 2-D multi-slice scan, one coil or many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.geometry import Affine, voxel_size
from kdmri_edge.data.orientation import Orientation
from kdmri_edge.errors import DataError
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.reference import ReferenceLines

__all__ = ["Scan"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scan:
    """What a scanner measured, sorted into slices.

    Readout oversampling is removed and reversed lines are turned by whoever makes a scan; lines of
    one position are averaged. Noise is not whitened yet.

    Attributes:
        kspace: complex64 [S, C, H, W] (slices, coils, phase encode, readout) under the conventions
            of `physics.fourier`; zero where nothing was sampled. Lines that a partial Fourier scan
            leaves out are unsampled lines of the full matrix.
        mask: The samples that were taken, the same for every slice and coil.
        name: The file's name without suffix, or the scanner's name of the measurement.
        subject: Whom it shows.
        contrast: For instance "T1w"; None where nothing tells.
        sha256: Of the source file, 64 hex digits; empty for a stream.
        affine: float64 [4, 4], pixel indices (s, h, w, 1) to millimetres in the patient's RAS+
            axes (right, anterior, superior), as NIfTI's; DICOM and MRD use LPS+, which turns
            the first two signs. None where the source does not tell.
        noise: complex64 [C, N], N samples of each coil without signal; None without a noise scan.
        reference: Calibration lines beside the image, of each slice or None; None without any.
        orientation: How H and W of `affine` run to the directions that raw data gives, ALONG or
            AGAINST (`data.orientation`); None where the format gives no such directions.
        vendor: Who made the scanner, as the file says it; None where it does not.
    """

    kspace: NDArray[np.complex64]
    mask: Mask
    name: str
    subject: str
    contrast: str | None = None
    sha256: str = ""
    affine: Affine | None = None
    noise: NDArray[np.complex64] | None = None
    reference: tuple[ReferenceLines | None, ...] | None = None
    orientation: Orientation | None = None
    vendor: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be such a scan.

        Raises:
            DataError: Wrong rank or dtype, an empty axis, values that are not finite, all zero, or
                noise or reference lines of another number of coils or slices.
            MaskError: The mask is of another matrix.
        """
        if self.kspace.ndim != 4 or 0 in self.kspace.shape or self.kspace.dtype != np.complex64:
            raise DataError(
                f"K-space of {self.name} is {self.kspace.dtype} {list(self.kspace.shape)}.",
                "A scan is complex64 [slices, coils, phase encode, readout].",
            )
        if not np.isfinite(self.kspace).all():
            raise DataError(
                f"K-space of {self.name} holds NaN or infinite values.", "Export the scan again."
            )
        if not self.kspace.any():
            raise DataError(
                f"K-space of {self.name} is all zero.", "There is nothing to reconstruct."
            )
        self.mask.check_matrix(*self.matrix)
        if self.noise is not None and self.noise.shape[:1] != (self.coils,):
            raise DataError(
                f"{self.name} has {self.coils} coils and noise of {list(self.noise.shape)}.",
                "Give noise as [coils, samples].",
            )
        if self.reference is not None and (
            len(self.reference) != len(self.kspace)
            or any(
                lines is not None and lines.lines.shape[::2] != (self.coils, self.matrix[1])
                for lines in self.reference
            )
        ):
            raise DataError(
                f"The reference lines of {self.name} do not fit its {len(self.kspace)} slices of"
                f" {self.coils} coils.",
                "Give them for each slice, as [coils, lines, readout].",
            )

    @property
    def coils(self) -> int:
        """Number of receive channels C."""
        return int(self.kspace.shape[1])

    @property
    def matrix(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return int(self.kspace.shape[2]), int(self.kspace.shape[3])

    @property
    def voxel_mm(self) -> tuple[float, float, float] | None:
        """Voxel size along (S, H, W) in millimetres, from the affine; None without one."""
        return None if self.affine is None else voxel_size(self.affine)
