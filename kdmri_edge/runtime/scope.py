"""Which scans a network takes, and which it was trained for.

A graph of any matrix takes scans that its network never met in training. Their images are made, and
what is beyond the training is said beside them: on the screen, in reports and in images' metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kdmri_edge.distillation.recipe import ACCELERATIONS, Masks, Matrix, recipe_value
from kdmri_edge.errors import DataError
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.causes import Cause

__all__ = ["SMALLEST_SIDE", "FreeSizes", "TrainedFor", "trained_for"]

SMALLEST_SIDE: Final = 16
"""Side of the smallest images that a graph of any matrix takes."""

# What masks that are drawn at random come out at beside the acceleration that was asked for.
_TOLERANCE: Final = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class FreeSizes:
    """Which matrices a graph of any matrix takes.

    Attributes:
        multiple: Both sides have to be multiples of it, by the network's poolings or strides.
    """

    multiple: int = 1

    def __post_init__(self) -> None:
        """Refuse what is no number to be a multiple of.

        Raises:
            ValueError: Below 1.
        """
        if self.multiple < 1:
            raise ValueError(f"multiples of {self.multiple}")

    def check(self, height: int, width: int, name: str = "The scan") -> None:
        """Refuse what the network does not take.

        It is not padded: convolutions and normalisations would see the padding, and give another
        image.

        Raises:
            DataError: A side is too small, or no multiple.
        """
        if min(height, width) < SMALLEST_SIDE:
            raise DataError(
                f"{name} is {height} x {width}, below the smallest matrix of {SMALLEST_SIDE}.",
                "Give a larger one.",
                cause=Cause.MATRIX,
            )
        if height % self.multiple or width % self.multiple:
            raise DataError(
                f"{name} is {height} x {width}, and the network takes matrices whose sides are"
                f" multiples of {self.multiple}, since it halves its images inside.",
                "Reconstruct it with a network of convolutions alone (dccnn-d3c5), or measure at"
                " such a matrix.",
                cause=Cause.MATRIX,
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedFor:
    """What a network was trained for.

    Attributes:
        mask: Its own mask.
        accelerations: Smallest and largest of the line masks that its training drew; None where it
            saw its own mask alone.
        matrices: (H, W) of its training images.
    """

    mask: Mask
    accelerations: tuple[float, float] | None
    matrices: tuple[tuple[int, int], ...]

    def beyond(self, mask: Mask, height: int, width: int) -> tuple[str, ...]:
        """Say what of a scan lies outside the training, in sentences; nothing where all is inside.

        Args:
            mask: What was sampled.
            height: Phase-encode lines H of the scan.
            width: Its readout samples W.
        """
        found = []
        own, accelerated = self.mask, mask.nominal_acceleration
        if self.accelerations is None:
            if mask != own:
                found.append(
                    f"The network was trained with mask {own.name!r} alone"
                    f" ({own.nominal_acceleration:.2f}x), and the scan has another one"
                    f" ({accelerated:.2f}x)."
                )
        else:
            low, high = self.accelerations
            if not low * (1 - _TOLERANCE) <= accelerated <= high * (1 + _TOLERANCE):
                found.append(
                    f"The network was trained for {low:g}x to {high:g}x, and the scan is"
                    f" accelerated {accelerated:.2f}x."
                )
        heights, widths = zip(*self.matrices, strict=True)
        inside = min(heights) <= height <= max(heights) and min(widths) <= width <= max(widths)
        if not inside:
            known = ", ".join(f"{h} x {w}" for h, w in self.matrices)
            found.append(
                f"The network was trained at matrix {known}, and the scan's is {height} x {width}."
            )
        return tuple(found)


def trained_for(meta: Mapping[str, Any]) -> TrainedFor:
    """Read from a checkpoint's metadata, or a bundle's manifest, what a network was trained for."""
    recipe = (meta.get("training") or {}).get("recipe") or {}
    many = recipe_value(recipe, "batches.masks") == Masks.LINES
    many = many or float(recipe_value(recipe, "batches.other_masks", 0.0)) > 0
    side = int(meta["matrix"])
    mixed = [Matrix.read(value) for value in recipe_value(recipe, "batches.matrices", ())]
    return TrainedFor(
        mask=Mask.from_dict(meta["mask"]),
        accelerations=ACCELERATIONS if many else None,
        matrices=tuple(one.shape for one in mixed) or ((side, side),),
    )
