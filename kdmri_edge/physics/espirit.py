"""Coil sensitivities from the fully sampled centre of k-space: ESPIRiT (numpy).

After Uecker et al., "ESPIRiT - an eigenvalue approach to autocalibrating parallel MRI", MRM 2014.
Patches of the coils' k-space span a space of few dimensions; that each patch lies in it is, pixel
by pixel, an eigenvalue problem G(x) s(x) = s(x) whose solution is the vector of sensitivities. One
set of maps is estimated, so the field of view must hold the object.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import MaskError
from kdmri_edge.physics.coils import (
    COILS,
    compress,
    compression_matrix,
    sense_zero_filled,
)
from kdmri_edge.physics.fourier import kspace_to_image
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.reference import ReferenceLines, calibration_of

__all__ = [
    "CALIBRATION",
    "calibration_block",
    "check_calibration",
    "espirit_maps",
    "sense_coils",
    "sense_slice",
]

Complex = NDArray[np.complexfloating[Any, Any]]

CALIBRATION: Final = 24
"""Lines around zero frequency, and samples along readout, that maps are estimated from."""

_KERNEL = 6  # side of the patches, in samples
# Of the largest singular value of the patches: below it there is noise.
_SIGNAL = 0.02
# Eigenvalue below which a pixel is taken to be without signal.
_SUPPORT = 0.95
_ITERATIONS = 30
# Coil images below this part of their maximum are no start for the iteration.
_FLOOR = 1e-6


def _centre(size: int) -> NDArray[np.intp]:
    """Return the indices of the calibration samples of an axis, rising from negative frequency."""
    count = min(CALIBRATION, size)
    return (np.arange(count) - count // 2) % size


def check_calibration(mask: Mask, width: int | None = None) -> None:
    """Refuse a mask whose centre does not tell the coils' sensitivities.

    Args:
        mask: The sampling pattern.
        width: Readout samples W; None takes as many as there are lines.

    Raises:
        MaskError: One of the central 24 lines (or 24 x 24 samples) is not sampled.
    """
    rows = _centre(mask.height)
    samples = mask.samples
    if not mask.is_lines:
        samples = samples[:, _centre(width or samples.shape[1])]
    missing = int((~samples[rows]).sum())
    if missing:
        raise MaskError(
            f"Mask {mask.name!r} leaves {missing} of the samples out from which coil"
            " sensitivities are estimated.",
            f"Sample the {len(rows)} lines around zero frequency without a gap.",
        )


def calibration_block(kspace: Complex, mask: Mask) -> Complex:
    """Return the fully sampled centre [C, h, w] of k-space [C, H, W], h, w <= 24.

    Frequencies rise along both axes, zero frequency lies at index h // 2, w // 2.

    Raises:
        MaskError: The mask leaves a part of it out, or is of another matrix.
    """
    height, width = kspace.shape[-2:]
    mask.check_matrix(height, width)
    check_calibration(mask, width)
    return kspace[:, _centre(height)[:, None], _centre(width)]


def _patch_projector(block: Complex) -> tuple[NDArray[np.complex128], int, int]:
    """Return the projector on the space of patches, [C, h, w, C, h, w], and the patch's sides."""
    coils, *size = block.shape
    high, wide = (min(_KERNEL, max(1, n // 2)) for n in size)
    windows = np.lib.stride_tricks.sliding_window_view(block, (high, wide), axis=(1, 2))
    patches = windows.transpose(0, 3, 4, 1, 2).reshape(coils * high * wide, -1)
    patches = patches.astype(np.complex128)
    values, vectors = np.linalg.eigh(patches @ patches.conj().T)
    kept = vectors[:, values > _SIGNAL**2 * values[-1]]
    return (kept @ kept.conj().T).reshape(coils, high, wide, coils, high, wide), high, wide


def _pixelwise(block: Complex, height: int, width: int) -> NDArray[np.complex64]:
    """Return G(x), Hermitian, [H, W, C, C].

    A patch p = W p; averaged over the places a that a sample has in patches,
    y_i(k) = sum_j sum_d c_ij(d) y_j(k + d) with c_ij(d) = mean over b - a = d of W[(i,a),(j,b)].
    """
    projector, high, wide = _patch_projector(block)
    coils = len(block)
    spread = np.zeros((coils, coils, 2 * high - 1, 2 * wide - 1), np.complex128)
    for row in range(high):
        for column in range(wide):
            # from a = (row, column) to every b; stored at -d, so that e^{+2 pi i x d / N} applies
            reached = projector[:, row, column][:, :, ::-1, ::-1]
            spread[:, :, row : row + high, column : column + wide] += reached
    spread /= high * wide
    along = [
        np.exp(
            2j * np.pi * np.outer(np.arange(n) - n // 2, np.arange(2 * side - 1) - (side - 1)) / n
        )
        for n, side in ((height, high), (width, wide))
    ]
    image = along[0] @ spread @ along[1].T
    return np.ascontiguousarray(image.transpose(2, 3, 0, 1), dtype=np.complex64)


def espirit_maps(block: Complex, height: int, width: int) -> NDArray[np.complex64]:
    """Estimate coil sensitivities from calibration data.

    Args:
        block: What `calibration_block` gives, [C, h, w].
        height: Lines H of the maps.
        width: Readout samples W of the maps.

    Returns:
        complex64 [C, H, W]; sum over coils of |s|^2 is 1, or 0 where there is no signal. The phase
        is relative to the combination of coils that holds most of the energy. A single coil has
        s = 1 everywhere, and data consistency is exact.
    """
    coils = len(block)
    if coils == 1:
        return np.ones((1, height, width), np.complex64)
    if not block.any():
        return np.zeros((coils, height, width), np.complex64)
    matrices = _pixelwise(block, height, width)
    principal = compression_matrix(block, 1)[0].astype(np.complex64)
    # The images of low resolution are close to the solution already.
    low = np.zeros((coils, height, width), np.complex64)
    low[:, _centre(height)[:, None], _centre(width)] = (
        block * np.hanning(block.shape[1] + 2)[1:-1, None] * np.hanning(block.shape[2] + 2)[1:-1]
    )
    start = kspace_to_image(low).transpose(1, 2, 0)
    weak = np.linalg.norm(start, axis=-1) < _FLOOR * np.abs(start).max()
    vectors = np.where(weak[..., None], principal.conj(), start)[..., None]
    vectors = vectors / np.linalg.norm(vectors, axis=-2, keepdims=True)
    for _ in range(_ITERATIONS):
        vectors = matrices @ vectors
        values = np.linalg.norm(vectors, axis=-2, keepdims=True)
        vectors = vectors / np.maximum(values, np.float32(_FLOOR))
    maps = vectors[..., 0].transpose(2, 0, 1)
    reference = np.einsum("c,chw->hw", principal, maps)
    turn = np.exp(-1j * np.angle(reference))
    support = values[..., 0, 0] >= _SUPPORT
    return np.ascontiguousarray(np.where(support, maps * turn, 0), dtype=np.complex64)


def sense_slice(
    kspace: NDArray[np.complex64],
    mask: Mask,
    *,
    coils: int | None = COILS,
    whitening: Complex | None = None,
    reference: ReferenceLines | None = None,
) -> tuple[NDArray[np.complex64], NDArray[np.complex64]]:
    """Make a SENSE network's input of one slice.

    Args:
        kspace: complex64 [C, H, W], zero where not sampled.
        mask: What was sampled.
        coils: Virtual coils to compress to; None leaves all. Fewer measured coils stay as they are.
        whitening: `coils.noise_weights` of the coils' noise [C, C].
        reference: Lines that sensitivities may be estimated from, see `reference.calibration_of`.

    Returns:
        Zero-filled image x_u = S^H F^H m y, complex64 [H, W], and maps, complex64 [K, H, W].

    Raises:
        MaskError: The mask's centre has gaps, or it is of another matrix.
        DataError: Fewer than one coil is asked for.
    """
    kspace, maps = sense_coils(kspace, mask, coils=coils, whitening=whitening, reference=reference)
    return sense_zero_filled(kspace, maps), maps


def sense_coils(
    kspace: NDArray[np.complex64],
    mask: Mask,
    *,
    coils: int | None = COILS,
    whitening: Complex | None = None,
    reference: ReferenceLines | None = None,
) -> tuple[NDArray[np.complex64], NDArray[np.complex64]]:
    """Whiten and compress the coils of one slice, and estimate their sensitivities.

    Args:
        kspace: complex64 [C, H, W]; zero where not sampled, or sampled whole: sensitivities are
            estimated from the centre of the mask alone.
        mask: What was sampled, or will be.
        coils: See `sense_slice`, as are the two that follow.
        whitening: Of the coils' noise.
        reference: Lines that sensitivities may be estimated from.

    Returns:
        K-space of the virtual coils and their maps, complex64 [K, H, W].

    Raises:
        MaskError: The mask's centre has gaps, or it is of another matrix.
        DataError: Fewer than one coil is asked for.
    """
    centre, sampled = calibration_of(kspace, mask, reference)
    if whitening is not None:
        apart = centre is not kspace
        kspace = compress(kspace, whitening)
        centre = compress(centre, whitening) if apart else kspace
    block = calibration_block(centre, sampled)
    del centre
    if coils is not None and coils < len(kspace):
        matrix = compression_matrix(block, coils)
        kspace, block = compress(kspace, matrix), compress(block, matrix)
    return kspace, espirit_maps(block, *kspace.shape[-2:])
