"""Small scans, and readouts as scanners send them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import ismrmrd
import numpy as np
from ismrmrd import Acquisition

from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.scan import Scan
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.reference import ReferenceLines

SIZE = 32
HALF = Mask(samples=np.arange(SIZE) % 2 == 0, name="every second")
ROWS = np.r_[0:12, -12:0] % SIZE
AFFINE = np.array(
    [[0.0, 0.0, 1.5, -20.0], [0.0, -2.0, 0.0, 30.0], [4.0, 0.0, 0.0, 7.0], [0.0, 0.0, 0.0, 1.0]]
)


def every_line(height: int) -> Mask:
    return Mask(samples=np.ones(height, np.bool_), name="all")


def noise_scan(
    slices: int = 2, coils: int = 2, height: int = 8, width: int = 8, mask: Mask | None = None,
    seed: int = 0, **more: object,
) -> Scan:  # fmt: skip
    """A scan of random numbers: whatever is lost or moved shows."""
    rng = np.random.default_rng(seed)
    mask = mask or every_line(height)
    shape = (slices, coils, height, width, 2)
    kspace = rng.standard_normal(shape).astype(np.float32).view(np.complex64)[..., 0]
    kspace = kspace * mask.samples[:, None]
    return Scan(kspace=kspace, mask=mask, name="noise", subject="nobody", **more)  # type: ignore[arg-type]


def phantom_scan(mask: Mask, slices: int = 2, coils: int = 3, matrix: int = 32) -> Scan:
    """A phantom with smooth phase, seen by smooth coils."""
    image = phantom_volume(3, slices=slices, matrix=matrix).image
    h, w = np.meshgrid(*2 * [np.linspace(-1, 1, matrix)], indexing="ij")
    angle = 2 * np.pi * np.arange(coils)[:, None, None] / max(coils, 1)
    fall = np.exp(-0.5 * ((h - np.sin(angle)) ** 2 + (w - np.cos(angle)) ** 2))
    maps = fall * np.exp(1j * (angle + 0.4 * h * np.cos(angle) + 0.3 * w))
    kspace = image_to_kspace((image[:, None] * maps).astype(np.complex64))
    return Scan(
        kspace=(kspace * mask.samples[:, None]).astype(np.complex64),
        mask=mask, name="phantom", subject="phantom", affine=AFFINE,
    )  # fmt: skip


def reversed_readout(acquisition: Acquisition) -> Acquisition:
    """The same line, acquired from its other end."""
    acquisition.data[:] = acquisition.data[:, ::-1].copy()
    acquisition.set_flag(ismrmrd.ACQ_IS_REVERSE)
    return acquisition


def without_flags(acquisitions: Iterable[Acquisition]) -> list[Acquisition]:
    found = list(acquisitions)
    for acquisition in found:
        acquisition.clear_flag(ismrmrd.ACQ_LAST_IN_SLICE)
    return found


def reference_of(kspace: np.ndarray, rows: np.ndarray = ROWS, gain: float = 1.0) -> ReferenceLines:
    """Lines of another scan of the same object: another intensity."""
    return ReferenceLines(rows=rows, lines=np.ascontiguousarray(gain * kspace[:, rows]))


def scan_apart(slices: int = 2, gain: float = 3.0) -> tuple[Scan, Scan]:
    """Every second line with reference lines beside them, and the whole scan."""
    whole = phantom_scan(every_line(SIZE), slices=slices, coils=4)
    lines = tuple(reference_of(kspace, gain=gain) for kspace in whole.kspace)
    kspace = (whole.kspace * HALF.grid).astype(np.complex64)
    return dataclasses.replace(whole, kspace=kspace, mask=HALF, reference=lines), whole
