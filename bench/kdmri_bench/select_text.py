"""What `kdmri-edge select` says of its choice."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kdmri_bench.cells import variant_name
from kdmri_bench.columns import loss_text
from kdmri_bench.schema import Report, Status
from kdmri_bench.select import Choice, Limits

__all__ = ["as_dict", "lines"]


def as_dict(choice: Choice, limits: Limits) -> dict[str, Any]:
    """Return JSON values."""
    return {
        "limits": asdict(limits),
        "selected": choice.row.key if choice.row else None,
        "misses": {key: list(found) for key, found in choice.misses.items()},
    }


def lines(report: Report, choice: Choice, limits: Limits) -> list[str]:
    """Return the choice in words, or what each variant misses."""
    asked = "; ".join(limits.describe()) or "no limit"
    row = choice.row
    if row is not None:
        whole = row.end_to_end or row.latency or {}
        low, high = whole.get("p50_interval_ms") or (whole["p50_ms"], whole["p50_ms"])
        kind = "from k-space to image" if row.end_to_end else "network only"
        parts = [
            f"p50 {whole['p50_ms']:.2f} ms ({low:.2f} to {high:.2f}) {kind}",
            f"{(row.memory or {}).get('peak', 0) / 2**20:.0f} MiB",
            f"{row.quality['psnr']['mean']:.2f} dB",
        ]
        if row.to_teacher:
            parts.append(f"{loss_text(row)} dB lost to the teacher")
        return [row.key, f"{variant_name(row)}: {', '.join(parts)}.", f"Limits: {asked}."]
    missing = [f"No variant keeps all limits: {asked}."]
    for key, found in choice.misses.items():
        other = report.row(key)
        if other is not None and other.status is Status.MEASURED:
            missing.append(f"  {key}: {'; '.join(found)}")
    unmeasured = [r for r in report.rows if r.status is not Status.MEASURED]
    if unmeasured:
        missing.append(f"  not measured: {', '.join(row.key for row in unmeasured)}")
    return missing
