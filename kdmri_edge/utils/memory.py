"""The machine's memory, and how glibc handles what is freed of it.

Freed memory is kept between training steps, and given back between scans.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

__all__ = ["available_memory", "give_memory_back", "keep_freed_memory", "physical_memory"]

# <malloc.h> of glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_KEPT = 2**30


def physical_memory() -> int:
    """Return the bytes of memory that this machine has; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 0


_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory(meminfo: Path = _MEMINFO, group: Path = _CGROUP) -> int | None:
    """Return the bytes that processes may still take without swapping; None where unknown.

    A container's own limit (control groups, version 2) counts, too.
    """
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        found = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):  # not Linux
        return None
    free = found * 1024
    try:
        limit, used = (
            int((group / f"memory.{name}").read_text("ascii")) for name in ("max", "current")
        )
        stat = dict(
            line.split() for line in (group / "memory.stat").read_text("ascii").splitlines()
        )
        cached = int(stat.get("inactive_file", 0))  # which the kernel gives up when asked
    except (OSError, ValueError):  # no such file, or "max"
        return free
    return min(free, max(limit - used + cached, 0))


def keep_freed_memory() -> bool:
    """Ask glibc not to give large blocks back to the system between the steps of a training.

    Activations of some MiB are freed and wanted again thousands of times; each time the system
    would hand out zeroed pages one by one. On a CPU this took a sixth of a distillation step.
    The process keeps up to 1 GiB more than it uses. Other C libraries are left alone.

    Returns:
        Whether both settings were taken.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    taken = [
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD),
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT),
    ]
    return taken == [1, 1]


@cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def give_memory_back() -> None:
    """Ask glibc to release what the threads of a scan have freed; other C libraries do so alone.

    Each thread has its own arena, whose free pages glibc otherwise keeps after the thread's end.
    """
    if (libc := _libc()) is not None:
        libc.malloc_trim(0)
