"""Giving freed memory back to the system between scans."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

__all__ = ["give_memory_back"]


@cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def give_memory_back() -> None:
    """Ask glibc to release what the threads of a scan have freed; other C libraries do so alone.

    Each thread has its own arena, whose free pages glibc otherwise keeps after the thread's end.
    """
    if (libc := _libc()) is not None:
        libc.malloc_trim(0)
