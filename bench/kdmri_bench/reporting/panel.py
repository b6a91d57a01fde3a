"""The picture of a benchmark, in the order of KD-MRI's figures.

Zero-filled, target, teacher, plain student, distilled student; below, the sampling pattern and the
residues of the last three on one scale. Images are turned so that phase encode (H, left-right in
our data) runs across.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.case import Case
from kdmri_edge.physics.masks import Mask
from kdmri_edge.utils.extras import require

__all__ = ["Panel", "compose", "draw", "median_slice", "panel_of"]

FACTORS: Final = (2, 5, 10, 20, 50)
TITLES: Final = {"teacher": "teacher", "plain": "plain student", "student": "ours (distilled)"}
BACKGROUND: Final = "#0b0d10"
INK: Final = "#e8eaed"
FAINT: Final = "#9aa0a6"

Image = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """What is shown; images [H, W] as fractions of the target volume's maximum.

    Attributes:
        volume: name of the volume.
        slice: index of the slice.
        images: title -> image, in the order shown: zero-filled, target, then networks.
        psnr: title -> PSNR of that slice in dB, with the volume's maximum as range.
        residues: title -> |image - target| of the networks.
        factor: by how much the residues are multiplied before they are shown as grey values.
        white: grey value of the images' white, a fraction of the volume's maximum.
        sampling: the mask [H, W] with zero frequency in the middle, 0 or 1.
        acceleration: nominal.
        chosen: why this slice.
    """

    volume: str
    slice: int
    images: Mapping[str, Image]
    psnr: Mapping[str, float]
    residues: Mapping[str, Image]
    factor: int
    white: float
    sampling: Image
    acceleration: float
    chosen: str = "median error"

    def to_dict(self) -> dict[str, Any]:
        """Return what a report says about its picture."""
        return {
            "volume": self.volume,
            "slice": self.slice,
            "shown": list(self.images),
            "psnr_db": dict(self.psnr),
            "residue_factor": self.factor,
            "white": self.white,
        }


def median_slice(target: NDArray[Any], output: NDArray[Any]) -> int:
    """Return the slice whose root-mean-square error is the median; blank slices do not count."""
    energy = np.mean(np.abs(target) ** 2, axis=(1, 2))
    slices = np.flatnonzero(energy > 0.05 * energy.max())
    error = np.mean(np.abs(output - target) ** 2, axis=(1, 2))[slices]
    return int(slices[np.argsort(error, kind="stable")[(len(slices) - 1) // 2]])


def compose(case: Case, outputs: Mapping[str, NDArray[Any]], mask: Mask) -> Panel:
    """Choose the slice and the scale.

    Args:
        case: the first test volume.
        outputs: role -> reconstruction [S, H, W] of it; "student" chooses the slice, or else the
            last one given. May be empty.
        mask: the sampling pattern of the case.
    """
    shown = {role: outputs[role] for role in TITLES if role in outputs}
    chooser = shown[list(shown)[-1]] if shown else case.zero_filled
    index = median_slice(case.target, chooser)
    peak = float(np.abs(case.target).max())

    def fraction(volume: NDArray[Any]) -> Image:
        # A real image keeps its sign: a negative value is an error, and must show as one.
        image = np.abs(volume[index]) if np.iscomplexobj(volume) else volume[index]
        return np.asarray(image, dtype=np.float64) / peak

    images = {"zero-filled": fraction(case.zero_filled), "target": fraction(case.target)}
    images |= {TITLES[role]: fraction(volume) for role, volume in shown.items()}
    return panel_of(images, mask, volume=case.name, index=index)


def panel_of(
    images: Mapping[str, Image],
    mask: Mask,
    *,
    volume: str,
    index: int,
    chosen: str = "median error",
) -> Panel:
    """Make a panel of one slice.

    Args:
        images: Title -> [H, W] as fractions of the volume's maximum: zero-filled, the target, then
            reconstructions, whose residues are shown.
        mask: The sampling pattern.
        volume: Name of the volume.
        index: Which slice it is.
        chosen: Why this one.
    """
    _, true, *others = images
    target = images[true]
    residues = {title: np.abs(images[title] - target) for title in others}
    return Panel(
        volume=volume,
        slice=index,
        images=images,
        psnr={t: _decibel(image - target) for t, image in images.items() if t != true},
        residues=residues,
        factor=_factor(residues),
        white=float(np.percentile(target, 99)) or 1.0,
        sampling=_sampling(mask, target.shape),
        acceleration=mask.nominal_acceleration,
        chosen=chosen,
    )


def _decibel(error: Image) -> float:
    return -10 * math.log10(max(float(np.mean(error**2)), 1e-30))


def _sampling(mask: Mask, shape: tuple[int, ...]) -> Image:
    """Draw the mask as [H, W], centred."""
    axes = (0,) if mask.is_lines else (0, 1)
    return np.array(np.broadcast_to(np.fft.fftshift(mask.grid, axes), shape), dtype=np.float64)


def _factor(residues: Mapping[str, Image]) -> int:
    """The largest factor that leaves 99.5 % of the largest residue unclipped."""
    if not residues:
        return 10
    high = max(float(np.percentile(residue, 99.5)) for residue in residues.values())
    fitting = [factor for factor in FACTORS if factor * high <= 1.0]
    return max(fitting, default=FACTORS[0])


def draw(panel: Panel, path: Path, subtitle: str = "") -> None:
    """Write the panel as PNG.

    Args:
        panel: what to show.
        path: the file, overwritten.
        subtitle: a line below the pictures: mask, acceleration, kind of data.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", extra="bench")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(panel.images)
    side, gap, head, foot = 2.4, 0.1, 0.36, 0.42
    width = columns * (side + gap) + gap
    height = 2 * (side + head) + gap + foot
    figure = Figure(figsize=(width, height), dpi=160, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)

    def cell(row: int, column: int) -> tuple[float, float, float, float]:
        left = gap + column * (side + gap)
        bottom = height - (row + 1) * (side + head)
        return left / width, bottom / height, side / width, side / height

    def show(row: int, column: int, image: Image, top: float, title: str, note: str) -> Any:
        axes = figure.add_axes(cell(row, column))
        axes.set_axis_off()
        shown = axes.imshow(np.rot90(image), cmap="gray", vmin=0, vmax=top, interpolation="nearest")
        axes.set_title(title, color=INK, fontsize=11, loc="left", pad=4)
        if note:
            axes.set_title(note, color=FAINT, fontsize=9, loc="right", pad=4)
        return shown

    for column, (title, image) in enumerate(panel.images.items()):
        note = f"{panel.psnr[title]:.2f} dB" if title in panel.psnr else ""
        show(0, column, image, panel.white, title, note)
    # Half of white: a pattern should not outshine the anatomy.
    show(1, 0, 0.5 * panel.sampling, 1.0, "sampling", f"{panel.acceleration:.2f}x")
    shown = None
    for title, residue in panel.residues.items():
        column = list(panel.images).index(title)
        shown = show(1, column, residue, 1 / panel.factor, f"residue x{panel.factor}", "")
    if shown is not None:
        left, bottom, wide, high = cell(1, 1)
        left, wide = left + 0.08 * wide, 0.84 * wide
        bar_axes = figure.add_axes((left, bottom + 0.46 * high, wide, 0.03 * high))
        bar = figure.colorbar(shown, cax=bar_axes, orientation="horizontal")
        bar.set_ticks([0, 0.5 / panel.factor, 1 / panel.factor])
        bar.ax.set_xticklabels(["0", f"{50 / panel.factor:g} %", f"{100 / panel.factor:g} %"])
        bar.ax.tick_params(colors=FAINT, labelsize=8, length=2)
        bar.outline.set_visible(False)
        figure.text(
            left, bottom + 0.53 * high,
            f"|image - target| x {panel.factor}\nin % of the volume's maximum",
            color=INK, fontsize=9, va="bottom", linespacing=1.5,
        )  # fmt: skip
    caption = f"{panel.volume}, slice {panel.slice} ({panel.chosen})"
    figure.text(
        gap / width, 0.5 * foot / height, f"{caption}. {subtitle}".strip(),
        color=FAINT, fontsize=8, va="center",
    )  # fmt: skip
    figure.savefig(path, format="png", facecolor=BACKGROUND)
