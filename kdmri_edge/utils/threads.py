"""Threads of what computes beside a network's runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

__all__ = ["SLICES_AT_ONCE", "bound_threads", "mapped", "slices_at_once"]

SLICES_AT_ONCE: Final = 2
"""Slices that are worked on at a time, where there are as many threads.

What surrounds a network gains little from a second thread within one slice, and the network itself
not twice as much: two slices beside each other keep two CPUs busy.
"""

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


def bound_threads(threads: int | None) -> None:
    """Bound the threads of NumPy's linear algebra, for as long as the process lives.

    A runtime bounds its own alone. Beside it coils are whitened, compressed and mapped by BLAS,
    which would take every CPU of the machine, and be in the way of its neighbours and of itself.

    Args:
        threads: At most so many; None leaves the library's choice.
    """
    if threads is None:
        return
    import numpy  # noqa: F401 - what is not loaded yet cannot be bound
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=threads, user_api="blas")


def slices_at_once(threads: int | None) -> int:
    """Return how many slices are worked on at a time.

    Args:
        threads: CPU threads; None for as many as there are CPUs.
    """
    return min(SLICES_AT_ONCE, threads or os.cpu_count() or 1)


def mapped(make: Callable[[_Given], _Made], given: Iterable[_Given], threads: int) -> list[_Made]:
    """Return what a function makes of each thing, several at a time.

    Meanwhile linear algebra has one thread in each, or they would be in each other's way.

    Args:
        make: NumPy lets other threads run while it computes.
        given: What it is called with.
        threads: Calls at a time.
    """
    things = list(given)
    if min(threads, len(things)) < 2:
        return [make(one) for one in things]
    from threadpoolctl import threadpool_limits

    with (
        threadpool_limits(limits=1, user_api="blas"),
        ThreadPoolExecutor(min(threads, len(things))) as pool,
    ):
        return list(pool.map(make, things))
