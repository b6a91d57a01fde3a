"""A procedural brain-like phantom: the data that ships with the software.

Every volume is another head: outline, layers, cortex, ventricles, nuclei, lesions and vessels are
drawn from random fields, tissue intensities from T1w-, T2w- or FLAIR-like ranges, and the image
then passes through a receive profile, a k-space window and Rician noise as a scanner's would. It
teaches a network edges and folds, not medicine: say so beside any figure made from it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.phantom.anatomy import draw_head, draw_tissue
from kdmri_edge.data.phantom.contrast import draw_contrast
from kdmri_edge.data.phantom.fields import Field, FieldMaker
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError
from kdmri_edge.utils.files import sha256_bytes

PEAK = 1000.0
"""Rough brightness of a phantom volume's brightest tissue, in arbitrary units as scanners store."""


def phantom_volume(
    seed: int, *, slices: int = 16, matrix: int = 240, index: int = 0, complex_phase: bool = False
) -> Volume:
    """Draw one head.

    Args:
        seed: of the random stream; the same (seed, index) gives the same volume.
        slices: number of slices, from the skull base to the vertex.
        matrix: pixels along H and along W.
        index: number of the volume within a set, see `phantom_set`.
        complex_phase: keep the smooth receive phase; otherwise the magnitude is returned.

    Returns:
        Volume of subject `phantom-SEED-INDEX`; float32, or complex64 with `complex_phase`.

    Raises:
        DataError: no slices, a matrix below 16, or a negative seed or index.
    """
    if slices < 1 or matrix < 16:
        raise DataError(
            f"A phantom of {slices} slices at matrix {matrix} cannot be drawn.",
            "Ask for at least 1 slice and a matrix of at least 16.",
        )
    if seed < 0 or index < 0:
        raise DataError(f"Phantom seed {seed}, index {index} is negative.", "Use 0 or more.")
    rng = np.random.default_rng([seed, index])
    fields = FieldMaker(rng, (slices, matrix, matrix))
    contrast, intensity = draw_contrast(rng, seed + index)
    head = draw_head(rng, fields)
    tissue = draw_tissue(rng, fields, head, intensity)
    tissue *= 1 + np.float32(rng.uniform(0.015, 0.06)) * fields.power_law(rng.uniform(0.6, 1.4))
    image = _acquire(rng, fields, tissue, complex_phase=complex_phase)
    name = f"phantom-{seed}-{index}"
    return Volume(
        image=image,
        name=name,
        subject=name,
        contrast=contrast,
        sha256=sha256_bytes(image.tobytes()),
        voxel_mm=(3.0, 220.0 / matrix, 220.0 / matrix),
    )


def phantom_set(
    seed: int, volumes: int, *, slices: int = 16, matrix: int = 240, complex_phase: bool = False
) -> Iterator[Volume]:
    """Draw heads 0 .. volumes-1 of one seed, one at a time; arguments as for `phantom_volume`."""
    for index in range(volumes):
        yield phantom_volume(
            seed, slices=slices, matrix=matrix, index=index, complex_phase=complex_phase
        )


def _acquire(
    rng: np.random.Generator, fields: FieldMaker, tissue: Field, *, complex_phase: bool
) -> NDArray[np.generic]:
    """Receive profile and phase, finite resolution, complex noise, magnitude."""
    _, height, width = fields.shape
    profile = np.exp(np.float32(rng.uniform(0.05, 0.35)) * fields.smooth(height / 5, slices=4))
    phase = np.float32(rng.uniform(0.2, 1.2)) * fields.smooth(height / 6, slices=3)
    image = tissue * profile * np.exp(1j * phase)
    sigma = np.float32(np.exp(rng.uniform(np.log(0.0005), np.log(0.02))))
    noise = rng.standard_normal((2, *fields.shape), dtype=np.float32)
    image = image + sigma * (noise[0] + 1j * noise[1])
    # Scanners acquire fewer lines than they store, and taper: one window for signal and noise
    # alike.
    window = _taper(height, rng.uniform(0.75, 1.15), rng)[:, None] * _taper(
        width, rng.uniform(0.75, 1.15), rng
    )
    image = np.fft.ifft2(np.fft.fft2(image.astype(np.complex64)) * window) * PEAK
    if complex_phase:
        return image.astype(np.complex64)
    return np.abs(image).astype(np.float32)


def _taper(points: int, cutoff: float, rng: np.random.Generator) -> Field:
    """A window along unshifted k-space: 1, then a cosine roll-off to 0 at `cutoff` of Nyquist."""
    k = np.abs(np.fft.fftfreq(points)) * 2
    width = rng.uniform(0.02, 0.25)
    ramp = np.clip((cutoff - k) / width, 0, 1)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * ramp), dtype=np.float32)
