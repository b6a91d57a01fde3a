"""The one place that opens users' HDF5 files.

libhdf5 crashes or hangs on some damaged files, and follows links to any other file. So a file is
walked through first (`examine`) by a process of its own, with limits of memory and of processor
time; one process serves all files, until one kills it. What it says is remembered as long as the
file does not change. `--trust-files` leaves the process out, not the refusals.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import DataError
from kdmri_edge.utils.reading import check_claim, memory_limit, reading, trusted

if TYPE_CHECKING:  # h5py takes as long to load as the process to start, and they do so at once
    import h5py

    from kdmri_edge.data.formats.hdf5.examine import Objection

__all__ = ["Examiner", "begin", "open_hdf5", "values"]

_PROGRAM: Final = Path(__file__).with_name("examine.py")

_CPU_S: Final = 1.0
"""Of the processor, for any file; walking through hundreds of MiB takes tenths of a second."""
_BYTES_PER_S: Final = 5 * 2**20
"""More for large files, for compressed ones are taken apart."""
_WALL: Final = 20.0
"""The clock may show so many times more, on a busy machine or with files behind a network."""
_SLOW: Final = "walking through it"
_START_S: Final = 60.0
_MOST, _LEAST = 4 * 2**30, 128 * 2**20
"""Of memory for the process: HDF5 has no larger piece than the first; the second is its own."""
_SETTLED_NS: Final = 10**8
"""A file that was changed later than that may change again without its time showing it."""
_AGAIN: Final = "The file is damaged, or made to do harm: copy it again from where it was written."


@contextlib.contextmanager
def open_hdf5(path: Path, kind: str = "HDF5") -> Iterator[h5py.File]:
    """Open a file for reading; what goes wrong while it is open is one sentence, too.

    Args:
        path: The file.
        kind: What it is read as, for the message.

    Raises:
        DataError: Missing, unreadable, damaged, or not standing alone: external storage, links to
            other files, virtual datasets, broken links.
    """
    with reading(path, kind):
        begin()
        import h5py

        from kdmri_edge.data.formats.hdf5.examine import objection

        if trusted():
            said = objection(str(path), contents=False, largest=memory_limit())
        else:
            said = _EXAMINER.ask(path)
        if said is not None:
            raise DataError(f"{path} {said.what}", said.remedy)
        with h5py.File(path, "r") as file:
            yield file


def begin() -> None:
    """Start the process that tries files, without waiting for it, if files are to be tried."""
    if not trusted():
        _EXAMINER.begin()


def values(node: h5py.Dataset) -> NDArray[Any]:
    """Return all values of a dataset.

    Raises:
        DataError: It claims more memory than is allowed, or than its file explains.
    """
    if node.shape is not None:
        stored = node.id.get_storage_size()
        claim = int(np.prod([int(n) for n in node.shape], dtype=object)) * node.dtype.itemsize
        check_claim(claim, f"{node.name} of {node.file.filename}", stored=stored)
    return np.asarray(node[()])


class Examiner:
    """The process that walks through files, and what it said of them.

    Args:
        program: What that process runs.
        cpu_s: Seconds of the processor for a small file.
    """

    def __init__(self, program: Path = _PROGRAM, cpu_s: float = _CPU_S) -> None:
        self._program, self._cpu_s = program, cpu_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = os.getpid()
        self._registered = self._ready = False
        self._known: dict[tuple[object, ...], Objection | None] = {}

    def begin(self) -> None:
        """Start the process, if it does not run yet, and do not wait for it."""
        # where it cannot be started, the first question says so
        with self._lock, contextlib.suppress(DataError):
            self._running()

    def ask(self, path: Path) -> Objection | None:
        """Return what is wrong with a file.

        Raises:
            OSError: It is not there.
        """
        held = path.stat()
        key = (os.path.abspath(path), held.st_dev, held.st_ino, held.st_size, held.st_mtime_ns)
        with self._lock:
            if key in self._known:
                return self._known[key]
            said = self._first(path, held.st_size)
            if time.time_ns() - held.st_mtime_ns > _SETTLED_NS:
                self._known[key] = said
        return said

    def _first(self, path: Path, size: int) -> Objection | None:
        from kdmri_edge.data.formats.hdf5.examine import Objection

        used = self._process is not None and self._process.poll() is None
        said = self._once(path, size)
        if isinstance(said, Objection) or said is None:
            return said
        if used and not said.startswith(_SLOW):  # another file may have left damage in that process
            said = self._once(path, size)
            if isinstance(said, Objection) or said is None:
                return said
        return Objection(f"cannot be read as HDF5: {said}.", _AGAIN)

    def _once(self, path: Path, size: int) -> Objection | str | None:
        """Ask; a text says how the process came to its end."""
        from kdmri_edge.data.formats.hdf5.examine import Objection

        seconds = self._cpu_s + size / _BYTES_PER_S
        process = self._started()
        asked = {
            "path": os.path.abspath(path),
            "seconds": seconds,
            "largest": memory_limit(),
            "memory": max(_LEAST, min(_MOST, memory_limit())),
        }
        line, late = self._exchange(process, asked, _WALL * seconds)
        if line:
            answer: dict[str, str] = json.loads(line)
            return Objection(**answer) if answer else None
        self.close()
        code = process.returncode
        if late or (code is not None and -code == getattr(signal, "SIGPROF", None)):
            return f"{_SLOW} takes more than {seconds:.2g} s"
        return f"it ends the library that reads it ({_cause(code)})"

    def _exchange(
        self, process: subprocess.Popen[str], asked: dict[str, Any] | None, wall_s: float
    ) -> tuple[str, bool]:
        """Send a question, if there is one, and wait for a line; it is empty at the end."""
        assert process.stdin is not None
        assert process.stdout is not None
        ended = threading.Timer(wall_s, process.kill)
        ended.daemon = True
        ended.start()
        began = time.monotonic()
        line = ""
        try:
            if asked is not None:
                process.stdin.write(json.dumps(asked) + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""  # it has ended
        except BaseException:  # Ctrl-C: the answer would be taken for the next file's
            self.close()
            raise
        finally:
            ended.cancel()
        return line, time.monotonic() - began >= wall_s

    def _started(self) -> subprocess.Popen[str]:
        """Return the process, which takes questions."""
        process = self._running()
        if not self._ready:
            line, _ = self._exchange(process, None, _START_S)
            if not line:
                self.close()
                raise _not_started(_cause(process.returncode))
            self._ready = True
        return process

    def _running(self) -> subprocess.Popen[str]:
        """Return the process, which may be about to start."""
        if self._owner != os.getpid():  # forked: that process belongs to another one
            self._process, self._owner = None, os.getpid()
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        if not self._registered:
            atexit.register(self.close)
            self._registered = True
        try:
            process = subprocess.Popen(
                # -P keeps the folder of that file from hiding modules of other packages
                [sys.executable, "-P", str(self._program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:  # no memory, no process more, or Python within another program
            raise _not_started(error.strerror or str(error)) from error
        self._process, self._ready = process, False
        return process

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        if process.stdout is not None:
            process.stdout.close()
        try:
            process.wait(timeout=0.5)  # it ends when its input does
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _not_started(why: str) -> DataError:
    return DataError(
        f"HDF5 cannot be tried in a process of its own ({why}).",
        "Check the installation of h5py; for files of your own give --trust-files.",
    )


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


_EXAMINER: Final = Examiner()
