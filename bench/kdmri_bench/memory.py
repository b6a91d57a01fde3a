"""Resident memory of the current process, in bytes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Resident", "resident"]

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
    from kdmri_edge.extras import require

    info = require("psutil", extra="bench").Process().memory_info()
    now = int(info.rss)
    if hasattr(info, "peak_wset"):
        return Resident(now=now, peak=max(now, int(info.peak_wset)), source="psutil peak_wset")
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Resident(now=now, peak=max(now, peak), source="psutil rss, getrusage ru_maxrss")
