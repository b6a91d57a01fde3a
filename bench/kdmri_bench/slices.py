"""Single slices: where a variant loses most, which a mean over volumes would hide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.cases import Case

__all__ = ["SHOWN", "SliceScore", "View", "cut", "slice_psnr", "worst_slices"]

SHOWN: Final = 4
"""How many of the worst slices a report names and shows."""

_BLANK: Final = 0.05
"""Below this share of the largest slice energy a slice shows no anatomy and is left out."""

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceScore:
    """PSNR of one slice, with the volume's maximum as range.

    Attributes:
        case: index of the volume.
        slice: index within it.
        psnr: of the variant, dB.
        reference: of the teacher, dB; None without one.
    """

    case: int
    slice: int
    psnr: float
    reference: float | None

    @property
    def loss(self) -> float:
        """What the slice is ranked by: the loss to the teacher, or without one -PSNR."""
        return -self.psnr if self.reference is None else self.reference - self.psnr

    def to_dict(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Return what a report says about it."""
        return {
            "volume": cases[self.case].name,
            "slice": self.slice,
            "psnr_db": self.psnr,
            "teacher_psnr_db": self.reference,
            "loss_db": None if self.reference is None else self.loss,
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class View:
    """One slice of a variant to be looked at.

    Attributes:
        score: which slice.
        image: [H, W] in the volume's unit.
    """

    score: SliceScore
    image: NDArray[Any]


def slice_psnr(target: NDArray[Any], output: NDArray[Any]) -> Values:
    """Return the PSNR of each slice in dB, range: maximum of the volume; NaN for blank slices."""
    truth, image = np.abs(target), np.abs(output) if np.iscomplexobj(output) else output
    error = np.mean((np.asarray(truth, np.float64) - image) ** 2, axis=(1, 2))
    energy = np.mean(np.asarray(truth, np.float64) ** 2, axis=(1, 2))
    psnr = 10 * np.log10(float(truth.max()) ** 2 / np.maximum(error, 1e-30 * truth.max() ** 2))
    return np.where(energy > _BLANK * energy.max(), psnr, np.nan)


def worst_slices(
    found: Sequence[Values], reference: Sequence[Values] | None, count: int = SHOWN
) -> list[SliceScore]:
    """Rank the slices of all volumes.

    Args:
        found: PSNR of each volume's slices.
        reference: the same of the teacher, None where there is none.
        count: how many are wanted.

    Returns:
        The worst first.
    """
    scores = [
        SliceScore(
            case=case,
            slice=index,
            psnr=float(value),
            reference=None if reference is None else float(reference[case][index]),
        )
        for case, values in enumerate(found)
        for index, value in enumerate(values)
        if np.isfinite(value)
    ]
    return sorted(scores, key=lambda score: -score.loss)[:count]


def cut(outputs: Sequence[NDArray[Any]], scores: Sequence[SliceScore]) -> list[View]:
    """Copy slices out of volumes that may be memory-mapped."""
    return [View(score=score, image=np.array(outputs[score.case][score.slice])) for score in scores]
