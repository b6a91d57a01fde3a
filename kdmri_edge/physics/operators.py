"""The sampling projection P = F^H diag(m) F and its equal forms (numpy, torch-free)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import MaskError
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.masks import Mask

__all__ = [
    "Form",
    "as_network_reads",
    "choose_form",
    "operator_array",
    "projection_matrix",
    "sampled_kspace",
    "zero_filled",
]


class Form(StrEnum):
    """How P x is computed; all forms give the same result.

    Attributes:
        PROJECTION: One matrix product along phase encode; line masks only.
        DFT: Products with DFT matrices in real arithmetic; any mask, any runtime.
        FFT: torch.fft; training, libtorch and the reference.
    """

    PROJECTION = "projection"
    DFT = "dft"
    FFT = "fft"


def choose_form(mask: Mask, wanted: str = "auto") -> Form:
    """Return the form to use for a mask: as wanted, or the fastest that every runtime takes.

    Raises:
        MaskError: The projection form is asked for a mask that does not sample whole lines.
    """
    if wanted == "auto":
        return Form.PROJECTION if mask.is_lines else Form.DFT
    form = Form(wanted)
    if form is Form.PROJECTION and not mask.is_lines:
        raise MaskError(
            f"Mask {mask.name!r} does not sample whole lines, so it has no projection form.",
            "Use its form dft (or auto).",
        )
    return form


def projection_matrix(mask: Mask) -> NDArray[np.complex128]:
    """Return P = F^H diag(m) F of a line mask: complex128, shape [N, N].

    P is circulant, so the place of the image's origin drops out; it is self-adjoint and
    idempotent. Its real part is what acts on a zero-phase image, and is not a projection: a line
    whose mirror is not sampled has eigenvalue 1/2.

    Raises:
        ValueError: The mask does not sample whole lines.
    """
    if not mask.is_lines:
        raise ValueError("only a line mask has a projection along one axis")
    kernel: NDArray[np.complex128] = np.fft.ifft(mask.samples.astype(np.float64))
    index = np.arange(mask.height)
    matrix: NDArray[np.complex128] = kernel[(index[:, None] - index[None, :]) % mask.height]
    return matrix


def operator_array(mask: Mask, form: Form, channels: int) -> NDArray[np.float64]:
    """Return the constant that a form of data consistency needs.

    Args:
        mask: The sampling pattern.
        form: Which form will be computed.
        channels: 1 (magnitude) or 2 (real, imaginary).

    Returns:
        float64; projection: the real matrix [C * H, C * H] that acts on an image viewed as
        [B, C * H, W]; for C = 2 it is [[Re P, -Im P], [Im P, Re P]]. dft and fft: the mask, [H, 1]
        or [H, W].
    """
    if form is Form.PROJECTION:
        p = projection_matrix(mask)
        real = p.real if channels == 1 else np.block([[p.real, -p.imag], [p.imag, p.real]])
        return np.ascontiguousarray(real)
    return mask.grid.astype(np.float64)


def zero_filled(image: NDArray[np.generic], mask: Mask) -> NDArray[Any]:
    """Undersample a fully sampled image and return the zero-filled image x_u = F^H diag(m) F x.

    Args:
        image: Real or complex, shape [..., H, W].
        mask: The samples to keep.

    Returns:
        complex64 for a complex image. For a real image the real part of x_u, as float32: with
        the magnitude instead, the identity x' = x - P x + x_u would not hold.

    Raises:
        MaskError: The mask is of another matrix.
    """
    height, width = image.shape[-2:]
    mask.check_matrix(height, width)
    axes = (-2,) if mask.is_lines else (-2, -1)
    result = kspace_to_image(image_to_kspace(image, axes) * mask.grid, axes)
    if np.iscomplexobj(image):
        return result.astype(np.complex64, copy=False)
    return result.real.astype(np.float32)


def sampled_kspace(image: NDArray[np.generic], mask: Mask) -> NDArray[np.complex64]:
    """Return what a mask takes of the k-space of images: m F x, zero elsewhere.

    Args:
        image: Fully sampled images, of each coil where there are several, [..., H, W].
        mask: The samples to keep.

    Raises:
        MaskError: The mask is of another matrix.
    """
    mask.check_matrix(*image.shape[-2:])
    return (image_to_kspace(image) * mask.grid).astype(np.complex64, copy=False)


def as_network_reads(
    x_u: NDArray[Any], *, channels: int, magnitude: bool = False
) -> NDArray[np.float32] | NDArray[np.complex64]:
    """Return what a network reads of a zero-filled image; the one place of this rule.

    Args:
        x_u: Zero-filled images [..., H, W], real or complex.
        channels: Of the network. Two read the complex image. One reads its real part, never its
            magnitude, with which the identity x' = x - P x + x_u would not hold.
        magnitude: The network has one channel and no data consistency (super-resolution of KD-MRI),
            and reads |x_u|.

    Returns:
        float32 for one channel, complex64 for two, C-contiguous, of the same shape.
    """
    if channels == 2:
        return np.ascontiguousarray(x_u, np.complex64)
    return np.ascontiguousarray(np.abs(x_u) if magnitude else x_u.real, np.float32)
