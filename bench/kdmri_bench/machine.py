"""What a reader has to know of the machine beside its name: clock, and what it does not show."""

from __future__ import annotations

from pathlib import Path

from kdmri_bench.energy import rapl_reason
from kdmri_bench.nvml import open_nvml

__all__ = ["absent", "governor"]

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def governor(path: Path = _GOVERNOR) -> str | None:
    """Return the governor of the CPU's frequency, None where the kernel does not tell."""
    try:
        return path.read_text(encoding="ascii").strip() or None
    except OSError:
        return None


def absent() -> list[str]:
    """Say what cannot be measured here, and why: one sentence each."""
    reasons = []
    rapl, (_, nvml) = rapl_reason(), open_nvml()
    if rapl is not None:
        reasons.append(f"Energy of the CPU: {rapl}.")
    if nvml is not None:
        reasons.append(f"Energy and memory of a GPU: {nvml}.")
    if governor() is None:
        reasons.append("Frequency governor: the kernel shows none (virtual machines have none).")
    return reasons
