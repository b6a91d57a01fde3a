"""Ctrl-C that waits.

Signals are raised in processes of their own: one that goes astray would end the process that runs
the tests.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading

from kdmri_edge.utils.interrupts import stop_on_interrupt

BEGINNING = """
import signal
from kdmri_edge.utils.interrupts import stop_on_interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)  # where a shell has it ignored, too
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that may be interrupted."""
    return subprocess.run(
        [sys.executable, "-c", BEGINNING + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_first_one_is_noted_answered_and_raised_at_the_end() -> None:
    done = run("""
        try:
            with stop_on_interrupt("Stopping soon.") as stop:
                print(stop.asked)
                signal.raise_signal(signal.SIGINT)
                print(stop.asked)
        except KeyboardInterrupt:
            print("raised")
    """)
    assert done.stdout.split() == ["False", "True", "raised"]
    assert done.stderr == "Stopping soon.\n"


def test_the_second_one_ends_at_once() -> None:
    done = run("""
        try:
            with stop_on_interrupt():
                for number in range(3):
                    print(number)
                    signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            print("raised")
    """)
    assert done.stdout.split() == ["0", "1", "raised"], done.stderr


def test_what_was_there_before_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt():
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_ignored_interruptions_stay_ignored() -> None:
    done = run("""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with stop_on_interrupt() as stop:
            signal.raise_signal(signal.SIGINT)
            print(stop.asked)
        print("went on")
    """)
    assert done.stdout.split() == ["False", "went", "on"], done.stderr


def test_other_threads_leave_signals_alone() -> None:
    seen = []

    def work() -> None:
        with stop_on_interrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
