"""Coil sensitivities from the fully sampled centre of k-space: ESPIRiT (numpy).

After Uecker et al., "ESPIRiT - an eigenvalue approach to autocalibrating parallel MRI", MRM 2014.
Patches of the coils' k-space span a space of few dimensions; that each patch lies in it is, pixel
by pixel, an eigenvalue problem G(x) s(x) = s(x) whose solution is the vector of sensitivities. One
set of maps is estimated, so the field of view must hold the object.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import MaskError
from kdmri_edge.physics.coils import COILS, coil_images, combine, compress, compression_matrix
from kdmri_edge.physics.combining import root_sum_of_squares
from kdmri_edge.physics.fourier import kspace_to_image, lines_to_image
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.reference import ReferenceLines, calibration_of

__all__ = [
    "CALIBRATION",
    "FEWEST",
    "Sensitivities",
    "calibration_block",
    "calibration_energy",
    "check_calibration",
    "espirit_maps",
    "sense_coils",
    "sense_slice",
    "sensitivities",
]

Complex = NDArray[np.complexfloating[Any, Any]]

CALIBRATION: Final = 24
"""Lines around zero frequency, and samples along readout, that maps are estimated from."""

FEWEST: Final = 16
"""Lines that will do where a scan has no more; what that costs on a measured slice is in
bench/results/calibration, which `python -m experiments.calibration` writes."""

_KERNEL = 6  # side of the patches, in samples
# Of the largest singular value of the patches: below it there is noise.
_SIGNAL = 0.02
# Eigenvalue below which a pixel is taken to be without signal.
_SUPPORT = 0.95
# Pixels a side of the grids on which eigenvectors are found, and power iterations on each.
_LEVELS = ((64, 30), (128, 2))
_BAND = 4096  # pixels at a time
# Coil images below this part of their maximum are no start for the iteration.
_FLOOR = 1e-6


def _centre(size: int, most: int = CALIBRATION) -> NDArray[np.intp]:
    """Return the indices of the calibration samples of an axis, rising from negative frequency."""
    count = min(most, size)
    return (np.arange(count) - count // 2) % size


def check_calibration(mask: Mask, width: int | None = None, *, lines: int = CALIBRATION) -> None:
    """Refuse a mask whose centre does not tell the coils' sensitivities.

    Args:
        mask: The sampling pattern.
        width: Readout samples W; None takes as many as there are lines.
        lines: How many around zero frequency have to be sampled; of a mask of single samples as
            many in either direction as `CALIBRATION`.

    Raises:
        MaskError: One of the central lines (or 24 x 24 samples) is not sampled.
    """
    rows = _centre(mask.height, lines if mask.is_lines else CALIBRATION)
    samples = mask.samples
    if not mask.is_lines:
        samples = samples[:, _centre(width or samples.shape[1])]
    missing = int((~samples[rows]).sum())
    if missing:
        raise MaskError(
            f"Mask {mask.name!r} leaves {missing} of the samples out from which coil"
            " sensitivities are estimated.",
            f"Sample the {len(rows)} lines around zero frequency without a gap.",
            cause="calibration",
        )


def calibration_block(kspace: Complex, mask: Mask) -> Complex:
    """Return the fully sampled centre [C, h, w] of k-space [C, H, W], h, w <= 24.

    Of a mask of lines h is what is sampled without a gap, from `FEWEST` lines on.
    Frequencies rise along both axes, zero frequency lies at index h // 2, w // 2.

    Raises:
        MaskError: The mask leaves a part of it out, or is of another matrix.
    """
    height, width = kspace.shape[-2:]
    mask.check_matrix(height, width)
    check_calibration(mask, width, lines=FEWEST)
    lines = CALIBRATION
    if mask.is_lines:
        while not mask.samples[_centre(height, lines)].all():
            lines -= 1
    return kspace[:, _centre(height, lines)[:, None], _centre(width)]


def calibration_energy(
    kspace: Complex,
    mask: Mask,
    *,
    whitening: Complex | None = None,
    reference: ReferenceLines | None = None,
) -> float:
    """Return the energy of what `sensitivities` estimates from, of a centre with gaps as well.

    Arguments are those of `sense_slice`; what a mask leaves out adds nothing.

    Raises:
        MaskError: The mask is of another matrix.
    """
    mask.check_matrix(*kspace.shape[-2:])
    centre, sampled = calibration_of(kspace, mask, reference)
    rows, columns = _centre(kspace.shape[-2]), _centre(kspace.shape[-1])
    if sampled.is_lines:
        rows = rows[sampled.samples[rows]]
    block: Complex = centre[:, rows[:, None], columns].astype(np.complex128)
    if whitening is not None:
        block = compress(block, whitening)
    return float(np.vdot(block, block).real)


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


class _Pixelwise:
    """The Hermitian matrices G(x), evaluated where they are wanted.

    A patch p = W p; averaged over the places a that a sample has in patches,
    y_i(k) = sum_j sum_d c_ij(d) y_j(k + d) with c_ij(d) = mean over b - a = d of W[(i,a),(j,b)].
    So G is a trigonometric polynomial of few terms along each axis. Of its C x C elements those
    with i <= j are kept, row after row.

    Args:
        block: Calibration data, [C, h, w].
    """

    def __init__(self, block: Complex) -> None:
        projector, high, wide = _patch_projector(block)
        self.coils = len(block)
        spread = np.zeros((self.coils, self.coils, 2 * high - 1, 2 * wide - 1), np.complex128)
        for row in range(high):
            for column in range(wide):
                # from a = (row, column) to every b; stored at -d, so that e^{2 pi i x d / N} fits
                reached = projector[:, row, column][:, :, ::-1, ::-1]
                spread[:, :, row : row + high, column : column + wide] += reached
        spread /= high * wide
        self._terms = spread[np.triu_indices(self.coils)].astype(np.complex64)

    def along(self, height: int) -> NDArray[np.complex64]:
        """Evaluate along the first axis alone: [pairs, H, terms of the second axis]."""
        return _waves(height, self._terms.shape[-2]) @ self._terms

    def across(self, partial: NDArray[np.complex64], width: int) -> NDArray[np.complex64]:
        """Evaluate along the second axis, too: [pairs, rows, W]."""
        return partial @ _waves(width, self._terms.shape[-1]).T


@lru_cache(maxsize=16)
def _waves(size: int, terms: int) -> NDArray[np.complex64]:
    """Return e^{2 pi i x d / N} for each place x of an axis and each distance d, [N, terms]."""
    places, distances = np.arange(size) - size // 2, np.arange(terms) - terms // 2
    angle = 2 * np.pi * np.outer(places, distances) / size
    waves: NDArray[np.complex64] = np.exp(1j * angle).astype(np.complex64)
    return waves


def _times(
    matrices: NDArray[np.complex64], vectors: NDArray[np.complex64]
) -> NDArray[np.complex64]:
    """Return G v, [C, ...], of the kept elements of G, [pairs, ...], and v, [C, ...]."""
    result, mirrored = np.empty_like(vectors), np.zeros_like(vectors)
    conjugate = vectors.conj()
    first, coils = 0, len(vectors)
    for coil in range(coils):
        row = matrices[first : first + coils - coil]
        result[coil] = (row * vectors[coil:]).sum(0)
        mirrored[coil + 1 :] += row[1:] * conjugate[coil]
        first += coils - coil
    result += mirrored.conj()
    return result


def _unit(vectors: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Give vectors [C, H, W] unit norm, in place, and return what it was, [H, W]."""
    norms = root_sum_of_squares(vectors)
    vectors *= 1 / np.maximum(norms, np.float32(_FLOOR))
    return norms


