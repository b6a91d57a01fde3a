"""Iterative reconstructions by SigPy, as baselines on measured k-space.

SENSE with Tikhonov regularisation (Pruessmann et al., MRM 2001) and with an l1 penalty on wavelet
coefficients (Lustig et al., MRM 2007). The weight is the best of a grid against the fully sampled
image, which no user has: the baselines are flattered, never the networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.extras import require
from kdmri_edge.metrics import psnr

__all__ = ["METHODS", "Choice", "Method", "best_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """An iterative reconstruction.

    Attributes:
        application: Name of its class in `sigpy.mri.app`.
        weights: Of the regularisation, tried one after another; the data have a zero-filled image
            of maximum 1.
        options: More of its arguments.
    """

    application: str
    weights: tuple[float, ...]
    options: Mapping[str, Any]


METHODS: Final = {
    "SENSE (SigPy)": Method(
        application="SenseRecon",
        weights=(0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        options={"max_iter": 60},
    ),
    "l1-wavelet (SigPy)": Method(
        application="L1WaveletRecon",
        weights=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        options={"max_iter": 100, "wave_name": "db4"},
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Choice:
    """The best image of a method.

    Attributes:
        image: Magnitudes, float32 [S, H, W], in the unit of the target.
        weight: The weight that gave it.
    """

    image: NDArray[np.float32]
    weight: float


def best_of(
    method: Method,
    kspace: NDArray[np.complex64],
    maps: NDArray[np.complex64],
    target: NDArray[np.float32],
) -> Choice:
    """Reconstruct with every weight and keep the image of the best PSNR.

    Args:
        method: Of `METHODS`.
        kspace: complex64 [S, C, H, W], zero frequency at index 0, zero where not sampled.
        maps: Coil sensitivities, complex64 [S, C, H, W].
        target: Magnitudes of the fully sampled image, [S, H, W].

    Raises:
        MissingExtraError: SigPy is not installed.
    """
    require("sigpy", extra="dev")
    found = []
    for weight in method.weights:
        slices = [_image(method, k, m, weight) for k, m in zip(kspace, maps, strict=True)]
        found.append(Choice(image=np.stack(slices), weight=weight))
    best: Callable[[Choice], float] = lambda choice: psnr(target, choice.image)  # noqa: E731
    return max(found, key=best)


def _image(
    method: Method, kspace: NDArray[np.complex64], maps: NDArray[np.complex64], weight: float
) -> NDArray[np.float32]:
    from sigpy.mri import app

    # SigPy has zero frequency and the image's origin in the middle
    centred = np.fft.fftshift(kspace, axes=(-2, -1))
    scale = float(np.abs(np.fft.ifft2(kspace, norm="ortho")).max())
    made = getattr(app, method.application)(
        centred / scale, maps, lamda=weight, show_pbar=False, **method.options
    )
    # as of the networks: where no coil has sensitivity there is no image
    return np.asarray(np.abs(made.run()) * scale * maps.any(0), dtype=np.float32)
