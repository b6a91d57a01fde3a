"""What `kdmri-edge select` says of its choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from kdmri_bench.planning.variants import REFERENCE
from kdmri_bench.results.figures import loss_text, variant_name
from kdmri_bench.results.repeatability import expected
from kdmri_bench.results.schema import DEFAULT, Report, Row, Status
from kdmri_bench.results.select import Choice, Limits

__all__ = ["as_dict", "lines"]


def as_dict(choice: Choice, limits: Limits) -> dict[str, Any]:
    """Return JSON values."""
    return {
        "limits": asdict(limits),
        "selected": choice.row.key if choice.row else None,
        "nearest": choice.nearest.key if choice.nearest else None,
        "p50_ms": _times(choice.row) if choice.row else None,
        "misses": {key: list(found) for key, found in choice.misses.items()},
    }


def lines(report: Report, choice: Choice, limits: Limits) -> list[str]:
    """Return the choice in words, or what each variant misses."""
    asked = "; ".join(limits.describe()) or "no limit"
    row = choice.row
    if row is not None:
        times = [f"p50 {_spread(row.latency or {})} network only"]
        if row.end_to_end:
            times.insert(0, f"p50 {_spread(row.end_to_end)} from k-space to image")
        parts = [
            *times,
            f"{(row.memory or {}).get('peak', 0) / 2**20:.0f} MiB",
            f"{row.quality['psnr']['mean']:.2f} dB",
        ]
        if row.to_teacher:
            parts.append(f"{loss_text(row)} dB lost to the teacher")
        return [
            row.key,
            f"{variant_name(row)}: {', '.join(parts)}.",
            *_anew(report, row),
            f"Limits: {asked}.",
        ]
    missing = [f"No variant keeps all limits: {asked}."]
    if choice.nearest is not None:
        missed = "; ".join(choice.misses[choice.nearest.key])
        name = variant_name(choice.nearest)
        missing.append(f"Nearest: {choice.nearest.key} ({name}) misses: {missed}.")
        missing.append("Each of them misses:")
    for key, found in choice.misses.items():
        other = report.row(key)
        if other is not None and other.status is Status.MEASURED:
            missing.append(f"  {key}: {'; '.join(found)}")
    unmeasured = [r for r in report.rows if r.status is not Status.MEASURED]
    if unmeasured:
        missing.append(f"  not measured: {', '.join(row.key for row in unmeasured)}")
    return missing


def _anew(report: Report, row: Row) -> list[str]:
    """Say how a row that `run` can run is timed independently, and what to hold it against."""
    if row.variant != DEFAULT or row.runtime == REFERENCE or not row.latency:
        return []
    precision = f" --precision {row.precision}" if row.precision == "bf16" else ""
    command = (
        f"kdmri-edge run BUNDLE VOLUME -o FILE --threads {report.settings['threads']}{precision}"
        " --json"
    )
    scattered = "p50_prediction_ms" in row.latency
    reach = "should fall into" if scattered else "is to be held against"
    sure = " (95 %)" if scattered else ", which one round alone gave"
    return [
        f"To time it anew on this machine: `{command}`; network_ms.p50 {reach} the interval of"
        f" network only{sure}."
    ]


def _spread(timing: Mapping[str, Any]) -> str:
    value, low, high = expected(timing)
    return f"{value:.2f} ms ({low:.2f} to {high:.2f})"


def _times(row: Row) -> dict[str, Any]:
    kinds = {"network": row.latency, "end_to_end": row.end_to_end}
    return {
        name: dict(zip(("value", "low", "high"), expected(timing), strict=True))
        for name, timing in kinds.items()
        if timing
    }
