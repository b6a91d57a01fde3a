"""Waiting for what another thread or process does, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(what: Callable[[], object], seconds: float = 60) -> None:
    """Return once `what()` is true.

    Raises:
        AssertionError: It was not within `seconds`.
    """
    patience = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < patience, "waited in vain"
        time.sleep(0.01)
