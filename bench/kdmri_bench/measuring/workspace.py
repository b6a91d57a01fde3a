"""Where a benchmark or an assessment keeps what it has measured until its report is written."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kdmri_edge.errors import BenchError
from kdmri_edge.utils.console import say
from kdmri_edge.utils.files import damaged, read_json, write_json, writing

__all__ = ["ASSESSMENT", "BENCHMARK", "UNFINISHED", "Kind", "Workspace", "workspace"]

UNFINISHED: Final = "unfinished"
"""Folder beside the report to be; it is gone when that is written."""

_STATE: Final = "state.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What is measured in a workspace.

    Attributes:
        name: of the measurement.
        files: the files of finished parts, as a pattern below the folder.
        parts: what these are called.
    """

    name: str
    files: str
    parts: str


BENCHMARK: Final = Kind(name="benchmark", files="rows/*/row.json", parts="row(s)")
ASSESSMENT: Final = Kind(name="assessment", files="*/*/*.*", parts="part(s)")


class Workspace:
    """A folder for what is measured.

    Args:
        path: the folder.
        kind: what measures there.

    Attributes:
        continued: how often a measurement was cut off here before.
    """

    def __init__(self, path: Path, kind: Kind = BENCHMARK) -> None:
        self.path, self.kind = path, kind
        self.continued = 0

    @property
    def finished(self) -> list[Path]:
        """The files of the parts that have a figure."""
        return sorted(self.path.glob(self.kind.files))

    def note(self) -> None:
        """Note that something is measured here."""
        state, count = self.path / _STATE, len(self.finished)
        before = self._before(state, count)
        if count:
            self.continued = before + 1
            say(
                f"Here a former {self.kind.name} was cut off: {count} of its {self.kind.parts} have"
                f" figures, in {self.path}. What is asked for in the same way goes on."
            )
        write_json(state, {"continued": self.continued})

    def _before(self, state: Path, count: int) -> int:
        """Return how often a measurement was cut off here before this one."""
        if not state.is_file():
            return 0
        try:
            found = read_json(state, BenchError)
            with damaged(state, BenchError):
                return int(found.get("continued", 0))
        except BenchError:  # it counts, and holds no figure
            anew = (
                f"the {count} finished {self.kind.parts} beside it are kept"
                if count
                else "nothing beside it is finished, and the measurement starts anew"
            )
            say(f"{state} is damaged: {anew}.")
            return 0


@contextlib.contextmanager
def workspace(out: Path | None, kind: Kind = BENCHMARK) -> Iterator[Workspace]:
    """Yield a folder that outlives a measurement which is cut off, and no other.

    Args:
        out: where the report will be; None for a temporary folder that nothing survives.
        kind: what is measured.

    Raises:
        BenchError: something else is measured for the same report.
        OutputError: the place cannot be written to.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="kdmri-bench-") as scratch:
            yield Workspace(Path(scratch), kind)
        return
    own, there = Workspace(out / UNFINISHED, kind), out.is_dir()
    with writing(own.path):
        own.path.mkdir(parents=True, exist_ok=True)
    with _alone(own.path, out):
        own.note()
        try:
            yield own
        except BaseException:
            count = len(own.finished)
            if count:
                say(
                    f"{count} {kind.parts} have figures, which are kept in {own.path}; the same"
                    " command goes on from there."
                )
            else:
                shutil.rmtree(own.path, ignore_errors=True)
                if not there:
                    with contextlib.suppress(OSError):  # it is not empty
                        out.rmdir()
            raise
    shutil.rmtree(own.path, ignore_errors=True)


@contextlib.contextmanager
def _alone(folder: Path, out: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with this process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows has none
        yield
        return
    with (folder / "lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BenchError(
                f"Another benchmark is measuring for {out}.",
                "Wait for it, or name another folder with --out.",
            ) from None
        yield
