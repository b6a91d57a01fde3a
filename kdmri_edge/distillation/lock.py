"""One process at a time on a run folder."""

from __future__ import annotations

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from kdmri_edge.errors import RunError
from kdmri_edge.utils.console import say
from kdmri_edge.utils.files import writing

__all__ = ["lock_run"]


def lock_run(folder: Path) -> BaseFileLock:
    """Take the lock of a run, which the system takes back when the process ends, however it ends.

    Two processes that resumed one run would mix their states and their logs.

    Args:
        folder: The run's folder for states; the lock lies there and goes with it.

    Raises:
        RunError: Another process holds it.
        OutputError: The folder cannot be written to.
    """
    lock = FileLock(folder / "lock")
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"{folder.parent} is being trained by another process.",
            "Wait until that one ends, or choose another --out.",
        ) from None
    except NotImplementedError:
        say(f"Warning: {folder} lies on a file system without locks; start one training only.")
    return lock
