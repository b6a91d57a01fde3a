"""Ctrl-C that waits until what is being done can be kept."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["StopRequest", "stop_on_interrupt"]


class StopRequest:
    """Whether the user has asked to stop.

    Attributes:
        asked: True from the first Ctrl-C on.
    """

    def __init__(self) -> None:
        self.asked = False


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """Note the first Ctrl-C instead of raising it; the second one ends at once, as usual.

    Whoever uses it looks at the request and raises `KeyboardInterrupt` when nothing is lost by it;
    where that did not come to pass, it is raised at the end. Where interruptions are ignored (a
    shell's background job) or are not this thread's, nothing is changed.
    """
    request = StopRequest()
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        request.asked = True
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, usual)
    if request.asked:
        raise KeyboardInterrupt
