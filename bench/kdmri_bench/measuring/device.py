"""What the machine says of itself: memory, energy, clocks."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kdmri_edge.errors import MissingExtraError
from kdmri_edge.utils.extras import require

__all__ = [
    "POWERCAP",
    "Meter",
    "Nvml",
    "Resident",
    "absent",
    "governor",
    "load_average",
    "open_nvml",
    "rapl_reason",
    "resident",
]

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True, slots=True)
class Resident:
    """What the operating system counts for a process.

    Attributes:
        now: resident set, bytes.
        peak: the largest resident set since the process started, bytes.
        source: where the figures come from; they differ in detail between systems.
    """

    now: int
    peak: int
    source: str


def resident() -> Resident:
    """Read the resident set of this process and its peak.

    Linux: VmRSS and VmHWM of /proc/self/status. Elsewhere psutil (Windows: peak_wset), and the
    peak from getrusage (bytes on macOS, KiB on other Unix systems).

    Raises:
        MissingExtraError: not on Linux, and psutil is not installed.
    """
    if _STATUS.is_file():
        return _from_proc(_STATUS.read_text(encoding="ascii", errors="replace"))
    return _from_psutil()


def _from_proc(status: str) -> Resident:
    fields = dict(line.partition(":")[::2] for line in status.splitlines())
    kib = {name: int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM")}
    # The kernel batches its counters per thread, so the peak may trail the present value a little.
    now = kib["VmRSS"] * 1024
    return Resident(now=now, peak=max(now, kib["VmHWM"] * 1024), source="VmRSS, VmHWM")


def _from_psutil() -> Resident:
    from kdmri_edge.utils.extras import require

    info = require("psutil", extra="bench").Process().memory_info()
    now = int(info.rss)
    if hasattr(info, "peak_wset"):
        return Resident(now=now, peak=max(now, int(info.peak_wset)), source="psutil peak_wset")
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Resident(now=now, peak=max(now, peak), source="psutil rss, getrusage ru_maxrss")


class Nvml:
    """The first GPU as NVML sees it.

    Args:
        library: the module `pynvml`, initialised.

    Attributes:
        source: where the figure of `memory` comes from.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._device = library.nvmlDeviceGetHandleByIndex(0)
        self.source = "NVML, device"
        self.memory()

    def memory(self) -> int:
        """Return bytes in use: this process's own, or all of the device's where NVML hides those.

        In a container NVML numbers processes as the host does, so that one's own is not found.
        """
        own = os.getpid()
        try:
            for process in self._library.nvmlDeviceGetComputeRunningProcesses(self._device):
                if process.pid == own and process.usedGpuMemory is not None:
                    self.source = "NVML, process"
                    return int(process.usedGpuMemory)
        except self._library.NVMLError:
            pass
        return int(self._library.nvmlDeviceGetMemoryInfo(self._device).used)

    @property
    def name(self) -> str:
        """What the GPU is called."""
        name = self._library.nvmlDeviceGetName(self._device)
        return name.decode() if isinstance(name, bytes) else str(name)

    def free_share(self) -> float:
        """Return which part of the device's memory is free."""
        memory = self._library.nvmlDeviceGetMemoryInfo(self._device)
        return float(memory.free) / float(memory.total)

    def clocks(self) -> dict[str, float]:
        """Return the clock of the multiprocessors now, and at most, MHz; empty where unknown."""
        kind = self._library.NVML_CLOCK_SM
        try:
            now = self._library.nvmlDeviceGetClockInfo(self._device, kind)
            most = self._library.nvmlDeviceGetMaxClockInfo(self._device, kind)
        except self._library.NVMLError:
            return {}
        return {"sm_mhz": float(now), "largest_sm_mhz": float(most)}

    def joules(self) -> float | None:
        """Return the device's energy since its driver was loaded; None where it has no meter."""
        try:
            return float(self._library.nvmlDeviceGetTotalEnergyConsumption(self._device)) * 1e-3
        except self._library.NVMLError:
            return None


def open_nvml() -> tuple[Nvml | None, str | None]:
    """Open NVML.

    Returns:
        The GPU and None, or None and the reason.
    """
    try:
        library: Any = require("pynvml", extra="gpu")
    except MissingExtraError:
        return None, "NVML is not read: the package nvidia-ml-py is not installed"
    try:
        library.nvmlInit()
        return Nvml(library), None
    except library.NVMLError as error:
        return None, f"NVML finds no GPU ({error})"


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


_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def governor(path: Path = _GOVERNOR) -> str | None:
    """Return the governor of the CPU's frequency, None where the kernel does not tell."""
    try:
        return path.read_text(encoding="ascii").strip() or None
    except OSError:
        return None


def load_average() -> float | None:
    """Return how many processes wanted a CPU in the last minute; None where that is unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


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
