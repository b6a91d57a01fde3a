"""Ctrl-C that waits until what is being done can be kept."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from kdmri_edge.utils.console import say

__all__ = ["StopRequest", "stop_on_interrupt"]


class StopRequest:
    """Whether the user has asked to stop.

    Attributes:
        asked: True from the first Ctrl-C on.
    """

    def __init__(self) -> None:
        self.asked = False


@contextlib.contextmanager
def stop_on_interrupt(answer: str | None = None) -> Iterator[StopRequest]:
    """Note the first Ctrl-C instead of raising it; the second one ends at once, as usual.

    Whoever uses it looks at the request and raises `KeyboardInterrupt` when nothing is lost by it;
    where that did not come to pass, it is raised at the end. Where interruptions are ignored (a
    shell's background job) or are not this thread's, nothing is changed.

    Args:
        answer: What to say at the first Ctrl-C; None for nothing.
    """
    request = StopRequest()
    answers: list[threading.Thread] = []
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        request.asked = True
        signal.signal(signal.SIGINT, usual)
        if answer is not None:
            # Not here: what was interrupted may be in the middle of writing a line itself.
            answers.append(threading.Thread(target=say, args=(answer,), daemon=True))
            answers[-1].start()

    signal.signal(signal.SIGINT, note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, usual)
        for thread in answers:
            thread.join()
    if request.asked:
        raise KeyboardInterrupt
