"""Measured multi-coil k-space that tests make, and write as fastMRI does."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.simulation import coil_maps, smooth_phase
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask


def images(
    seed: int = 3, *, slices: int = 2, coils: int = 4, matrix: int = 32
) -> tuple[NDArray[np.complex64], NDArray[np.complex64]]:
    """A phantom with phase, complex64 [S, H, W], and what smooth coils see of it, [S, C, H, W]."""
    phase = np.exp(1j * smooth_phase(matrix, matrix, seed=seed))
    image = phantom_volume(seed, slices=slices, matrix=matrix).image * phase
    return image.astype(np.complex64), (
        image[:, None] * coil_maps(coils, matrix, matrix, seed=seed)
    ).astype(np.complex64)


def scan(seen: NDArray[np.complex64], name: str = "scan", **more: object) -> Scan:
    """Fully sampled k-space of coil images [S, C, H, W]."""
    return Scan(
        kspace=image_to_kspace(seen).astype(np.complex64),
        mask=Mask(samples=np.ones(seen.shape[2], np.bool_), name="all"),
        name=name, subject=name, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def write_fastmri(path: Path, seen: NDArray[np.complex64], patient: str) -> None:
    """Write coil images as a multi-coil file: [slices, coils, readout, phase encode], centred."""
    kspace = np.fft.fftshift(image_to_kspace(seen), axes=(-2, -1)).swapaxes(-1, -2)
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace.astype(np.complex64)
        rss = np.sqrt((np.abs(seen) ** 2).sum(1)).swapaxes(-1, -2)
        file["reconstruction_rss"] = rss.astype(np.float32)
        file.attrs["patient_id"] = patient
        file.attrs["acquisition"] = "AXT2"
