"""Progress of a stage: a bar with loss, PSNR and time left, or sparse lines off a terminal."""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kdmri_edge.console import get_console, say

__all__ = ["StageProgress"]


class StageProgress:
    """Reports one stage to a person.

    Args:
        title: What is being trained.
        steps: Its optimiser steps.
        done: Steps already done before (when resuming).
        show: False on all processes but the first.
    """

    def __init__(self, title: str, steps: int, done: int, *, show: bool) -> None:
        self.title = title
        self.steps = steps
        self.show = show
        self.psnr = ""
        self._lines = show and not get_console().is_terminal
        self._bar = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[psnr]}"),
            TimeRemainingColumn(),
            console=get_console(),
            disable=not show or self._lines,
        )
        self._task = self._bar.add_task(title, total=steps, completed=done, loss="", psnr="")

    def __enter__(self) -> StageProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, step: int, loss: float) -> None:
        """Move the bar to `step`."""
        self._bar.update(self._task, completed=step, loss=f"loss {loss:.5f}")

    def validated(self, step: int, loss: float, psnr: float) -> None:
        """Show a validation result."""
        self._bar.update(self._task, psnr=f"{psnr:.2f} dB")
        if self._lines:
            say(
                f"{self.title}: step {step}/{self.steps}, loss {loss:.5f}, validation {psnr:.2f} dB"
            )
