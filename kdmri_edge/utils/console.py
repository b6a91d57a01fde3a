"""What a person sees: messages and progress on standard error, results on standard output.

All of it goes through the functions of this module: names of volumes, masks and files come from
strangers, and a terminal obeys the control characters in them (`printable`).

Where a machine reads the result (`--json`), nothing else may reach standard output, whatever a
network of the user's own or a runtime prints: see `only_results`.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.text import Text

__all__ = [
    "Phase",
    "PhaseTimes",
    "duration",
    "get_console",
    "only_results",
    "phase_times",
    "print_result",
    "printable",
    "progress",
    "say",
    "table_console",
    "tell",
]

# Off a terminal a phase is named when it has lasted so many seconds, and then reported as often.
_NAMED_AFTER: Final = 2.0
_EVERY: Final = 30.0
# C0 and C1 but for tab and newline, and delete.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    r"""Return a text with its control characters, but tab and newline, spelt out as "\u001b".

    A terminal obeys them: a name could otherwise take back a line and write "Passed." in its place.
    They are spelt as JSON spells them, so that JSON means what it meant.
    """
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


@cache
def get_console() -> Console:
    """Return the console on standard error (made at first use: rich takes a while to import).

    Of the processes that a distributed launcher starts on a host, the first one speaks.
    """
    quiet = os.environ.get("LOCAL_RANK", "0") != "0"
    return table_console(stderr=True, highlight=False, quiet=quiet)


def table_console(**options: Any) -> Console:
    """Return a console of rich's that prints texts, in cells of tables too, as `printable` has it.

    Args:
        **options: Of `rich.console.Console`.
    """
    from rich.console import Console

    class PrintableConsole(Console):
        """Texts come by `render_str`; codes for colours are added after it."""

        def render_str(self, text: str, **more: Any) -> Text:
            return super().render_str(printable(text), **more)

    return PrintableConsole(**options)


def say(message: str) -> None:
    """Print one plain line on standard error."""
    get_console().print(printable(message), markup=False, soft_wrap=True)


def tell(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a text for a person, as `click.echo` does.

    Args:
        text: What is printed.
        err: On standard error.
        nl: Ends the line.
    """
    click.echo(printable(text), err=err, nl=nl)


_results: ContextVar[TextIO | None] = ContextVar("results", default=None)


@contextlib.contextmanager
def only_results() -> Iterator[None]:
    """Keep standard output for `print_result`: all else that is printed goes to standard error.

    That holds for code of users and for libraries, those that print by themselves and not through
    Python among them, and for processes that are started meanwhile.
    """
    own = sys.stdout
    with contextlib.ExitStack() as stack:
        try:
            own.flush()
            is_process = own.fileno() == 1
        except (OSError, ValueError):  # a stream of a test's or a notebook's, without a file
            is_process = False
        if is_process:
            own = stack.enter_context(_moved_aside(own))
        else:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        token = _results.set(own)
        stack.callback(_results.reset, token)
        yield


@contextlib.contextmanager
def _moved_aside(stream: TextIO) -> Iterator[TextIO]:
    """Let file 1 be standard error; yield what it was."""
    with contextlib.ExitStack() as stack:
        try:
            os.fstat(2)
            other = 2
        except OSError:  # standard error is closed; what is opened now may take its number
            other = stack.enter_context(open(os.devnull, "wb")).fileno()
        kept = os.dup(1)
        stack.callback(os.close, kept)
        stack.callback(os.dup2, kept, 1)
        os.dup2(other, 1)
        stack.callback(_flush, stream)
        yield stack.enter_context(
            open(kept, "w", encoding=stream.encoding, errors=stream.errors, closefd=False)
        )


