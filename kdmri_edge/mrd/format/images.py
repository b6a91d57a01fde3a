"""Outcomes as MRD images: geometry, units and flags."""

from __future__ import annotations

from typing import Any, Final

import ismrmrd
import numpy as np
from ismrmrd import Image
from numpy.typing import NDArray

from kdmri_edge.data.orientation import Orientation, orientation_of, sign_of
from kdmri_edge.mrd.format.assembler import Slice
from kdmri_edge.mrd.format.header import Encoding
from kdmri_edge.runtime.pipeline import Outcome

__all__ = ["BEYOND", "BUNDLE", "BUNDLE_REASON", "FALLBACK", "REASON", "ImageMaker", "fallback_of"]

FALLBACK: Final = "KdmriFallback"
"""Meta attribute of every image: "zero-filled", or "none" for the network's."""
REASON: Final = "KdmriFallbackReason"
BEYOND: Final = "KdmriBeyondTraining"
"""Meta attribute of a network's image: what of its scan the network was not trained for."""
BUNDLE: Final = "KdmriBundle"
"""Meta attribute of images of a server with many bundles: the one that served."""
BUNDLE_REASON: Final = "KdmriBundleReason"
"""Meta attribute of the same: why that one, and why no other."""


class ImageMaker:
    """Makes the images of one scan.

    Args:
        encoding: Of the scan.
        int16: Send whole numbers, each image with a scale of its own, which its meta attribute
            RescaleSlope leads back from: no image can tell how bright those after it are.
            Otherwise float32 in the unit of k-space.
        orientation: How H and W run to the readouts' directions, see `data.orientation`; images
            give the directions in which their pixels go.
    """

    def __init__(
        self,
        encoding: Encoding,
        *,
        int16: bool = False,
        orientation: Orientation | str = Orientation.VENDOR,
    ) -> None:
        self._sign = sign_of(orientation_of(encoding.vendor, orientation))
        self._encoding = encoding
        self._int16 = int16
        self._count = 0

    def make(
        self, part: Slice, outcome: Outcome, *, bundle: str | None = None, why: str = ""
    ) -> Image:
        """Return the magnitude image of a slice, phase oversampling removed.

        Each contrast is a series of its own.

        Args:
            part: The slice.
            outcome: Its image.
            bundle: Which of many bundles served; None for none of them.
            why: The reason; empty for a server of one network.
        """
        height, rows = self._encoding.lines, self._encoding.rows
        edge = height // 2 - rows // 2
        pixels = np.abs(outcome.image[edge : edge + rows]).astype(np.float32)
        read = [self._sign * v for v in part.head.read_dir]
        phase = [self._sign * v for v in part.head.phase_dir]
        meta: dict[str, Any] = {
            "DataRole": "Image",
            "ImageProcessingHistory": ["KDMRI-EDGE"],
            "ImageRowDir": [f"{v:.9f}" for v in read],
            "ImageColumnDir": [f"{v:.9f}" for v in phase],
            FALLBACK: "none" if outcome.fallback is None else "zero-filled",
        }
        if outcome.fallback is not None:
            meta[REASON] = outcome.fallback
            meta["ImageComment"] = f"zero-filled: {outcome.fallback}"
        elif outcome.beyond:
            meta[BEYOND] = meta["ImageComment"] = " ".join(outcome.beyond)
        if why:
            meta[BUNDLE], meta[BUNDLE_REASON] = bundle or "none", why
        data: NDArray[Any] = _integers(pixels, meta) if self._int16 else pixels
        self._count += 1
        image = Image.from_array(
            data,
            acquisition=part.head,
            field_of_view=self._encoding.fov_mm,
            image_type=ismrmrd.IMTYPE_MAGNITUDE,
            image_index=self._count % 65536,
            image_series_index=int(part.key.contrast) + 1,  # scanners count series from 1
        )
        head = image.getHead()
        head.read_dir[:], head.phase_dir[:] = read, phase
        image.setHead(head)
        image.meta = meta
        return image


def _integers(pixels: NDArray[np.float32], meta: dict[str, Any]) -> NDArray[np.int16]:
    """The image over the type's whole range, and in `meta` the way back."""
    slope = float(pixels.max()) / np.iinfo(np.int16).max or 1.0
    meta["RescaleSlope"], meta["RescaleIntercept"] = repr(slope), "0"
    values: NDArray[np.int16] = np.rint(pixels / slope).astype(np.int16)
    return values


def fallback_of(image: Image) -> str | None:
    """Return why an image that a server sent is the zero-filled one; None where it is not."""
    if image.meta.get(FALLBACK, "none") == "none":
        return None
    return str(image.meta.get(REASON, "no reason given"))
