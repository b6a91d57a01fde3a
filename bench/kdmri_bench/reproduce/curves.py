"""Training curves: PSNR on the validation volumes over optimiser steps."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Final

from kdmri_edge.utils.extras import require

__all__ = ["curves", "draw"]

# title -> run folder, stages one after the other
_LINES: Final = {
    "teacher (a)": ("paper-teacher", ("teacher",)),
    "teacher (b)": ("kd-mri", ("teacher",)),
    "plain student": ("kd-mri", ("plain",)),
    "KD-MRI student": ("kd-mri", ("attention", "imitation")),
    "edge student": ("edge", ("attention", "imitation")),
}
# Attention transfer alone does not reconstruct, so that stage has no meaningful PSNR.
_NO_IMAGE: Final = "attention"


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read (step, PSNR in dB) of each network of a case; steps count over all its stages."""
    found: dict[str, list[tuple[int, float]]] = {}
    for title, (run, stages) in _LINES.items():
        file = folder / run / "log.csv"
        if not file.is_file():
            continue
        with file.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        points, before = [], 0
        for stage in stages:
            own = [row for row in rows if row["stage"] == stage]
            if stage != _NO_IMAGE:
                points += [
                    (before + int(row["step"]), float(row["validation_psnr_db"]))
                    for row in own
                    if row["validation_psnr_db"]
                ]
            before += max((int(row["step"]) for row in own), default=0)
        if points:
            found[title] = points
    return found


def draw(lines: dict[str, list[tuple[int, float]]], path: Path, title: str) -> None:
    """Write the curves as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", extra="bench")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in lines.items():
        steps, psnr = zip(*points, strict=True)
        axes.plot(steps, psnr, label=name, marker="." if len(points) < 20 else None)
    axes.set_xlabel("optimiser steps, all stages")
    axes.set_ylabel("PSNR on validation slices, dB")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
