"""Making exports in a process of its own: exporters and parity runs are native code and can crash.

One process makes one export after the other, since what it has to import takes seconds. When it
dies, the export that it died of says so, and a new process makes the next one.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Final, Self

from kdmri_bench.measuring.isolation import close_pipe, ended_by, environment
from kdmri_edge.errors import BackendError, KdmriError, MissingExtraError

__all__ = ["Exporter", "Make", "Refused", "attempt"]

Work = Callable[[], Path]
"""Makes one bundle; a `functools.partial` of a module's function, so that it can be pickled."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why there is no export.

    Attributes:
        reason: in one line.
        absent: this machine lacks a package, a device or a precision; nothing broke.
    """

    reason: str
    absent: bool = False


Make = Callable[[Work], Path | Refused]


def attempt(work: Work) -> Path | Refused:
    """Make an export in this process; whatever an exporter raises becomes its reason."""
    try:
        return work()
    except (BackendError, MissingExtraError) as error:
        return Refused(str(error), absent=True)
    except Exception as error:  # it costs this row, no other
        return Refused(f"The export failed: {_what(error)}")


def _what(error: BaseException) -> str:
    """Say in one plain line what went wrong, at the root of a chain of exceptions."""
    if isinstance(error, KdmriError):
        return str(error)
    while error.__cause__ is not None:
        error = error.__cause__
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or "no message"
    return f"{type(error).__name__}: {plain.splitlines()[0][:300]}"


class Exporter:
    """Makes exports in another process; a context manager, at whose end that process is gone.

    Args:
        threads: CPU threads of that process.
        timeout_s: an export that takes longer is ended, and says so.
    """

    def __init__(self, *, threads: int, timeout_s: float) -> None:
        """Start nothing yet."""
        self._threads = threads
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Final = tempfile.TemporaryDirectory(prefix="kdmri-export-")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._end()
        self._folder.cleanup()

    def __call__(self, work: Work) -> Path | Refused:
        """Make one export; see `attempt`. A process that dies or hangs is a reason too."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        late = Timer(self._timeout_s, process.kill)
        late.start()
        try:
            pickle.dump(work, process.stdin)
            process.stdin.flush()
            answer: Path | Refused = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            hung = not late.is_alive()
            status = self._end()
            reason = (
                f"no bundle after {self._timeout_s:g} s; the process was ended."
                if hung
                else ended_by(status, self._log)
            )
            return Refused(f"The export failed: {reason}")
        finally:
            late.cancel()
        return answer

    @property
    def _log(self) -> Path:
        return Path(self._folder.name) / "stderr.txt"

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(self._threads),
            )
        return self._process

    def _end(self) -> int:
        """Return the status with which the process ended by itself, or was ended now."""
        process, self._process = self._process, None
        if process is None:
            return 0
        for pipe in (process.stdin, process.stdout):
            close_pipe(pipe)
        try:  # one that crashed is about to be gone: its own status tells more than ours
            return process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def main() -> None:
    """Make what is asked for on standard input until that ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries that print would garble the answers
    while True:
        try:
            work = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(attempt(work), answers)
        answers.flush()


if __name__ == "__main__":
    from kdmri_bench.planning.exporter import main as run  # `Refused` is pickled under its own name

    run()
