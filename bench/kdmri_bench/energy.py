"""Energy of the timed queries: RAPL for the CPU packages, NVML for the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from kdmri_bench.nvml import Nvml

__all__ = ["POWERCAP", "Meter", "rapl_reason"]

POWERCAP: Final = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class _Domain:
    """One CPU package: its counter in microjoules, and where the counter starts anew."""

    counter: Path
    wraps_at: int

    def read(self) -> int:
        return int(self.counter.read_text(encoding="ascii"))


def _domains(root: Path) -> list[_Domain]:
    """Return the readable packages; their parts (core, dram) are counted in them or not at all."""
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        if folder.name.count(":") != 1:
            continue
        try:
            limit = int((folder / "max_energy_range_uj").read_text(encoding="ascii"))
            domain = _Domain(folder / "energy_uj", limit)
            domain.read()
        except (OSError, ValueError):
            continue
        found.append(domain)
    return found


def rapl_reason(root: Path = POWERCAP) -> str | None:
    """Say why RAPL is not read, None where it is."""
    if _domains(root):
        return None
    if any(root.glob("intel-rapl:*")):
        return f"RAPL's counters under {root} may be read by root alone"
    return "this machine shows no RAPL counters (virtual machines usually hide them)"


class Meter:
    """Energy from its making to `stop`, of everything that the machine does meanwhile.

    Args:
        gpu: the GPU, for a network that runs there.
        root: where the kernel shows RAPL.
    """

    def __init__(self, gpu: Nvml | None = None, root: Path = POWERCAP) -> None:
        self._gpu, self._domains = gpu, _domains(root)
        self._gpu_before = gpu.joules() if gpu else None
        self._before = [domain.read() for domain in self._domains]

    def stop(self, queries: int) -> dict[str, Any]:
        """Return `joules`, `queries` and `source`; empty where nothing can be read."""
        joules, sources = 0.0, []
        for domain, before in zip(self._domains, self._before, strict=True):
            used = domain.read() - before
            joules += 1e-6 * (used if used >= 0 else used + domain.wraps_at)
        if self._domains:
            sources.append("RAPL, CPU packages")
        after = self._gpu.joules() if self._gpu else None
        if after is not None and self._gpu_before is not None:
            joules += after - self._gpu_before
            sources.append("NVML, GPU")
        if not sources:
            return {}
        return {"joules": joules, "queries": queries, "source": "; ".join(sources)}
