"""Outcomes as MRD images: geometry, units and flags."""

from __future__ import annotations

from typing import Any, Final

import ismrmrd
import numpy as np
from ismrmrd import Image
from numpy.typing import NDArray

from kdmri_edge import __version__
from kdmri_edge.data.orientation import Orientation, orientation_of, sign_of
from kdmri_edge.mrd.format.assembler import Slice
from kdmri_edge.mrd.format.header import Encoding
from kdmri_edge.physics.interpolation import interpolated
from kdmri_edge.runtime.pipeline import Outcome

__all__ = [
    "BEYOND",
    "BOUND",
    "BUNDLE",
    "BUNDLE_REASON",
    "CERTIFICATE",
    "FALLBACK",
    "INTERPOLATED",
    "REASON",
    "SCOPE",
    "ImageMaker",
    "derived",
    "fallback_of",
    "fine_matrix",
    "integers",
    "is_unchanged",
    "window",
]

FALLBACK: Final = "KdmriFallback"
"""Meta attribute of every image: "none" for the network's, else "zero-filled", or "unchanged" for
one that was sent back as it came."""
REASON: Final = "KdmriFallbackReason"
BEYOND: Final = "KdmriBeyondTraining"
"""Meta attribute of a network's image: what of its scan the network was not trained for."""
SCOPE: Final = "KdmriScope"
"""Meta attribute of images that a network made: "inside" what it is made for, "outside", or
"unknown" without a calibration."""
BOUND: Final = "KdmriErrorBound"
"""Meta attribute of a network's image inside the scope: largest error relative to the image, and
the share of slices that it holds for."""
CERTIFICATE: Final = "KdmriCertificate"
"""Meta attribute of images that a network made: the certificate, as one line of JSON."""
BUNDLE: Final = "KdmriBundle"
"""Meta attribute of images of a server with many bundles: the one that served."""
BUNDLE_REASON: Final = "KdmriBundleReason"
"""Meta attribute of the same: why that one, and why no other."""
INTERPOLATED: Final = "KdmriInterpolatedFrom"
"""Meta attribute of an image of a finer matrix than was reconstructed: that one."""

_FINEST: Final = 4  # times the pixels along an axis; scanners double them
_MOST_PIXELS: Final = 2048 * 2048
_BRIGHT: Final = 99.5  # percentile of the pixels that the window ends at


def fine_matrix(encoding: Encoding) -> tuple[int, int] | None:
    """Return the matrix that images are interpolated to, as the scan's header asks.

    None where it asks for no finer one than is encoded, or for more than anybody looks at.
    """
    if encoding.finer is None:
        return None
    rows, columns = (
        max(asked, own)
        for asked, own in zip(encoding.finer, (encoding.rows, encoding.width), strict=True)
    )
    finest = rows <= _FINEST * encoding.rows and columns <= _FINEST * encoding.width
    return (rows, columns) if finest and rows * columns <= _MOST_PIXELS else None


def derived(meta: dict[str, Any], outcome: Outcome, what: str, name: str | None) -> None:
    """Set what tells a host that an image is derived, and how, in the names that hosts read.

    `SequenceDescriptionAdditional` is the same for all images of a series, which is one series; the
    image type's last value and the comment say whether this one is the network's.

    Args:
        meta: Of the image; extended.
        outcome: The image.
        what: What stands in the network's place where it has none: "zero-filled".
        name: Of the network; None where it has none.
    """
    kind = "KDMRI" if outcome.fallback is None else what.upper().replace("-", "_")
    comment = f"kdmri-edge {__version__}: reconstructed by a neural network"
    comment += f" ({name})" if name else ""
    meta[FALLBACK] = "none" if outcome.fallback is None else what
    if outcome.fallback is not None:
        meta[REASON] = outcome.fallback
        comment = f"{what}: {outcome.fallback}"
    elif outcome.beyond:
        meta[BEYOND] = " ".join(outcome.beyond)
        comment = f"{comment}. {meta[BEYOND]}"
    if (certificate := outcome.certificate) is not None:
        meta[SCOPE], meta[CERTIFICATE] = certificate.scope.word, certificate.to_line()
        if certificate.bound.value is not None and outcome.fallback is None:
            meta[BOUND] = f"{certificate.bound.value:.4g} ({certificate.bound.level:g})"
    meta["ImageType"] = f"DERIVED\\PRIMARY\\M\\{kind}"
    meta["ImageTypeValue4"] = kind
    meta["ComplexImageComponent"] = "MAGNITUDE"
    meta["ImageComment"] = meta["ImageComments"] = comment
    meta["SequenceDescriptionAdditional"] = "KDMRI"


