"""The training log: one CSV row per reported step, cut back to the checkpoint when resuming."""

from __future__ import annotations

import csv
from pathlib import Path

from kdmri_edge.files import atomic_path, writing

__all__ = ["COLUMNS", "TrainingLog"]

COLUMNS = ("stage", "step", "loss", "learning_rate", "validation_psnr_db", "seconds")


class TrainingLog:
    """Append-only CSV of a run.

    Args:
        path: The file; it is made with its header when absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            self._rewrite([])

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with (
            atomic_path(self.path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.DictWriter(stream, COLUMNS)
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
        self, stage: str, step: int, loss: float, rate: float, psnr: float | None, seconds: float
    ) -> None:
        """Append a row."""
        shown = "" if psnr is None else f"{psnr:.3f}"
        row = (stage, step, f"{loss:.6g}", f"{rate:.4g}", shown, f"{seconds:.1f}")
        with writing(self.path), self.path.open("a", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerow(row)
