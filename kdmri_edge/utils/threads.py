"""Threads of what computes beside a network's runtime."""

from __future__ import annotations

__all__ = ["bound_threads"]


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
