"""Where a benchmark keeps what it has measured until its report is written."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kdmri_edge.errors import BenchError
from kdmri_edge.utils.console import say
from kdmri_edge.utils.files import read_json, write_json, writing

__all__ = ["UNFINISHED", "Workspace", "workspace"]

UNFINISHED: Final = "unfinished"
"""Folder beside the report to be; it is gone when that is written."""

_STATE: Final = "state.json"


class Workspace:
    """A folder for exports and measured rows.

    Args:
        path: the folder.

    Attributes:
        continued: how often a benchmark was cut off here before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.continued = 0

    @property
    def rows(self) -> list[Path]:
        """The files of the rows that have a figure."""
        return sorted(self.path.glob("rows/*/row.json"))

    def note(self) -> None:
        """Note that a benchmark works here."""
        state = self.path / _STATE
        if self.rows:
            before = read_json(state, BenchError) if state.is_file() else {}
            self.continued = int(before.get("continued", 0)) + 1
            say(
                f"A benchmark was cut off here: {len(self.rows)} of its row(s) have figures, in"
                f" {self.path}. What is asked for in the same way goes on."
            )
        write_json(state, {"continued": self.continued})


@contextlib.contextmanager
def workspace(out: Path | None) -> Iterator[Workspace]:
    """Yield a folder that outlives a benchmark which is cut off, and no other.

    Args:
        out: where the report will be; None for a temporary folder that nothing survives.

    Raises:
        BenchError: another benchmark works for the same report.
        OutputError: the place cannot be written to.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="kdmri-bench-") as scratch:
            yield Workspace(Path(scratch))
        return
    own, there = Workspace(out / UNFINISHED), out.is_dir()
    with writing(own.path):
        own.path.mkdir(parents=True, exist_ok=True)
    with _alone(own.path, out):
        own.note()
        try:
            yield own
        except BaseException:
            if own.rows:
                say(
                    f"{len(own.rows)} row(s) have figures, which are kept in {own.path}; the same"
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