def _flush(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        stream.flush()


def print_result(text: str) -> None:
    """Print a result on standard output, also within `only_results`."""
    print(printable(text), file=_results.get() or sys.stdout, flush=True)


def duration(seconds: float) -> str:
    """Return a time in words, as exact as one reads it: "43 s", "12 min", "3 h 20 min"."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


class PhaseTimes:
    """How long phases took; those of one title are added up.

    Attributes:
        seconds: By title, in the order in which the phases began. What a phase within another one
            took counts for the inner one alone.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def lines(self) -> list[str]:
        """Return a table of the phases of a second or more, and of what is left to none of them."""
        whole = time.perf_counter() - self._began
        rows = [(title, value) for title, value in self.seconds.items() if value >= 1]
        rest = whole - sum(value for _, value in rows)
        if rest >= 1:
            rows.append(("everything else", rest))
        width = max((len(title) for title, _ in rows), default=0)
        return [f"  {title:<{width}}  {duration(value):>11}" for title, value in rows]

    @property
    def whole(self) -> float:
        """Seconds since the times began to be taken."""
        return time.perf_counter() - self._began


_times: ContextVar[PhaseTimes | None] = ContextVar("times", default=None)
_current: ContextVar[Phase | None] = ContextVar("current", default=None)


@contextlib.contextmanager
def phase_times() -> Iterator[PhaseTimes]:
    """Take the times of all phases inside that `progress` shows."""
    times = PhaseTimes()
    token = _times.set(times)
    try:
        yield times
    finally:
        _times.reset(token)


class Phase:
    """Something that takes a while; call it to say that n more parts of it are done.

    Args:
        title: What it is.
        total: Its parts; None where they are not known beforehand.
        done: Parts that were done earlier, such as before a resumption.

    Attributes:
        inner: The phase within it that is under way; None where there is none.
        inner_seconds: What the phases within it have taken.
    """

    def __init__(self, title: str, total: int | None, done: int = 0) -> None:
        self.title, self.total, self.done = printable(title), total, done
        self.note = ""
        self.inner: Phase | None = None
        self.inner_seconds = 0.0
        self._first = done
        self._began = time.perf_counter()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, n: int = 1, *, note: str | None = None) -> None:
        """Move on by n parts.

        Args:
            n: Parts.
            note: What to show beside the count, such as a loss; None leaves it.
        """
        self.done += n
        self.note = self.note if note is None else printable(note)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, note=self.note)

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._began

    def line(self) -> str:
        """Return how far it is, in one line."""
        counted = f"{self.done} of {self.total}" if self.total is not None else ""
        if self.total is None and self.done:
            counted = f"{self.done} so far"
        parts = [part for part in (counted, self.note) if part]
        fresh = self.done - self._first
        if self.total is not None and fresh and self.done < self.total:
            left = self.seconds / fresh * (self.total - self.done)
            parts.append(f"about {duration(left)} left")
        return f"{self.title}: {', '.join(parts)}." if parts else f"{self.title} ..."

    def show(self, bar: Progress) -> None:
        """Draw it as a row of a display, until `hide`."""
        self._bar = bar
        self._task = bar.add_task(self.title, total=self.total, completed=self.done, note=self.note)

    def hide(self) -> None:
        """Take its row away."""
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)

    @property
    def bar(self) -> Progress | None:
        """The display that it is drawn in; None off a terminal."""
        return self._bar


def _new_bar() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    return Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeLeft(),
        console=get_console(),
        transient=True,
    )


@contextlib.contextmanager
def progress(title: str, total: int | None = None, *, done: int = 0) -> Iterator[Phase]:
    """Show how far a phase is, with the time left; yields what to call when a part is done.

    On a terminal that is a bar; a phase within another one is drawn below it. Elsewhere it is a
    line after two seconds and one every thirty seconds, so that logs stay quiet and no long phase
    is silent.

    Args:
        title: What is being done.
        total: Its parts; None where they are not known.
        done: Parts that were done earlier.
    """
    phase, outer = Phase(title, total, done), _current.get()
    token = _current.set(phase)
    if outer is not None:
        outer.inner = phase
    try:
        if get_console().quiet:
            yield phase
        elif not get_console().is_terminal:
            with _lines(phase):
                yield phase
        elif outer is not None and outer.bar is not None:
            phase.show(outer.bar)
            try:
                yield phase
            finally:
                phase.hide()
        else:
            with _new_bar() as bar:
                phase.show(bar)
                yield phase
    finally:
        _current.reset(token)
        if outer is not None:
            outer.inner = None
            outer.inner_seconds += phase.seconds
        times = _times.get()
        if times is not None:
            own = phase.seconds - phase.inner_seconds
            times.seconds[title] = times.seconds.get(title, 0.0) + own


@contextlib.contextmanager
def _lines(phase: Phase) -> Iterator[None]:
    """Print how far a phase is, from a thread: a part of it may itself take minutes."""
    over = threading.Event()

    def report() -> None:
        pause = _NAMED_AFTER
        while not over.wait(pause):
            if phase.inner is None:
                say(phase.line())
            pause = _EVERY

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