def _iterate(
    matrices: _Pixelwise, vectors: NDArray[np.complex64], count: int
) -> NDArray[np.float32]:
    """Make vectors [C, H, W] those of the largest eigenvalues by power iterations, in place.

    Returns:
        These eigenvalues, [H, W].
    """
    _, height, width = vectors.shape
    values = np.empty((height, width), np.float32)
    partial = matrices.along(height)
    step = max(1, _BAND // width)
    for begun in range(0, height, step):  # matrices of some rows fit into a cache, all do not
        band = slice(begun, begun + step)
        elements = matrices.across(partial[:, band], width)
        part = vectors[:, band].copy()
        for _ in range(count):
            part = _times(elements, part)
            values[band] = _unit(part)
        vectors[:, band] = part
    return values


def _start(
    block: Complex, principal: NDArray[np.complex64], height: int, width: int
) -> NDArray[np.complex64]:
    """Return unit vectors that are close to the solution: the images of low resolution."""
    low = np.zeros((len(block), height, width), np.complex64)
    rows, columns = _centre(height, block.shape[1]), _centre(width, block.shape[2])
    low[:, rows[:, None], columns] = (
        block * np.hanning(block.shape[1] + 2)[1:-1, None] * np.hanning(block.shape[2] + 2)[1:-1]
    )
    start = kspace_to_image(low)
    norms = root_sum_of_squares(start)
    weak = norms < _FLOOR * np.abs(start).max()
    start[:, weak] = principal.conj()[:, None]
    start /= np.where(weak, np.float32(1), norms)
    return start.astype(np.complex64, copy=False)


def _turned(vectors: NDArray[np.complex64], principal: NDArray[np.complex64]) -> None:
    """Make the phase of vectors [C, ...] relative to a combination of coils, in place."""
    reference = np.tensordot(principal, vectors, 1)
    size = np.abs(reference)
    vectors *= np.where(size > 0, reference.conj() / np.where(size > 0, size, 1), 1)


@lru_cache(maxsize=16)
def _between(size: int, coarse: int) -> NDArray[np.float32]:
    """Return what takes samples of a coarser axis to those of an axis, [size, coarse].

    Cubic convolution (Keys, IEEE TASSP 1981), of third order for smooth fields; periodic, as the
    matrices are.
    """
    places = (np.arange(size) - size // 2) * (coarse / size) + coarse // 2
    before = np.floor(places)
    t = places - before
    weights = (
        ((-0.5 * t + 1) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1,
        ((-1.5 * t + 2) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    )
    matrix = np.zeros((size, coarse))
    for step, weight in zip(range(-1, 3), weights, strict=True):
        np.add.at(matrix, (np.arange(size), (before.astype(np.intp) + step) % coarse), weight)
    return matrix.astype(np.float32)


def _resampled(fields: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Interpolate real fields [..., h, w] to [..., H, W]."""
    *_, rows, columns = fields.shape
    finer = _between(height, rows) @ fields @ _between(width, columns).T
    return finer.astype(np.float32, copy=False)


def _finer(vectors: NDArray[np.complex64], height: int, width: int) -> NDArray[np.complex64]:
    """Interpolate vectors [C, h, w], and give them unit norm again: [C, H, W]."""
    finer = np.empty((len(vectors), height, width), np.complex64)
    finer.real = _resampled(vectors.real, height, width)
    finer.imag = _resampled(vectors.imag, height, width)
    _unit(finer)
    return finer


def espirit_maps(block: Complex, height: int, width: int) -> NDArray[np.complex64]:
    """Estimate coil sensitivities from calibration data.

    Eigenvectors are found on a coarse grid, refined on finer ones up to 128 x 128, and interpolated
    from there, since neither the matrices nor their solutions vary faster than the calibration
    data resolve.

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
    matrices = _Pixelwise(block)
    principal = compression_matrix(block, 1)[0].astype(np.complex64)
    maps: NDArray[np.complex64] | None = None
    for side, iterations in _LEVELS:
        size = min(side, height), min(side, width)
        if maps is None:
            maps = _start(block, principal, *size)
        elif maps.shape[1:] == size:
            continue
        else:
            _turned(maps, principal)
            maps = _finer(maps, *size)
        values = _iterate(matrices, maps, iterations)
    assert maps is not None
    if maps.shape[1:] != (height, width):
        _turned(maps, principal)
        maps, values = _finer(maps, height, width), _resampled(values, height, width)
    _turned(maps, principal)
    maps *= values >= _SUPPORT
    return maps


class Sensitivities(NamedTuple):
    """What is estimated of the coils of a slice.

    Attributes:
        mixing: Whitening and compression, [K, C]; None where coils stay as they are.
        maps: Sensitivities of what that gives, complex64 [K, H, W].
    """

    mixing: Complex | None
    maps: NDArray[np.complex64]

    def fit(self, kspace: Complex) -> bool:
        """Tell whether they are of k-space [C, H, W] of that shape."""
        coils = len(self.maps) if self.mixing is None else self.mixing.shape[1]
        return kspace.shape == (coils, *self.maps.shape[-2:])


def sensitivities(
    kspace: NDArray[np.complex64],
    mask: Mask,
    *,
    coils: int | None = COILS,
    whitening: Complex | None = None,
    reference: ReferenceLines | None = None,
) -> Sensitivities:
    """Estimate how a slice's coils are to be mixed, and the sensitivities of the mixtures.

    Arguments and errors are those of `sense_slice`.
    """
    centre, sampled = calibration_of(kspace, mask, reference)
    block = calibration_block(centre, sampled)
    mixing = None
    if whitening is not None:
        block, mixing = compress(block, whitening), whitening
    if coils is not None and coils < len(kspace):
        matrix = compression_matrix(block, coils)
        block = compress(block, matrix)
        mixing = matrix if mixing is None else matrix @ mixing
    return Sensitivities(mixing, espirit_maps(block, *kspace.shape[-2:]))


def sense_slice(
    kspace: NDArray[np.complex64],
    mask: Mask,
    *,
    coils: int | None = COILS,
    whitening: Complex | None = None,
    reference: ReferenceLines | None = None,
    known: Sensitivities | None = None,
) -> tuple[NDArray[np.complex64], NDArray[np.complex64]]:
    """Make a SENSE network's input of one slice.

    Args:
        kspace: complex64 [C, H, W], zero where not sampled.
        mask: What was sampled.
        coils: Virtual coils to compress to; None leaves all. Fewer measured coils stay as they are.
        whitening: `coils.noise_weights` of the coils' noise [C, C].
        reference: Lines that sensitivities may be estimated from, see `reference.calibration_of`.
        known: What `sensitivities` gave for these coils, in place of estimating it.

    Returns:
        Zero-filled image x_u = S^H F^H m y, complex64 [H, W], and maps, complex64 [K, H, W].

    Raises:
        MaskError: The mask's centre has gaps, or it is of another matrix.
        DataError: Fewer than one coil is asked for.
    """
    if known is None:
        known = sensitivities(kspace, mask, coils=coils, whitening=whitening, reference=reference)
    mixing, maps = known
    rows = np.flatnonzero(mask.samples) if mask.is_lines else None
    measured = kspace if rows is None else kspace[:, rows]  # what is zero needs no mixing
    if mixing is not None:
        measured = compress(measured, mixing)
    images = (
        coil_images(measured, mask) if rows is None else lines_to_image(measured, rows, mask.height)
    )
    return combine(images, maps).astype(np.complex64, copy=False), maps


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
    mixing, maps = sensitivities(
        kspace, mask, coils=coils, whitening=whitening, reference=reference
    )
    return kspace if mixing is None else compress(kspace, mixing), maps
