"""The worst slices as pictures inside the page: images, residues, the largest error enlarged."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_bench.measuring.quality import View
from kdmri_edge.data.case import Case
from kdmri_edge.utils.extras import require

__all__ = ["ZOOM", "Figure", "Tile", "figures", "grey", "hot", "region"]

ZOOM: Final = 56
"""Side of the enlarged region in pixels."""

_FACTORS: Final = (2, 5, 10, 20, 50)
Image = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One picture.

    Attributes:
        caption: what it is.
        alt: what it shows, for readers who do not see it.
        uri: the PNG as a data URI.
        width: of the picture in pixels.
        height: the same.
    """

    caption: str
    alt: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One slice.

    Attributes:
        title: volume, slice and figures.
        tiles: the images and the residues.
        zoom: the region of the variant's largest residue, enlarged by the page.
        factor: residues are shown up to 1 / factor of the volume's maximum.
    """

    title: str
    tiles: tuple[Tile, ...]
    zoom: tuple[Tile, ...]
    factor: int


def figures(
    cases: Sequence[Case],
    views: Sequence[View],
    teacher: Sequence[NDArray[Any]] | None,
    *,
    name: str,
) -> list[Figure]:
    """Draw slices.

    Args:
        cases: the test volumes.
        views: the slices of the variant.
        teacher: the teacher's volumes, None without one.
        name: what the variant is called.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return [_figure(cases[view.score.case], view, teacher, name) for view in views]


def _figure(case: Case, view: View, teacher: Sequence[NDArray[Any]] | None, name: str) -> Figure:
    score = view.score
    peak = float(np.abs(case.target).max())

    def fraction(image: NDArray[Any]) -> Image:
        shown = np.abs(image) if np.iscomplexobj(image) else image
        return np.asarray(np.rot90(shown), np.float64) / peak

    target = fraction(case.target[score.slice])
    images = {"target": target, "zero-filled": fraction(case.zero_filled[score.slice])}
    if teacher is not None:
        images["teacher"] = fraction(teacher[score.case][score.slice])
    images[name] = fraction(view.image)
    residues = {key: np.abs(images[key] - target) for key in list(images)[2:]}
    high = max(float(np.percentile(residue, 99.5)) for residue in residues.values())
    factor = max((f for f in _FACTORS if f * high <= 1.0), default=_FACTORS[0])
    white = float(np.percentile(target, 99.5)) or 1.0
    where = region(residues[name])
    title = f"{case.name}, slice {score.slice}: {score.psnr:.2f} dB"
    if score.reference is not None:
        title += f", teacher {score.reference:.2f} dB (loss {score.loss:.2f} dB)"
    tiles = [grey(f"{key}", f"{key} of {case.name}", i, white) for key, i in images.items()]
    tiles += [
        hot(f"residue x {factor}, {key}", f"residue of {key}", residue * factor)
        for key, residue in residues.items()
    ]
    zoom = [
        grey(f"{key}, enlarged", f"{key}, region of the largest residue", i[where], white)
        for key, i in images.items()
    ]
    zoom += [
        hot(f"residue x {factor}, {key}, enlarged", f"residue of {key}", r[where] * factor)
        for key, r in residues.items()
    ]
    return Figure(title=title, tiles=tuple(tiles), zoom=tuple(zoom), factor=factor)


def region(residue: Image) -> tuple[slice, slice]:
    """Return the square with the most residue energy."""
    height, width = residue.shape
    side = min(ZOOM, height, width)
    sums = np.pad(np.cumsum(np.cumsum(residue**2, 0), 1), ((1, 0), (1, 0)))
    energy = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    top, left = np.unravel_index(int(energy.argmax()), energy.shape)
    return slice(int(top), int(top) + side), slice(int(left), int(left) + side)


def grey(caption: str, alt: str, image: Image, white: float) -> Tile:
    """Draw an image [H, W] in grey, black at 0 and below.

    Args:
        caption: see `Tile`.
        alt: see `Tile`.
        image: the values.
        white: what is shown as white.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    return _tile(caption, alt, np.clip(255 * image / white, 0, 255).astype(np.uint8))


def hot(caption: str, alt: str, image: Image) -> Tile:
    """Draw values of 0 to 1 from black over red to light yellow.

    Raises:
        MissingExtraError: Pillow or matplotlib is not installed.
    """
    colours: Any = require("matplotlib", extra="bench").colormaps["inferno"]
    return _tile(caption, alt, colours(np.clip(image, 0, 1), bytes=True)[..., :3])


def _tile(caption: str, alt: str, pixels: NDArray[np.uint8]) -> Tile:
    picture = require("PIL.Image", extra="bench").fromarray(np.ascontiguousarray(pixels))
    if pixels.ndim == 3:  # a palette of 64 colours is a third of the bytes, and looks the same
        picture = picture.quantize(64)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    height, width = pixels.shape[:2]
    return Tile(
        caption=caption, alt=alt, uri=f"data:image/png;base64,{data}", width=width, height=height
    )
