"""Small structures in training images, and what their contrast is.

A structure is an ellipse with soft edges that makes the image brighter or darker by a factor, so
that it keeps texture and phase, and means the same in any unit. Its contrast is the mean inside it
less that of a ring around it; of both networks and targets it is a sum of pixels with fixed
weights, so the error in contrast is that sum of the error of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.distillation.recipe import Insertion

__all__ = ["Inserted", "Place", "insert"]

# After the recipe's seed and the step: a stream of its own, beside those of batches and noise.
_STRUCTURES: Final = 2002

# Tissue is brighter than this part of the image's 99th percentile, so that the air, in which a
# factor changes nothing, gets no structures.
_TISSUE: Final = 0.2
_BRIGHT: Final = 99.0

# The short axis of an ellipse, as a fraction of the long one.
_ROUNDEST, _FLATTEST = 1.0, 0.6

# Pixels over which an edge fades; from the edge to the ring around it; and the width of that.
_EDGE, _APART, _RING = 1.5, 1.5, 2.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """An image of a batch.

    Attributes:
        number: Which one it is of the whole batch, so that processes share the batch of one.
        start: First column of what is seen of its slice.
        columns: How many are seen.
    """

    number: int
    start: int
    columns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Inserted:
    """The structures of some images.

    Attributes:
        factors: What the images are multiplied by, float32 [B, H, W]; 1 where nothing is inserted.
        contrasts: The contrast of each structure is the sum of the image with these weights,
            float32 [B, K, H, W]; zero where an image has fewer than K structures.
    """

    factors: NDArray[np.float32]
    contrasts: NDArray[np.float32]


def insert(
    images: Sequence[NDArray[Any]],
    places: Sequence[Place],
    wanted: Insertion,
    *,
    strip: int,
    seed: int,
    step: int,
) -> Inserted:
    """Draw the structures of a step; the same in every process and after every restart.

    Args:
        images: Fully sampled slices [H, W], real or complex, in any unit.
        places: What is seen of each of them; structures are centred there.
        wanted: How many, how large, and how bright or dark.
        strip: Columns of a strip, to which the number of structures applies.
        seed: The recipe's.
        step: Step of the network.
    """
    widest = max(place.columns for place in places)
    most = wanted.most * -(-widest // strip)
    shape = images[0].shape
    factors = np.ones((len(images), *shape), np.float32)
    contrasts = np.zeros((len(images), most, *shape), np.float32)
    for image, place, factor, contrast in zip(images, places, factors, contrasts, strict=True):
        random = np.random.default_rng([seed, step, _STRUCTURES, place.number])
        if random.random() >= wanted.share:
            continue
        magnitude = np.abs(image)
        bright = np.percentile(magnitude, _BRIGHT)
        seen = magnitude[:, place.start : place.start + place.columns]
        tissue = np.argwhere(seen > _TISSUE * bright)
        if not len(tissue):  # a strip beside the head
            continue
        for own in contrast[: int(random.integers(1, most + 1))]:
            row, column = tissue[int(random.integers(len(tissue)))]
            centre = int(row), int(column) + place.start
            box, inside, ring = _structure(shape, centre, _diameter(wanted, random), random)
            strength = random.uniform(-wanted.contrast, wanted.contrast)
            factor[box] *= (1 + strength * inside).astype(np.float32)
            whole = place.start <= box[1].start and box[1].stop <= place.start + place.columns
            if whole and ring.any():  # else the strip does not show all that its contrast is of
                own[box] = inside / inside.sum() - ring / ring.sum()
    return Inserted(factors=factors, contrasts=contrasts)


def _diameter(wanted: Insertion, random: np.random.Generator) -> float:
    low, high = np.log(wanted.smallest), np.log(wanted.largest)
    return float(np.exp(random.uniform(low, high)))


def _structure(
    shape: tuple[int, ...],
    centre: tuple[int, int],
    diameter: float,
    random: np.random.Generator,
) -> tuple[tuple[slice, slice], NDArray[np.float64], NDArray[np.float64]]:
    """Draw an ellipse.

    Args:
        shape: Of the image, (H, W).
        centre: The pixel that its centre lies in.
        diameter: Geometric mean of its axes, in pixels.
        random: Gives its shape and direction.

    Returns:
        The part of the image that holds it and its ring; there, how much of each pixel is inside,
        from 0 to 1, and which pixels are the ring, 0 or 1.
    """
    ratio, angle = random.uniform(_FLATTEST, _ROUNDEST), random.uniform(0, np.pi)
    shift = random.uniform(-0.5, 0.5, 2)
    reach = math.ceil(diameter / 2 / _FLATTEST**0.5 + _APART + _RING) + 1
    first = [max(0, middle - reach) for middle in centre]
    last = [min(size, middle + reach + 1) for middle, size in zip(centre, shape, strict=True)]
    box = slice(first[0], last[0]), slice(first[1], last[1])
    rows = np.arange(first[0], last[0])[:, None] - centre[0] - shift[0]
    columns = np.arange(first[1], last[1])[None, :] - centre[1] - shift[1]
    along = (np.cos(angle) * rows + np.sin(angle) * columns) * ratio**0.5
    across = (np.cos(angle) * columns - np.sin(angle) * rows) / ratio**0.5
    # About the distance from its edge in pixels, negative inside.
    outside = np.hypot(along, across) - diameter / 2
    inside = np.clip(0.5 - outside / _EDGE, 0.0, 1.0)
    ring = (outside >= _APART) & (outside < _APART + _RING)
    return box, inside, ring.astype(np.float64)
