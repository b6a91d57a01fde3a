"""Waiting for what another thread or process does, however busy the machine is."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable


def until(
    what: Callable[[], object],
    seconds: float = 60,
    *,
    process: subprocess.Popen[str] | None = None,
) -> None:
    """Return once `what()` is true.

    Args:
        what: Looked at again and again.
        seconds: Patience.
        process: Of which it is expected, so that waiting ends when it does.

    Raises:
        AssertionError: It was not within `seconds`, or the process ended before.
    """
    patience = time.monotonic() + seconds
    while not what():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < patience, "waited in vain"
        time.sleep(0.005)
