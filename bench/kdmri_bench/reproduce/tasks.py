"""The kinds of data of the comparison, each with its networks and splits (torch-free)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kdmri_edge.data.splits import BRAIN_FOLDS

__all__ = ["TASKS", "Task"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A kind of data with its networks.

    Attributes:
        name: What the command calls it.
        matrix: Side of the square image matrix.
        teacher: Preset of the heavy network.
        student: Preset of the compact network.
        split: The fixed split.
        folds: Splits that together test every subject once; empty where there are none.
        folds_at: Acceleration at which the folds are trained.
        paper_masks: Prefix of the paper's masks in the mask file; None draws masks of their family.
        block: Side of the central block of k-space that is kept (super-resolution); None for masks.
        suffix: Of the recipes kd-mri and edge where these networks are tuned otherwise.
        contrasts: Contrasts that are also reported alone.
    """

    name: str
    matrix: int
    teacher: str
    student: str
    split: str
    folds: tuple[str, ...] = ()
    folds_at: int = 4
    paper_masks: str | None = None
    block: int | None = None
    suffix: str = ""
    contrasts: tuple[str, ...] = ()


TASKS: Final[dict[str, Task]] = {
    "brain": Task(
        name="brain",
        matrix=240,
        teacher="dccnn-d5c5",
        student="dccnn-d3c5",
        split="brain",
        folds=tuple(f"brain-fold-{number}" for number in range(1, len(BRAIN_FOLDS) + 1)),
        paper_masks="mrbrain",
        contrasts=("T1w", "T2w", "FLAIR"),
    ),
    "cardiac": Task(
        name="cardiac", matrix=256, teacher="dccnn-d5c5", student="dccnn-d3c5", split="cardiac"
    ),
    "sr": Task(
        name="sr",
        matrix=256,
        teacher="vdsr-11",
        student="vdsr-7",
        split="brain",
        block=64,
        suffix="-sr",
        contrasts=("T1w", "T2w", "FLAIR"),
    ),
}
