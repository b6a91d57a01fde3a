"""Quality of a backend's own outputs, summed up over the test volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdmri_edge.data.cases import Case
from kdmri_edge.metrics import METRICS, volume_metrics

__all__ = ["closed_percent", "difference", "gap_closed", "summary", "volume_rows"]

Volumes = Sequence[NDArray[Any]]


def volume_rows(cases: Sequence[Case], outputs: Volumes) -> list[dict[str, Any]]:
    """Return {name, psnr, ssim, nmse, hfn} of each volume.

    Raises:
        DataError: an output has another shape than its target, or holds NaN or infinities.
    """
    return [
        {"name": case.name, **volume_metrics(case.target, output)}
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
    for name, higher_is_better in METRICS.items():
        t, p, s = (float(q[name]["mean"] or 0.0) for q in (teacher, plain, student))
        sign = 1 if higher_is_better else -1
        closed = float(closed_percent(sign * s, sign * p, sign * t))
        result[name] = closed if np.isfinite(closed) else None
    return result
