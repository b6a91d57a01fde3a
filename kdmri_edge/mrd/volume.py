"""An MRD file of one coil as a `Volume`, for the commands that read volumes."""

from __future__ import annotations

from pathlib import Path

from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError
from kdmri_edge.mrd.hdf5 import read_scan
from kdmri_edge.physics.fourier import kspace_to_image

__all__ = ["read_mrd_volume"]


def read_mrd_volume(path: Path) -> Volume:
    """Read a file of one coil: complex images, with their k-space where it is undersampled.

    Raises:
        DataError: Several coils, or see `read_scan`.
    """
    scan = read_scan(path)
    if scan.coils > 1:
        raise DataError(
            f"{path} has {scan.coils} coils.",
            "Send it to `kdmri-edge serve` with `kdmri-edge send`, which combines coils.",
        )
    whole = bool(scan.mask.samples.all())
    kspace = scan.kspace[:, 0]
    return Volume(
        image=kspace_to_image(kspace),
        name=scan.name,
        subject=scan.subject,
        contrast=scan.contrast,
        sha256=scan.sha256,
        voxel_mm=scan.voxel_mm,
        measured=True,
        kspace=None if whole else kspace,
        kspace_mask=None if whole else scan.mask,
    )
