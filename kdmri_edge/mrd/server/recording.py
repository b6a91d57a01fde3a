"""Scans as they came, in files: for sites that look into what a scanner sends.

A thread of its own writes each scan, so that a disk that is slow, full or gone harms no image: what
it is given waits in a queue of bounded size, and where that stays full the recording ends, not the
scan. A file has a temporary name until its scan has ended.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import h5py
from ismrmrd import Acquisition, Image

from kdmri_edge.errors import KdmriError, OutputError
from kdmri_edge.mrd.format.hdf5 import ScanWriter
from kdmri_edge.mrd.format.identity import header_without_identity, image_without_identity
from kdmri_edge.mrd.server.telemetry import Metrics, log_defect, log_event
from kdmri_edge.utils.files import check_writable, writing

__all__ = ["Recorder", "Recording"]

_MIB: Final = 2**20
_WAITING: Final = 32 * _MIB  # of one scan, that the disk has not taken yet
_OPEN: Final = 16  # files at once: those that a disk which hangs leaves open are among them
_OVERHEAD: Final = 4096  # bytes that a message takes beside its samples, or somewhat more
_STEP: Final = 16 * _MIB  # by which a file may grow before it is asked whether there is room
_RESERVE: Final = 64 * _MIB  # left free on the disk, for others
_PATIENCE_S: Final = 2.0  # that a scan waits for the disk, in all
_SAVED_PATIENCE_S: Final = 60.0  # the same of one that was sent to be saved
_CLOSING_S: Final = 10.0  # that a server which stops waits for it
_LEFT_S: Final = 86_400.0  # untouched for so long, a temporary file is of a server that was killed
_SCAN, _SAVED = "scan", "saved"
_DONE: Final = re.compile(r"(scan|saved)-\d{8}T\d{6}Z-[0-9a-f]{8}\.h5")
_BEGUN: Final = re.compile(rf"\.{_DONE.pattern}\.tmp")


class Recorder:
    """A folder of recordings.

    The oldest go where new ones need their room, and the log says so; those of scans that were sent
    to be saved never do, and no scan takes more than half of all. Files of other names are neither
    counted nor touched.

    Args:
        folder: Where to; made where it is not there, for this user alone.
        limit: Bytes of all recordings together.
        identified: Keep what tells whose a scan is, see `format.identity`.
        metrics: Counters.

    Raises:
        OutputError: The folder cannot be written to.
    """

    def __init__(
        self, folder: Path, *, limit: int, identified: bool = False, metrics: Metrics | None = None
    ) -> None:
        self.folder, self.identified = folder, identified
        self._limit = limit
        self.metrics = metrics or Metrics()
        # who holds the first one may wait for the disk; scans wait for the other one alone
        self._lock, self._opening = threading.Lock(), threading.Lock()
        self._granted: dict[str, int] = {}  # by temporary name
        self._threads: list[threading.Thread] = []
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file.", "Name a folder.")
        check_writable(folder)
        with writing(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in self._files(_BEGUN):
            if time.time() - entry.stat(follow_symlinks=False).st_mtime > _LEFT_S:
                Path(entry.path).unlink(missing_ok=True)

    def begin(self, session: int, xml: str, *, saved: bool) -> Recording:
        """Begin to record a scan.

        Args:
            session: Number of the scan in the log.
            xml: Its header.
            saved: It was sent to be saved: it waits longer for the disk, and is kept.

        Raises:
            OutputError: The disk has not taken the recordings before it.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = f"{_SAVED if saved else _SCAN}-{stamp}-{uuid.uuid4().hex[:8]}.h5"
        patience = _SAVED_PATIENCE_S if saved else _PATIENCE_S
        recording = Recording(self, session, name, xml, patience_s=patience)
        with self._opening:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if len(self._threads) >= _OPEN:
                self.metrics.recordings.labels("failed").inc()
                raise OutputError("The disk does not take what is recorded.", "Look after it.")
            self._threads.append(recording.thread)
        recording.thread.start()
        return recording

    def close(self) -> None:
        """Wait until all recordings are written, but not for a disk that hangs."""
        until = time.monotonic() + _CLOSING_S
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))
        if left := self.unfinished:
            log_event("recordings lost", logging.ERROR, count=left)

    @property
    def unfinished(self) -> int:
        """How many recordings are not written yet."""
        return sum(thread.is_alive() for thread in self._threads)

    @property
    def step(self) -> int:
        """Bytes by which a file may grow at once."""
        return max(min(_STEP, self._limit // 16), 1)

    def grant(self, name: str, size: int) -> None:
        """Make room for a file to grow to a size.

        Raises:
            OutputError: There is none.
        """
        with self._lock:
            if name.startswith(f".{_SCAN}-") and size > self._limit // 2:
                raise OutputError(
                    "The scan is larger than half of what all recordings may take.",
                    "Raise --record-limit.",
                )
            if shutil.disk_usage(self.folder).free < _RESERVE + self.step:
                raise OutputError("The disk is almost full.", "Free some space.")
            stats = {e.name: e.stat(follow_symlinks=False) for e in self._files(_DONE, _BEGUN)}
            sizes = {n: stat.st_size for n, stat in stats.items()}
            others = {n: s for n, s in self._granted.items() if n != name}
            sizes.pop(name, None)
            whole = size + sum((sizes | others).values())
            scans = [n for n in sizes if n.startswith(f"{_SCAN}-")]
            oldest = iter(sorted(scans, key=lambda n: stats[n].st_mtime_ns))
            while whole > self._limit:
                gone = next(oldest, None)
                if gone is None:
                    raise OutputError(
                        "What has been recorded fills --record-limit.",
                        "Move recordings that were sent to be saved elsewhere.",
                    )
                (self.folder / gone).unlink(missing_ok=True)
                whole -= sizes[gone]
                self.metrics.recordings.labels("deleted").inc()
                log_event("recording deleted", file=gone, bytes=sizes[gone])
            self._granted[name] = size

    def release(self, name: str) -> None:
        """Forget a file that grows no more."""
        with self._lock:
            self._granted.pop(name, None)

    def _files(self, *patterns: re.Pattern[str]) -> Iterator[os.DirEntry[str]]:
        """Yield the recordings of the folder; what is no file of its own (a link) is none."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if any(pattern.fullmatch(entry.name) for pattern in patterns):
                    with contextlib.suppress(FileNotFoundError):
                        if entry.is_file(follow_symlinks=False):
                            yield entry


class Recording:
    """The recording of one scan; made by `Recorder.begin`.

    Attributes:
        name: Of its file.
        thread: Writes it.
    """

    def __init__(
        self, recorder: Recorder, session: int, name: str, xml: str, *, patience_s: float
    ) -> None:
        self.name = name
        self.thread = threading.Thread(target=self._write, name="record", daemon=True)
        self._recorder, self._session, self._xml = recorder, session, xml
        self._patience_s = patience_s
        self._change = threading.Condition()
        self._messages: deque[tuple[Acquisition | Image, int]] = deque()
        self._waiting = 0  # bytes
        self._ended = False
        self._trouble: str | None = None
        self._kept = (0, 0)

    def put(self, message: Acquisition | Image) -> None:
        """Record a message; wait for the disk where it is behind, but not for ever."""
        size = _size(message)
        with self._change:
            began = time.monotonic()
            while self._trouble is None and self._waiting and self._waiting + size > _WAITING:
                left = self._patience_s - (time.monotonic() - began)
                if left <= 0:
                    self._trouble = "The disk is slower than the scan."
                    self._messages.clear()
                    self._change.notify_all()
                    break
                self._change.wait(left)
            self._patience_s -= time.monotonic() - began
            if self._trouble is None:
                self._messages.append((message, size))
                self._waiting += size
                self._change.notify_all()

    def end(self) -> None:
        """Say that the scan has ended; its file gets its name soon."""
        with self._change:
            self._ended = True
            self._change.notify_all()

    def finish(self, timeout_s: float) -> tuple[int, int]:
        """Wait until the file is written.

        Returns:
            How many readouts and images it holds.

        Raises:
            OutputError: It could not be written, or not in time.
        """
        self.end()
        self.thread.join(timeout_s)
        if self.thread.is_alive():
            raise OutputError("The disk has not taken the scan in time.", "Send it again.")
        if self._trouble is not None:
            raise OutputError(f"The scan was not recorded: {self._trouble}", "")
        return self._kept

    def _next(self) -> Acquisition | Image | None:
        with self._change:
            while not self._messages and not self._ended and self._trouble is None:
                self._change.wait()
            if self._trouble is not None:
                raise OutputError(self._trouble, "")
            if not self._messages:
                return None
            message, size = self._messages.popleft()
            self._waiting -= size
            self._change.notify_all()
            return message

    def _write(self) -> None:
        metrics, reason = self._recorder.metrics, None
        try:
            self._kept = self._write_file()
        except KdmriError as error:
            reason = str(error)
        except OSError as error:
            reason = f"The recording cannot be written ({error.strerror or type(error).__name__})."
        except Exception as error:  # a defect of ours ends the recording, not the scan
            log_defect(error, session=self._session)
            reason = f"Internal error ({type(error).__name__})."
        with self._change:
            self._trouble = reason
            self._messages.clear()
            self._change.notify_all()
        if reason is not None:
            metrics.recordings.labels("failed").inc()
            log_event("recording stopped", logging.WARNING, session=self._session, reason=reason)
        elif any(self._kept):
            metrics.recordings.labels("kept").inc()
            log_event("recorded", session=self._session, file=self.name, readouts=self._kept[0],
                      images=self._kept[1])  # fmt: skip

    def _write_file(self) -> tuple[int, int]:
        recorder = self._recorder
        xml = self._xml if recorder.identified else header_without_identity(self._xml)
        temporary = recorder.folder / f".{self.name}.tmp"
        store = _Store(recorder, temporary)
        try:
            with store, h5py.File(store, "w") as file:
                writer = ScanWriter(file, xml)
                while (message := self._next()) is not None:
                    if isinstance(message, Image) and not recorder.identified:
                        message = image_without_identity(message)
                    writer.add(message)
                    store.check()
                if writer.readouts or not writer.images:
                    writer.flush()
                kept = (writer.readouts, writer.images)
            store.check()
            if any(kept):
                temporary.replace(recorder.folder / self.name)
            return kept
        except Exception:
            store.check()  # what went wrong first
            raise
        finally:
            temporary.unlink(missing_ok=True)
            recorder.release(temporary.name)


def _size(message: Acquisition | Image) -> int:
    """Return about how much memory a message takes."""
    more = (
        message.traj.nbytes if isinstance(message, Acquisition) else len(message.attribute_string)
    )
    return int(message.data.nbytes + more + _OVERHEAD)


class _Store(io.RawIOBase):
    """The file that HDF5 writes to, which asks for room before it grows.

    HDF5 cannot close a file that refuses to be written. So what goes wrong is kept, and the file
    pretends to take everything from then on: it is deleted anyway.

    Args:
        recorder: Grants the room.
        path: Of a file that is not there yet.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, recorder: Recorder, path: Path) -> None:
        super().__init__()
        self._recorder, self._name = recorder, path.name
        recorder.grant(self._name, recorder.step)
        self._file = _made(path)
        self._room = recorder.step
        self._trouble: Exception | None = None

    def check(self) -> None:
        """Raise what has gone wrong, if anything has."""
        if self._trouble is not None:
            raise self._trouble

    def readable(self) -> bool:
        """Tell HDF5 that it may read."""
        return True

    def writable(self) -> bool:
        """Tell HDF5 that it may write."""
        return True

    def seekable(self) -> bool:
        """Tell HDF5 that it may seek."""
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place."""
        return self._file.tell()

    def readinto(self, buffer: Any, /) -> int:
        """Read; what is not there reads as zeros, as it does in a file with a gap."""
        view = memoryview(buffer)
        done = 0
        while done < len(view):
            count = self._file.readinto(view[done:])
            if not count:
                view[done:] = bytes(len(view) - done)
                break
            done += count
        return len(view)

    def write(self, data: Any, /) -> int:
        """Write all of it, or keep the reason why it cannot be."""
        view = memoryview(data).cast("B")
        try:
            self.check()
            end = self._file.tell() + len(view)
            if end > self._room:
                room = end + self._recorder.step
                self._recorder.grant(self._name, room)
                self._room = room
            done = 0
            while done < len(view):
                done += self._file.write(view[done:]) or 0
        except (OSError, OutputError) as error:
            self._trouble = self._trouble or error
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        """Set the file's size, within its room."""
        wanted = self._file.tell() if size is None else size
        if self._trouble is None:
            try:
                if wanted > self._room:
                    self._recorder.grant(self._name, wanted)
                    self._room = wanted
                self._file.truncate(wanted)
            except (OSError, OutputError) as error:
                self._trouble = error
        return wanted

    def close(self) -> None:
        """Close the file, flushed to the disk."""
        if not self.closed:
            with self._file:
                if self._trouble is None:
                    try:
                        os.fsync(self._file.fileno())
                    except OSError as error:
                        self._trouble = error
        super().close()


def _made(path: Path) -> io.FileIO:
    """Make a file that was not there, for this user alone; a link in its place is an error."""

    def opener(name: str, _: int) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        return os.open(name, flags, 0o600)

    return io.FileIO(str(path), "w+b", opener=opener)
