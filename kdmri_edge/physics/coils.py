"""Receive coils: combination, noise whitening, compression, and data consistency (numpy).

Coil c measures y_c = m F s_c x + noise, with sensitivities s_c. With S x = (s_1 x, ..., s_C x) the
zero-filled image is x_u = S^H F^H m y, and SENSE data consistency (Pruessmann et al., MRM 1999;
unrolled as by Aggarwal et al., TMI 2019) is

    x' = x + g (x_u - S^H P S x),    P = F^H diag(m) F along each coil.

It is a gradient step of size g on |m F S x - y|^2 / 2, which lowers it for g <= 1 wherever
sum_c |s_c|^2 <= 1. It is no projection: acquired samples do not come out exactly. One coil with
s = 1 is the data consistency of `physics.consistency`.

Shapes: images [..., H, W], coil images and k-space [..., C, H, W], maps [..., C, H, W].
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image, lines_to_image
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import Form, operator_array, zero_filled

__all__ = [
    "COILS",
    "coil_images",
    "combine",
    "compress",
    "compression_matrix",
    "expand",
    "factor_is_cheaper",
    "noise_weights",
    "remove_oversampling",
    "sense_normal",
    "sense_operator_array",
    "sense_zero_filled",
    "whitening_matrix",
]

Complex = NDArray[np.complexfloating[Any, Any]]

COILS: Final = 8
"""Virtual coils to which scans are compressed unless asked otherwise."""


def _same_grid(images: Complex, maps: Complex) -> None:
    """Check shapes before values: numpy would broadcast one coil over many without a word."""
    if images.shape != maps.shape:
        raise DataError(
            f"Coil images are {list(images.shape)}, coil sensitivities {list(maps.shape)}.",
            "Give one sensitivity map per coil, at the image's matrix.",
        )


def expand(image: Complex, maps: Complex) -> Complex:
    """Return S x: what each coil sees, [..., C, H, W], of an image [..., H, W]."""
    if image.shape != (*maps.shape[:-3], *maps.shape[-2:]):
        raise DataError(
            f"The image is {list(image.shape)}, coil sensitivities are {list(maps.shape)}.",
            "Give sensitivities at the image's matrix.",
        )
    result: Complex = maps * image[..., None, :, :]
    return result


def combine(images: Complex, maps: Complex) -> Complex:
    """Return S^H z, the coils' images [..., C, H, W] as one image [..., H, W]: adjoint of S.

    Raises:
        DataError: Images and maps differ in shape.
    """
    _same_grid(images, maps)
    shape = (*images.shape[:-3], *images.shape[-2:])
    result: Complex = np.zeros(shape, np.result_type(images, maps))
    for coil in range(images.shape[-3]):  # one at a time: all of them fit into no cache
        result += maps[..., coil, :, :].conj() * images[..., coil, :, :]
    return result


def coil_images(kspace: NDArray[np.complex64], mask: Mask) -> NDArray[np.complex64]:
    """Return the coils' zero-filled images, complex64 [..., C, H, W], of k-space of that shape.

    Args:
        kspace: complex64, zero where not sampled: what a mask of lines leaves out is not looked at.
        mask: What was sampled.
    """
    if mask.is_lines:
        rows = np.flatnonzero(mask.samples)
        return lines_to_image(kspace[..., rows, :], rows, mask.height)
    return kspace_to_image(kspace).astype(np.complex64, copy=False)


def sense_normal(image: Complex, maps: Complex, mask: Mask) -> Complex:
    """Return S^H P S x of an image [..., H, W]; its norm as an operator is at most 1.

    Raises:
        DataError: Image and maps differ in shape.
        MaskError: The mask is of another matrix.
    """
    return combine(zero_filled(expand(image, maps), mask), maps)


def sense_zero_filled(kspace: Complex, maps: Complex) -> NDArray[np.complex64]:
    """Return x_u = S^H F^H m y of k-space [..., C, H, W] that is zero where nothing was sampled.

    Raises:
        DataError: K-space and maps differ in shape.
    """
    return combine(kspace_to_image(kspace), maps).astype(np.complex64, copy=False)


def factor_is_cheaper(sampled: int, height: int) -> bool:
    """Whether multiplying by F_m and F_m^H takes fewer products than by P: 2 m < H."""
    return 2 * sampled < height


def sense_operator_array(mask: Mask, form: Form, *, any_mask: bool = False) -> NDArray[np.float64]:
    """Return the constant that a form of SENSE data consistency needs.

    Args:
        mask: The sampling pattern.
        form: Which form will be computed.
        any_mask: Give an operator whose shape is the same for all masks.

    Returns:
        float64; projection: the real form of P, [2H, 2H], or where fewer than half of the m lines
        are sampled that of F_m, the sampled rows of F, [2m, 2H], since P = F_m^H F_m; a matrix A
        has the real form [[Re A, -Im A], [Im A, Re A]]. dft and fft: the mask, [H, 1] or [H, W].
    """
    sampled = int(mask.samples.sum())
    if form is not Form.PROJECTION or any_mask or not factor_is_cheaper(sampled, mask.height):
        return operator_array(mask, form, 2)
    lines = np.flatnonzero(mask.samples)
    # P does not depend on the image's origin, so neither shift nor sign of it is needed here.
    angle = 2 * np.pi * (np.outer(lines, np.arange(mask.height)) % mask.height) / mask.height
    real, imag = np.cos(angle), -np.sin(angle)
    factor: NDArray[np.float64] = np.block([[real, -imag], [imag, real]]) / np.sqrt(mask.height)
    return factor


def whitening_matrix(noise: Complex) -> NDArray[np.complex128]:
    """Return W [C, C], lower triangular, that makes noise white: W cov W^H = 1.

    cov = n n^H / N, so real and imaginary parts have variance 1/2 afterwards (Pruessmann et al.,
    MRM 2001, appendix B). W is applied along the coil axis of k-space.

    Args:
        noise: Samples without signal, [C, N].

    Raises:
        DataError: Too few samples, a silent coil or values that are not finite.
    """
    remedy = "Give a noise scan of all coils, with many more samples than coils."
    if noise.ndim != 2 or noise.shape[1] <= noise.shape[0]:
        raise DataError(f"Noise is {list(noise.shape)}, not [coils, samples].", remedy)
    samples = noise.astype(np.complex128)
    covariance = samples @ samples.conj().T / noise.shape[1]
    try:
        lower = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError as error:
        raise DataError("The coils' noise has no covariance that can be inverted.", remedy) from (
            error
        )
    result = np.asarray(np.linalg.inv(lower), dtype=np.complex128)
    if not np.isfinite(result).all():
        raise DataError("The noise holds a silent coil or values that are not finite.", remedy)
    return result


def noise_weights(noise: Complex) -> NDArray[np.complex128]:
    """Return `whitening_matrix` in the unit of k-space: times the coils' root mean square noise.

    Coils of equal, uncorrelated noise are left as they are, and images of a scan with and without
    a noise measurement have one unit.

    Args:
        noise: Samples without signal, [C, N].

    Raises:
        DataError: See `whitening_matrix`.
    """
    matrix = whitening_matrix(noise)
    matrix *= np.sqrt(np.mean(np.abs(noise.astype(np.complex128)) ** 2))
    return matrix


def compression_matrix(kspace: Complex, coils: int = COILS) -> NDArray[np.complex128]:
    """Return [K, C] with orthonormal rows: the K combinations of coils that hold most energy.

    Principal components of the samples (Huang et al., MRI 2008; Buehrer et al., MRM 2007). Noise
    that was white stays so.

    Args:
        kspace: [C, ...], usually of the calibration region.
        coils: Virtual coils wanted; no more than C are given.

    Raises:
        DataError: Fewer than one coil is wanted.
    """
    if coils < 1:
        raise DataError(f"{coils} coils make no image.", "Compress to 1 coil or more.")
    samples = kspace.reshape(len(kspace), -1).astype(np.complex128)
    _, vectors = np.linalg.eigh(samples @ samples.conj().T)  # rising eigenvalues
    return np.ascontiguousarray(vectors[:, ::-1][:, :coils].conj().T)


def compress(kspace: Complex, matrix: Complex) -> NDArray[np.complex64]:
    """Apply a matrix [K, C] (compression or whitening) to the coils of [..., C, H, W]."""
    *_, height, width = kspace.shape
    flat = kspace.reshape(*kspace.shape[:-2], height * width)
    mixed = matrix.astype(np.complex64) @ flat
    return np.ascontiguousarray(mixed.reshape(*mixed.shape[:-1], height, width), dtype=np.complex64)


def remove_oversampling(kspace: Complex, factor: int = 2) -> NDArray[np.complex64]:
    """Cut the field of view along readout (last axis) to its middle, as scanners oversample it.

    Args:
        kspace: [..., W], fully sampled along readout, zero frequency at index 0.
        factor: Oversampling; W must be a multiple of it.

    Returns:
        complex64 [..., W / factor]; images keep their values inside the new field of view.

    Raises:
        DataError: W is no multiple of the factor.
    """
    width = kspace.shape[-1]
    if factor < 1 or width % factor:
        raise DataError(
            f"{width} readout samples are not {factor} times as many as an image needs.",
            "Give the scan's own oversampling (2 on most scanners).",
        )
    kept = width // factor
    start = width // 2 - kept // 2
    image = kspace_to_image(kspace, (-1,))[..., start : start + kept]
    return image_to_kspace(image, (-1,)).astype(np.complex64, copy=False)
