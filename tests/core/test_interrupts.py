"""Ctrl-C that waits."""

from __future__ import annotations

import signal
import threading

import pytest

from kdmri_edge.utils.interrupts import stop_on_interrupt


def test_the_first_one_is_noted_answered_and_raised_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = []

    def work() -> None:
        with stop_on_interrupt("Stopping soon.") as stop:
            seen.append(stop.asked)
            signal.raise_signal(signal.SIGINT)
            seen.append(stop.asked)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == [False, True]
    assert "Stopping soon." in capsys.readouterr().err


def test_the_second_one_ends_at_once() -> None:
    seen = []

    def work() -> None:
        with stop_on_interrupt():
            for number in range(3):
                seen.append(number)
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == [0, 1]


def test_what_was_there_before_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_ignored_interruptions_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_interrupt() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_signals_alone() -> None:
    seen = []

    def run() -> None:
        with stop_on_interrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
