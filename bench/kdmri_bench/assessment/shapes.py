"""Discs and rectangles whose k-space is known exactly, as an MR scanner would sample it.

A phantom that is drawn in pixels has borders that no scanner sees, and its k-space is a truncated
copy of itself. Here objects are continuous, and their Fourier integrals are sampled:

    disc of radius R at (h, w):     R J1(2 pi R k) / k . exp(-2 pi i (k_h h + k_w w))
    rectangle of sides a, b:        a sinc(a k_h) b sinc(b k_w) . exp(...)

with k in cycles per pixel, h and w in pixels from the image's centre. Images of them ring at edges
(Gibbs) as real ones do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.utils.extras import require

__all__ = ["Disc", "Rectangle", "drawn", "sampled"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Disc:
    """A disc.

    Attributes:
        row: of its centre, pixels from the image's centre along H.
        column: the same along W.
        radius: pixels.
        value: what it adds to the image.
    """

    row: float
    column: float
    radius: float
    value: float

    def spectrum(self, k_h: NDArray[Any], k_w: NDArray[Any]) -> NDArray[Any]:
        """Return its Fourier integral at frequencies in cycles per pixel, in pixels²."""
        j1: Any = require("scipy.special", extra="bench").j1
        k = np.hypot(k_h, k_w)
        safe = np.where(k > 0, k, 1.0)
        value = self.radius * j1(2 * np.pi * self.radius * safe) / safe
        return np.where(k > 0, value, np.pi * self.radius**2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rectangle:
    """A rectangle along the axes.

    Attributes:
        row: of its centre, pixels from the image's centre along H.
        column: the same along W.
        height: along H, pixels.
        width: along W, pixels.
        value: what it adds to the image.
    """

    row: float
    column: float
    height: float
    width: float
    value: float

    def spectrum(self, k_h: NDArray[Any], k_w: NDArray[Any]) -> NDArray[Any]:
        """Return its Fourier integral at frequencies in cycles per pixel, in pixels²."""
        product: NDArray[Any] = (
            self.height * np.sinc(self.height * k_h) * self.width * np.sinc(self.width * k_w)
        )
        return product


def drawn(shapes: Iterable[Disc | Rectangle], matrix: int) -> NDArray[np.float64]:
    """Return the fully sampled image of shapes, [N, N].

    The sum of their spectra is sampled at the frequencies of an N x N matrix. At even N the
    samples of the highest frequency have no mirror; the real part is taken, so that the object has
    no phase.

    Args:
        shapes: The objects; where they overlap values add.
        matrix: N, pixels along H and W.
    """
    k = np.fft.fftfreq(matrix)
    k_h, k_w = k[:, None], k[None, :]
    total = np.zeros((matrix, matrix), np.complex128)
    for shape in shapes:
        shift = np.exp(-2j * np.pi * (k_h * shape.row + k_w * shape.column))
        total += shape.value * shape.spectrum(k_h, k_w) * shift
    image = kspace_to_image(total / matrix)  # orthonormal, over pixels of area 1
    real: NDArray[np.float64] = np.asarray(image.real, np.float64)
    return real


def sampled(image: NDArray[Any]) -> NDArray[np.complex64]:
    """Return the k-space of one coil of images [S, H, W], complex64 [S, 1, H, W]."""
    kspace: NDArray[np.complex64] = image_to_kspace(image)[:, None].astype(np.complex64)
    return kspace
