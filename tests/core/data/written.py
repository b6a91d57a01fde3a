"""Volumes in every format, as other software writes them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest


def write_nifti(path: Path, pixels: np.ndarray, zooms: tuple[float, ...] = (1, 2, 3)) -> None:
    nibabel = pytest.importorskip("nibabel")
    data = np.moveaxis(pixels, 0, 2) if pixels.ndim == 3 else pixels
    image = nibabel.Nifti1Image(data, np.diag([*zooms[:3], 1]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def write_h5(path: Path, pixels: np.ndarray, **extra: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["volfs"] = np.moveaxis(pixels, 0, 2) if pixels.ndim == 3 else pixels
        for name, value in extra.items():
            file[name] = value


def write_npy(path: Path, pixels: np.ndarray) -> None:
    np.save(path, pixels)
