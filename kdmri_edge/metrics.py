"""Image quality of reconstructed volumes, by the field's conventions.

PSNR, SSIM and NMSE follow fastMRI (Zbontar et al., arXiv:1811.08839): one value per *volume*, with
the maximum of the target volume as data range. HFN is KD-MRI's measure of fine detail (Murugesan et
al., MIDL 2020). Every function takes the target first, both [S, H, W] in the same unit; complex
images are compared by magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import DataError
from kdmri_edge.registry import Registry
from kdmri_edge.utils.extras import require

__all__ = ["METRICS", "SSIM_WINDOW", "Metric", "hfn", "nmse", "psnr", "ssim", "volume_metrics"]

SSIM_WINDOW: Final = 7
"""Side of SSIM's uniform window in pixels."""

Volume = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A measure of a volume's quality.

    Attributes:
        name: Its key in reports.
        measure: From target and image, float64 magnitudes [S, H, W] of one unit, both finite and
            the target not blank, to the figure.
        higher_is_better: Whether a larger figure is the better one.
    """

    name: str
    measure: Callable[[Volume, Volume], float]
    higher_is_better: bool


def psnr(target: NDArray[Any], image: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio of a volume in dB; infinity for an exact copy.

    Raises:
        DataError: see `volume_metrics`.
    """
    return _psnr(*_checked(target, image))


def ssim(target: NDArray[Any], image: NDArray[Any]) -> float:
    """Structural similarity (Wang et al., TIP 2004), 7 x 7 uniform window, mean over slices.

    Raises:
        DataError: see `volume_metrics`; or slices smaller than the window.
        MissingExtraError: scikit-image is not installed.
    """
    return _ssim(*_checked(target, image))


def nmse(target: NDArray[Any], image: NDArray[Any]) -> float:
    """Squared error of a volume over the energy of the target; 0 is perfect.

    Raises:
        DataError: see `volume_metrics`.
    """
    return _nmse(*_checked(target, image))


def hfn(target: NDArray[Any], image: NDArray[Any]) -> float:
    """High-frequency norm: NMSE of the Laplacians, per slice, mean over slices; 0 is perfect.

    Both volumes are divided by the target's maximum and the image is clipped to [0, 1], as in
    KD-MRI's evaluation code. Slices whose target has a blank Laplacian are left out.

    Raises:
        DataError: see `volume_metrics`; or a target without any edge.
        MissingExtraError: scikit-image is not installed.
    """
    return _hfn(*_checked(target, image))


def volume_metrics(target: NDArray[Any], image: NDArray[Any]) -> dict[str, float]:
    """All measures of one volume.

    Args:
        target: the fully sampled volume [S, H, W], any unit.
        image: the reconstruction, same shape and unit.

    Returns:
        psnr (dB), ssim, nmse and hfn (dimensionless), and what installed packages measure, in the
        order of `METRICS`.

    Raises:
        DataError: different shapes, not [S, H, W], NaN or infinity, a target that is nowhere above
            zero, slices smaller than SSIM's window, or a target without edges.
        MissingExtraError: scikit-image is not installed.
    """
    pair = _checked(target, image)
    return {name: metric.measure(*pair) for name, metric in METRICS.items()}


def _psnr(target: Volume, image: Volume) -> float:
    error = float(np.mean((target - image) ** 2))
    return float("inf") if error == 0.0 else float(10 * np.log10(target.max() ** 2 / error))


def _nmse(target: Volume, image: Volume) -> float:
    return float(np.sum((target - image) ** 2) / np.sum(target**2))


def _ssim(target: Volume, image: Volume) -> float:
    if min(target.shape[1:]) < SSIM_WINDOW:
        raise DataError(
            f"Slices of {target.shape[1]} x {target.shape[2]} are smaller than SSIM's"
            f" {SSIM_WINDOW} x {SSIM_WINDOW} window.",
            "Use larger images.",
        )
    similarity = require("skimage.metrics", extra="bench").structural_similarity
    peak = float(target.max())
    slices = [
        similarity(t, x, data_range=peak, win_size=SSIM_WINDOW)
        for t, x in zip(target, image, strict=True)
    ]
    return float(np.mean(slices))


def _hfn(target: Volume, image: Volume) -> float:
    laplace = require("skimage.filters", extra="bench").laplace
    peak = float(target.max())
    values = []
    for t, x in zip(target / peak, np.clip(image / peak, 0.0, 1.0), strict=True):
        edges = laplace(t)
        energy = float(np.sum(edges**2))
        if energy > 0.0:
            values.append(float(np.sum((edges - laplace(x)) ** 2)) / energy)
    if not values:
        raise DataError(
            "The target volume has no edge in any slice, so its HFN is undefined.",
            "Leave the volume out.",
        )
    return float(np.mean(values))


METRICS: Final = Registry(
    "kdmri_edge.metrics",
    Metric,
    "metric",
    {
        "psnr": Metric(name="psnr", measure=_psnr, higher_is_better=True),
        "ssim": Metric(name="ssim", measure=_ssim, higher_is_better=True),
        "nmse": Metric(name="nmse", measure=_nmse, higher_is_better=False),
        "hfn": Metric(name="hfn", measure=_hfn, higher_is_better=False),
    },
    error=DataError,
)


def _checked(target: NDArray[Any], image: NDArray[Any]) -> tuple[Volume, Volume]:
    """Return both as float64 magnitudes, or refuse them."""
    target, image = np.asarray(target), np.asarray(image)
    if target.shape != image.shape or target.ndim != 3 or target.size == 0:
        raise DataError(
            f"The target is {list(target.shape)} and the image {list(image.shape)};"
            " metrics need two volumes of one shape [slices, height, width].",
            "Compare volumes of the same size.",
        )
    pair = []
    for name, volume in (("target", target), ("image", image)):
        if not np.isfinite(volume).all():
            raise DataError(
                f"The {name} volume holds NaN or infinite values.",
                "Find out which step made them; no measure of quality is defined then.",
            )
        real = np.abs(volume) if np.iscomplexobj(volume) else volume
        pair.append(real.astype(np.float64))
    if not pair[0].max() > 0.0:
        raise DataError(
            "The target volume is nowhere above zero.", "Leave the volume out: it shows nothing."
        )
    return pair[0], pair[1]
