"""The machine's memory, and how glibc handles what is freed of it.

Freed memory is kept between training steps, and given back between scans.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

__all__ = ["give_memory_back", "keep_freed_memory", "physical_memory"]

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
