"""Quality of a backend's own outputs, over the test volumes and slice by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdmri_bench.measuring.fastmri import measures
from kdmri_bench.results.statistics import Values
from kdmri_edge.data.case import Case
from kdmri_edge.metrics import METRICS

__all__ = [
    "SHOWN",
    "SliceScore",
    "View",
    "closed_percent",
    "cut",
    "difference",
    "gap_closed",
    "slice_psnr",
    "summary",
    "volume_rows",
    "worst_slices",
]

Volumes = Sequence[NDArray[Any]]


def volume_rows(cases: Sequence[Case], outputs: Volumes) -> list[dict[str, Any]]:
    """Return {name, psnr, ssim, nmse, hfn} of each volume.

    Raises:
        DataError: an output has another shape than its target, or holds NaN or infinities.
    """
    return [
        {"name": case.name, **measures(case, output)}
        for case, output in zip(cases, outputs, strict=True)
    ]


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return the mean of each measure over volumes and its standard deviation (n - 1)."""
    result: dict[str, dict[str, float | None]] = {}
    for name in METRICS:
        values = np.asarray([row[name] for row in rows], dtype=np.float64)
        spread = float(values.std(ddof=1)) if len(values) > 1 else None
        result[name] = {"mean": float(values.mean()), "std": spread}
    return result


def difference(
    cases: Sequence[Case],
    outputs: Volumes,
    reference: Volumes,
    rows: Sequence[Mapping[str, Any]],
    reference_rows: Sequence[Mapping[str, Any]],
) -> dict[str, float | None]:
    """Compare a backend's outputs with the reference's (PyTorch), over all volumes.

    Returns:
        max_range_normalised: largest |output - reference| over the target volume's maximum;
        psnr_db, ssim: mean change of the measure.
    """
    largest = max(
        float(np.abs(output - other).max() / np.abs(case.target).max())
        for case, output, other in zip(cases, outputs, reference, strict=True)
    )
    change = {
        name: float(np.mean([a[name] - b[name] for a, b in zip(rows, reference_rows, strict=True)]))
        for name in ("psnr", "ssim")
    }
    return {
        "max_range_normalised": largest,
        "psnr_db": change["psnr"],
        "ssim": change["ssim"],
    }


def closed_percent(student: ArrayLike, plain: ArrayLike, teacher: ArrayLike) -> NDArray[np.float64]:
    """Return 100 (student - plain) / (teacher - plain), where a higher figure is the better one.

    Above 100 the student has overtaken the teacher; NaN where the plain student is not worse than
    the teacher, for then there is no gap to close.
    """
    student, plain, teacher = (np.asarray(v, np.float64) for v in (student, plain, teacher))
    gap = teacher - plain
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap > 0, 100 * (student - plain) / gap, np.nan)


def gap_closed(
    teacher: Mapping[str, Mapping[str, float | None]],
    plain: Mapping[str, Mapping[str, float | None]],
    student: Mapping[str, Mapping[str, float | None]],
) -> dict[str, float | None]:
    """Percent of the way from the plain student to the teacher that the distilled one goes.

    Takes three summaries; None where `closed_percent` has no answer.
    """
    result: dict[str, float | None] = {}
    for name, metric in METRICS.items():
        if any(name not in summed for summed in (teacher, plain, student)):
            continue  # the report was made without the package that measures it
        t, p, s = (float(q[name]["mean"] or 0.0) for q in (teacher, plain, student))
        sign = 1 if metric.higher_is_better else -1
        closed = float(closed_percent(sign * s, sign * p, sign * t))
        result[name] = closed if np.isfinite(closed) else None
    return result


SHOWN: Final = 4
"""How many of the worst slices a report names and shows."""

_BLANK: Final = 0.05
"""Below this share of the largest slice energy a slice shows no anatomy and is left out."""


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
