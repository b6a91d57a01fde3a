"""What a stage of training reports: one CSV row per reported step, and a bar or sparse lines."""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path
from types import TracebackType

from kdmri_edge.utils.console import duration, get_console, progress, say
from kdmri_edge.utils.files import atomic_path, writing

__all__ = ["COLUMNS", "StageProgress", "TrainingLog"]

COLUMNS = ("stage", "step", "loss", "learning_rate", "validation_psnr_db", "seconds", "waiting")
"""`waiting` is the part of the seconds that was spent waiting for batches."""


class TrainingLog:
    """Append-only CSV of a run.

    Args:
        path: The file; it is made with its header when absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: tuple[str, ...] = COLUMNS
        if not path.exists():
            self._rewrite([])
            return
        with path.open(newline="", encoding="utf-8") as stream:  # an earlier version's has fewer
            self._columns = tuple(next(csv.reader(stream), COLUMNS))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with (
            atomic_path(self.path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.DictWriter(stream, self._columns)
            writer.writeheader()
            writer.writerows(rows)

    def rows(self) -> list[dict[str, str]]:
        """Return all complete rows (an interrupted last line is dropped)."""
        with self.path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        return [row for row in rows if None not in row.values()]

    def rewind(self, stage: str, step: int) -> None:
        """Drop rows of `stage` beyond `step`: those steps are about to be done again."""
        kept = [r for r in self.rows() if r["stage"] != stage or int(r["step"]) <= step]
        self._rewrite(kept)

    def add(
        self,
        stage: str,
        step: int,
        loss: float,
        rate: float,
        psnr: float | None,
        seconds: float,
        waiting: float = 0.0,
    ) -> None:
        """Append a row."""
        shown = "" if psnr is None else f"{psnr:.3f}"
        row = (stage, step, f"{loss:.6g}", f"{rate:.4g}", shown, f"{seconds:.1f}", f"{waiting:.3f}")
        with writing(self.path), self.path.open("a", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerow(row[: len(self._columns)])


class StageProgress:
    """Reports one stage to a person.

    Args:
        title: What is being trained.
        steps: Its optimiser steps.
        done: Steps already done before (when resuming).
        show: False on all processes but the first.
        streamed: Whether slices are read from files, and how long steps wait for them is shown.
    """

    def __init__(
        self, title: str, steps: int, done: int, *, show: bool, streamed: bool = False
    ) -> None:
        self.title = title
        self.steps = steps
        self.show = show
        self._done = done
        self._psnr = self._waiting = ""
        self._streamed = streamed
        self._inside = contextlib.ExitStack()

    def __enter__(self) -> StageProgress:
        self._phase = self._inside.enter_context(progress(self.title, self.steps, done=self._done))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inside.close()
        # A bar that stood at its end would look like a stage that still goes on. Off a terminal the
        # last validation's line, where there are volumes for one, says the same.
        steps, seconds = self._phase.done - self._done, duration(self._phase.seconds)
        said = bool(self._psnr) and not get_console().is_terminal
        if kind is None and steps and self.show and (self._streamed or not said):
            say(f"{self.title}: {steps} steps in {seconds}, {self._phase.note}")

    def advance(self, step: int, loss: float) -> None:
        """Move the bar to `step`."""
        note = f"loss {loss:.5f}{self._psnr}{self._waiting}"
        self._phase(step - self._phase.done, note=note)

    def waited(self, part: float) -> None:
        """Note which part of the time steps waited for batches, if these are read from files."""
        if self._streamed:
            self._waiting = f", {part:.0%} of the time waiting for data"

    def validated(self, step: int, loss: float, psnr: float) -> None:
        """Show a validation result."""
        self._psnr = f", {psnr:.2f} dB"
        self._phase(0, note=f"loss {loss:.5f}{self._psnr}{self._waiting}")
        if self.show and not get_console().is_terminal:
            say(
                f"{self.title}: step {step}/{self.steps}, loss {loss:.5f}, validation {psnr:.2f} dB"
            )
