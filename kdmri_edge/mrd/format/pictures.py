"""Images that a client sends: their pixels, and what goes back for them."""

from __future__ import annotations

from typing import Any, Final

import ismrmrd
import numpy as np
from ismrmrd import Image
from numpy.typing import NDArray

from kdmri_edge.errors import DataError
from kdmri_edge.mrd.format.images import (
    BUNDLE,
    BUNDLE_REASON,
    FALLBACK,
    REASON,
    derived,
    integers,
    window,
)
from kdmri_edge.runtime.pipeline import Outcome

__all__ = ["RETROSPECTIVE", "answer", "pixels_of", "unchanged"]

RETROSPECTIVE: Final = "KdmriRetrospectiveError"
"""Meta attribute of an image that was undersampled here: how far it is from what came, relative to
that, both as magnitudes."""

_KINDS: Final = {
    ismrmrd.IMTYPE_PHASE: "phases",
    ismrmrd.IMTYPE_REAL: "real parts",
    ismrmrd.IMTYPE_IMAG: "imaginary parts",
    6: "colours",  # IMTYPE_RGB, which the package does not name
}


def pixels_of(image: Image) -> NDArray[Any]:
    """Return an image's pixels [H, W], float32 or complex64, in its unit.

    Raises:
        DataError: It is no image of intensities of one channel and one slice, or not finite.
    """
    kind = _KINDS.get(int(image.image_type))
    if kind is not None:
        raise DataError(
            f"Images of {kind} show no intensities.", "Send magnitudes or complex images."
        )
    if image.data.shape[:2] != (1, 1) or min(image.data.shape) < 1:
        raise DataError(
            f"An image has {image.data.shape[0]} channels and {image.data.shape[1]} slices.",
            "Send images of one channel and one slice each.",
        )
    plain = image.data[0, 0]
    exact: NDArray[Any] = plain.astype(np.complex64 if np.iscomplexobj(plain) else np.float32)
    slope, intercept = (
        _number(image.meta.get(f"Rescale{key}"), usual)
        for key, usual in (("Slope", 1.0), ("Intercept", 0.0))
    )
    if (slope, intercept) != (1.0, 0.0):
        with np.errstate(over="ignore", invalid="ignore"):  # it is looked at below
            exact = exact * np.float32(slope) + np.float32(intercept)
    if not np.isfinite(exact).all():
        raise DataError("An image holds NaN or infinite values.", "Send it again.")
    return exact


def _number(given: Any, usual: float) -> float:
    """Read an attribute that is a number.

    Raises:
        DataError: It is none.
    """
    if given is None:
        return usual
    try:
        number = float(given)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise DataError("An image's RescaleSlope or RescaleIntercept is no number.", "Correct it.")
    return number


def answer(
    image: Image,
    outcome: Outcome,
    *,
    int16: bool,
    bundle: str | None,
    why: str = "",
    compared: NDArray[Any] | None = None,
) -> Image:
    """Return a network's image in the place of one that came, as a magnitude.

    Its header and attributes stay, but for what says that it is derived.

    Args:
        image: What came.
        outcome: The network's.
        int16: Send whole numbers, see `images.ImageMaker`.
        bundle: Name of the network; None where it has none.
        why: Why that one of many bundles; empty for a server of one network.
        compared: What came, where it is the fully sampled image that the network was tried on.
    """
    pixels = np.abs(outcome.image).astype(np.float32)
    meta: dict[str, Any] = dict(image.meta)
    for gone in ("RescaleSlope", "RescaleIntercept"):
        meta.pop(gone, None)
    meta["DataRole"] = "Image"
    before = meta.get("ImageProcessingHistory", [])
    meta["ImageProcessingHistory"] = [
        *(before if isinstance(before, list) else [before]),
        "KDMRI-EDGE",
    ]
    meta["Keep_image_geometry"] = 1
    for name, along in (("ImageRowDir", image.read_dir), ("ImageColumnDir", image.phase_dir)):
        meta.setdefault(name, [f"{v:.9f}" for v in along])
    derived(meta, outcome, "unchanged", bundle)
    if why:
        meta[BUNDLE], meta[BUNDLE_REASON] = bundle or "none", why
    if compared is not None:
        whole = np.abs(compared).astype(np.float64)
        scale = float(np.linalg.norm(whole)) or 1.0
        meta[RETROSPECTIVE] = f"{float(np.linalg.norm(pixels - whole)) / scale:.4f}"
        meta["ImageComment"] = meta["ImageComments"] = (
            f"{meta['ImageComment']}; of an image that was undersampled here"
        )
    data: NDArray[Any] = integers(pixels, meta) if int16 else pixels
    window(data, meta)
    made = Image.from_array(data)
    head, own = image.getHead(), made.getHead()
    head.data_type, head.image_type = own.data_type, ismrmrd.IMTYPE_MAGNITUDE
    head.matrix_size[:], head.channels = own.matrix_size, 1
    made.setHead(head)
    made.meta = meta
    return made


def unchanged(image: Image, reason: str) -> Image:
    """Return an image as it came, but for the attributes that say so."""
    made = Image(image.getHead())
    made.data[:] = image.data
    made.meta = {**image.meta, FALLBACK: "unchanged", REASON: reason}
    return made