def window(data: NDArray[Any], meta: dict[str, Any]) -> None:
    """Set the window in which a host shows an image at first, in the values that are sent."""
    bright = float(np.percentile(data, _BRIGHT)) if data.size else 0.0
    if data.dtype.kind == "i":
        bright = max(round(bright), 1)
    meta["WindowCenter"], meta["WindowWidth"] = f"{bright / 2:.6g}", f"{bright:.6g}"


class ImageMaker:
    """Makes the images of one scan.

    Args:
        encoding: Of the scan.
        int16: Send whole numbers, each image with a scale of its own, which its meta attribute
            RescaleSlope leads back from: no image can tell how bright those after it are.
            Otherwise float32 in the unit of k-space.
        orientation: How H and W run to the readouts' directions, see `data.orientation`; images
            give the directions in which their pixels go.
        interpolate: Follow a header that asks for a finer matrix.
        name: What the server's one network is called.
    """

    def __init__(
        self,
        encoding: Encoding,
        *,
        int16: bool = False,
        orientation: Orientation | str = Orientation.VENDOR,
        interpolate: bool = False,
        name: str | None = None,
    ) -> None:
        self._sign = sign_of(orientation_of(encoding.vendor, orientation))
        self._encoding = encoding
        self._int16 = int16
        self._fine = fine_matrix(encoding) if interpolate else None
        self._name = name
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
        shown = outcome.image[edge : edge + rows]
        read = [self._sign * v for v in part.head.read_dir]
        phase = [self._sign * v for v in part.head.phase_dir]
        meta: dict[str, Any] = {
            "DataRole": "Image",
            "ImageProcessingHistory": ["KDMRI-EDGE"],
            "ImageRowDir": [f"{v:.9f}" for v in read],
            "ImageColumnDir": [f"{v:.9f}" for v in phase],
            "Keep_image_geometry": 1,
        }
        derived(meta, outcome, "zero-filled", bundle if why else self._name)
        if self._fine is not None:
            meta[INTERPOLATED] = f"{shown.shape[0]} x {shown.shape[1]}"
            shown = interpolated(shown, self._fine)
        pixels = np.abs(shown).astype(np.float32)
        if why:
            meta[BUNDLE], meta[BUNDLE_REASON] = bundle or "none", why
        data: NDArray[Any] = integers(pixels, meta) if self._int16 else pixels
        window(data, meta)
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


def integers(pixels: NDArray[np.float32], meta: dict[str, Any]) -> NDArray[np.int16]:
    """The image over the type's whole range, and in `meta` the way back."""
    slope = float(pixels.max()) / np.iinfo(np.int16).max or 1.0
    meta["RescaleSlope"], meta["RescaleIntercept"] = repr(slope), "0"
    values: NDArray[np.int16] = np.rint(pixels / slope).astype(np.int16)
    return values


def is_unchanged(image: Image) -> bool:
    """Tell whether a server sent an image back as it came."""
    return bool(image.meta.get(FALLBACK) == "unchanged")


def fallback_of(image: Image) -> str | None:
    """Return why an image that a server sent is not the network's; None where it is."""
    if image.meta.get(FALLBACK, "none") == "none":
        return None
    return str(image.meta.get(REASON, "no reason given"))
