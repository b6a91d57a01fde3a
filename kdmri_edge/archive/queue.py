r"""A queue on disk: objects stay until the archive has confirmed them.

    QUEUE/lock                                held by the process that sends
    QUEUE/PACS@10.0.0.5%3A104/archive.json    how the archive is spoken to
                             /state.json      failed attempts, why they failed, when the next is
                             /NAME.dcm        objects that wait, in the order of their names
                             /refused/        NAME.dcm and NAME.json: what was refused, and why

Any number of processes may put objects in: their names are never the same, and an object appears
under its name whole. One at a time sends. Objects hold whatever identification of the patient their
source has, so the folder is its owner's alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from kdmri_edge.archive.address import Archive
from kdmri_edge.errors import ArchiveError, OutputError
from kdmri_edge.utils import extras
from kdmri_edge.utils.files import atomic_path, damaged, read_json, write_json, writing

__all__ = ["ArchiveQueue", "Held", "Line", "State", "default_queue"]

_RESERVE: Final = 1 << 30
_MADE_FOR: Final = "archive.json"
_STATE: Final = "state.json"
_REFUSED: Final = "refused"
_PRIVATE: Final = 0o700
_LEFT_S: Final = 3600.0  # no process takes so long to write an object


def default_queue() -> Path:
    """Return $XDG_STATE_HOME/kdmri-edge/archive, by default ~/.local/state/kdmri-edge/archive."""
    root = os.environ.get("XDG_STATE_HOME")
    return (Path(root) if root else Path.home() / ".local" / "state") / "kdmri-edge" / "archive"


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """How it went with an archive.

    Attributes:
        attempts: Associations in a row that ended before everything was sent.
        reason: Why the last of them did; empty where none did.
        next_s: When the next one is due, in seconds since 1970.
        breaks: How often the association broke while an object was being sent, by its name.
    """

    attempts: int = 0
    reason: str = ""
    next_s: float = 0.0
    breaks: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """An object that the archive refused.

    Attributes:
        file: Where it lies.
        reason: Why.
    """

    file: Path
    reason: str


class Line:
    """What waits for one archive.

    Args:
        folder: Of the queue, for that archive.
        archive: As whom and how it is spoken to.
    """

    def __init__(self, folder: Path, archive: Archive) -> None:
        self.folder, self.archive = folder, archive

    def waiting(self) -> list[Path]:
        """Return the objects, in the order in which they came."""
        return sorted(self.folder.glob("[!.]*.dcm"))

    def refused(self) -> list[Held]:
        """Return what the archive refused."""
        return [
            Held(file=file, reason=_reason(file.with_suffix(".json")))
            for file in sorted((self.folder / _REFUSED).glob("[!.]*.dcm"))
        ]

    @property
    def state(self) -> State:
        """How it went; as if nothing had been tried where that was not kept, or is damaged."""
        with contextlib.suppress(ArchiveError):
            stored = read_json(self.folder / _STATE, ArchiveError)
            with damaged(self.folder / _STATE, ArchiveError):
                return State(
                    attempts=int(stored["attempts"]), reason=str(stored["reason"]),
                    next_s=float(stored["next_s"]),
                    breaks={str(name): int(n) for name, n in stored["breaks"].items()},
                )  # fmt: skip
        return State()

    def keep(self, state: State) -> None:
        """Note how it went.

        Raises:
            OutputError: The disk is full, or the folder cannot be written to.
        """
        write_json(self.folder / _STATE, dataclasses.asdict(state))

    def stored(self, file: Path) -> None:
        """Forget an object that the archive has confirmed."""
        file.unlink(missing_ok=True)

    def refuse(self, file: Path, reason: str) -> None:
        """Put an object aside that the archive does not take.

        Raises:
            OutputError: The folder cannot be written to.
        """
        aside = self.folder / _REFUSED
        with writing(aside):
            aside.mkdir(mode=_PRIVATE, exist_ok=True)
            write_json(aside / f"{file.stem}.json", {"reason": reason, "when": _now()})
            file.rename(aside / file.name)

    def again(self) -> int:
        """Let everything that was refused wait again; return how much that is."""
        held = self.refused()
        for one in held:
            one.file.rename(self.folder / one.file.name)
            one.file.with_suffix(".json").unlink(missing_ok=True)
        self.keep(State())
        return len(held)


class ArchiveQueue:
    """A queue on disk.

    Args:
        folder: Where it lies; it is made when the first object is put in. None takes
            `default_queue`.
        reserve: Bytes that have to stay free on its disk: an archive that is away for a week must
            not fill the disk that the reconstruction needs.
    """

    def __init__(self, folder: Path | None = None, *, reserve: int = _RESERVE) -> None:
        self.folder, self._reserve = folder or default_queue(), reserve

    def put(self, archive: Archive, data: bytes) -> Path:
        """Let an object wait for an archive.

        Args:
            archive: The archive; how it is spoken to replaces what earlier calls said.
            data: A DICOM file.

        Returns:
            Its place in the queue. When this returns it is on the disk.

        Raises:
            OutputError: The disk is full or nearly so, or the folder cannot be written to.
        """
        line = self.line(archive)
        free = shutil.disk_usage(line.folder).free
        if free - len(data) < self._reserve:
            raise OutputError(
                f"{free >> 20} MiB are free where {self.folder} lies, of which"
                f" {self._reserve >> 20} MiB are kept: nothing more is queued for {archive.name}.",
                "Free some space, or let the archive take what waits (kdmri-edge archive list).",
            )
        place = line.folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.dcm"
        with atomic_path(place) as temporary:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as stream:
                stream.write(data)
        return place

    def line(self, archive: Archive) -> Line:
        """Return what waits for an archive, its folder made.

        Raises:
            OutputError: The folder cannot be written to.
        """
        place = self.folder / quote(archive.name, safe="@[] ")
        with writing(place):
            self.folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            place.mkdir(mode=_PRIVATE, exist_ok=True)
        told = archive.to_dict()
        try:
            same = read_json(place / _MADE_FOR, ArchiveError) == told
        except ArchiveError:  # there is none yet
            same = False
        if not same:
            write_json(place / _MADE_FOR, told)
        return Line(place, archive)

    def lines(self) -> list[Line]:
        """Return what waits, by archive.

        Raises:
            ArchiveError: A folder of the queue does not say whom it is for, or the queue cannot be
                read.
        """
        found = []
        try:
            places = sorted(self.folder.glob(f"*/{_MADE_FOR}"))
        except OSError as error:
            raise ArchiveError(
                f"{self.folder} cannot be read ({error.strerror}).", "Name another --queue."
            ) from error
        for place in places:
            stored = read_json(place, ArchiveError)
            with damaged(place, ArchiveError, "Name that archive with --send again."):
                found.append(Line(place.parent, Archive.from_dict(stored)))
        return found

    @contextlib.contextmanager
    def sending(self, *, wait_s: float = 0.0) -> Iterator[bool]:
        """Hold the right to send, which the system takes back when the process ends, however.

        Args:
            wait_s: For another process to end.

        Yields:
            Whether it is held; another process sends where not.

        Raises:
            OutputError: The folder cannot be written to.
        """
        locks: Any = extras.require("filelock", extra="archive")
        lock = locks.FileLock(self.folder / "lock")
        try:
            with writing(self.folder):
                self.folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
                lock.acquire(timeout=wait_s)
        except locks.Timeout:
            yield False
            return
        except NotImplementedError as error:
            raise OutputError(
                f"{self.folder} lies on a file system without locks.", "Name another --queue."
            ) from error
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            raise OutputError(
                f"{self.folder} lies on a file system without locks.", "Name another --queue."
            ) from error
        try:
            self._sweep()
            yield True
        finally:
            lock.release()

    def _sweep(self) -> None:
        """Remove what processes that were killed have left half written."""
        old = time.time() - _LEFT_S
        for leftover in self.folder.glob("*/.*.tmp*"):
            with contextlib.suppress(OSError):  # another process has finished it
                if leftover.stat().st_mtime < old:
                    leftover.unlink()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _reason(file: Path) -> str:
    with contextlib.suppress(ArchiveError):
        stored = read_json(file, ArchiveError)
        if isinstance(stored, dict):
            return str(stored.get("reason", ""))
    return "not kept"
