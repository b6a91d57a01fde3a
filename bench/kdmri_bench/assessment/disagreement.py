"""Where networks disagree most: regions to look at, and which of the two is nearer to the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_bench.assessment.networks import ZERO_FILLED
from kdmri_bench.assessment.sections import (
    Gallery,
    Measure,
    Picture,
    Section,
    Table,
    over_subjects,
)
from kdmri_bench.assessment.study import Images, Pair, Study
from kdmri_bench.reporting.page.images import Tile, grey, hot
from kdmri_bench.results.statistics import Values
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.extras import require

__all__ = ["WINDOW", "Region", "local_rms", "measure", "most_different"]

NAME: Final = "disagreement"
TITLE: Final = "Where networks disagree"

WINDOW: Final = 9
"""Side in pixels of the square windows that differences are averaged in: about a small lesion."""

DIFFERENCES: Final = ("worst_windows_percent",)
"""What margins can be stated for."""

_SHOWN: Final = 3  # regions of each pair
_SIDE: Final = 64  # of an enlarged region, pixels
_WORST: Final = 99.0  # percentile of the windows that count as greatest disagreement
_ANATOMY: Final = 0.05  # share of the volume's maximum below which a window shows air
_FACTORS: Final = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """A window in which two networks differ.

    Attributes:
        volume: index of the volume.
        slice: index of the slice within what is assessed.
        row: of the window's middle pixel.
        column: the same.
        rms: root mean square of the difference in the window, over the volume's maximum.
        candidate: error of the candidate there, against the fully sampled image, likewise.
        reference: error of the reference there.
    """

    volume: int
    slice: int
    row: int
    column: int
    rms: float
    candidate: float
    reference: float


def local_rms(difference: NDArray[Any]) -> Values:
    """Return the root mean square of [S, H, W] in windows of `WINDOW` pixels, per slice."""
    uniform: Any = require("scipy.ndimage", extra="bench").uniform_filter
    squares = np.asarray(difference, np.float64) ** 2
    mean = uniform(squares, size=(0, WINDOW, WINDOW), mode="constant")
    rms: Values = np.sqrt(np.maximum(mean, 0))
    return rms


def most_different(
    volume: int, candidate: Images, reference: Images, target: Images, count: int
) -> list[Region]:
    """Return the windows of a volume in which two networks differ most, the worst first.

    Windows do not overlap; those of one slice are at least two windows apart.

    Args:
        volume: Index of the volume, for the result.
        candidate: Magnitudes [S, H, W].
        reference: Of the other network.
        target: Fully sampled.
        count: How many.
    """
    peak = float(target.max()) or 1.0
    rms = local_rms(candidate - reference) / peak
    ours, theirs = local_rms(candidate - target) / peak, local_rms(reference - target) / peak
    left, found = rms.copy(), []
    for _ in range(count):
        n, row, column = (int(i) for i in np.unravel_index(int(left.argmax()), left.shape))
        if left[n, row, column] <= 0:
            break
        found.append(
            Region(
                volume=volume,
                slice=n,
                row=row,
                column=column,
                rms=float(rms[n, row, column]),
                candidate=float(ours[n, row, column]),
                reference=float(theirs[n, row, column]),
            )
        )
        reach = 2 * WINDOW
        left[n, max(0, row - reach) : row + reach, max(0, column - reach) : column + reach] = 0
    return found


def measure(study: Study) -> Section:
    """Find the regions of greatest disagreement of each pair, and show them."""
    pairs = list(study.pairs())
    if not pairs:
        return Section.without(
            NAME, TITLE, "There is nothing to compare: one network, in one precision."
        )
    measures: list[Measure] = []
    rows: list[tuple[str | float | None, ...]] = []
    galleries: list[Gallery] = []
    regions: dict[str, list[dict[str, Any]]] = {}
    with progress("Disagreement", len(pairs)) as advance:
        for pair in pairs:
            found, own, row = _compared(study, pair)
            measures.append(own)
            rows.append(row)
            key = f"{pair.candidate.key} against {pair.reference.key}"
            regions[key] = [_described(study, region) for region in found]
            if found:
                galleries.append(_gallery(study, pair, found))
            advance(1)
    if all(row[2] is None for row in rows):
        return Section.without(
            NAME, TITLE, "The images are the same everywhere, or the volumes are blank."
        )
    return Section(
        name=NAME,
        title=TITLE,
        measured=(
            f"Root mean square of the difference of two networks' images in windows of {WINDOW} x"
            f" {WINDOW} pixels, in percent of the volume's maximum; windows that show air are left"
            f" out. In the {100 - _WORST:g} % of windows of greatest disagreement the errors of"
            " both against the fully sampled image are compared: the last columns say which of"
            " the two is nearer to the truth where they differ."
        ),
        measures=tuple(measures),
        tables=(
            Table(
                title="How much they differ, % of the volume's maximum",
                head=("network", "against", "median", "99th percentile", "largest",
                      "candidate nearer to the truth, % of the worst windows"),
                rows=tuple(rows),
                digits=2,
                note="Mean over volumes; the largest of all of them.",
            ),
        ),
        galleries=tuple(galleries),
        facts={"regions": regions},
    )  # fmt: skip


def _compared(
    study: Study, pair: Pair
) -> tuple[list[Region], Measure, tuple[str | float | None, ...]]:
    """Compare a pair on all volumes: its worst regions, its measure, and its row of the table."""
    ours, theirs = study.images(pair.candidate.key), study.images(pair.reference.key)
    gains, nearer, spread, found = [], [], [], []
    for n, volume in enumerate(study.volumes):
        target = volume.target
        peak = float(target.max())
        if not peak > 0:
            gains.append(float("nan"))
            continue
        seen = local_rms(target) > _ANATOMY * peak
        rms = (local_rms(ours[n] - theirs[n]) / peak)[seen]
        a, b = local_rms(ours[n] - target)[seen] / peak, local_rms(theirs[n] - target)[seen] / peak
        if not rms.max() > 0:
            gains.append(float("nan"))
            continue
        worst = rms >= np.percentile(rms, _WORST)
        gains.append(100 * float((b - a)[worst].mean()))
        nearer.append(100 * float((a < b)[worst].mean()))
        spread.append([100 * float(np.percentile(rms, q)) for q in (50, 99, 100)])
        found += most_different(n, ours[n], theirs[n], target, _SHOWN)
    found.sort(key=lambda region: -region.rms)
    own = over_subjects(
        DIFFERENCES[0],
        "change in error where they differ most (negative: candidate further from the truth)",
        pair.candidate.key,
        gains,
        study.subjects,
        against=pair.reference.key,
        unit="% of maximum",
        digits=2,
        seed=study.options.seed,
    )
    figures: list[float | None] = [None] * 4
    if spread:
        median, high, _ = np.mean(spread, axis=0)
        largest = max(values[2] for values in spread)
        figures = [float(median), float(high), largest, float(np.mean(nearer))]
    return found[:_SHOWN], own, (pair.candidate.key, pair.reference.key, *figures)


def _described(study: Study, region: Region) -> dict[str, Any]:
    volume = study.volumes[region.volume]
    return {
        "volume": volume.case.name,
        "slice": volume.slices[region.slice],
        "row": region.row,
        "column": region.column,
        "rms": region.rms,
        "error_candidate": region.candidate,
        "error_reference": region.reference,
    }


def _gallery(study: Study, pair: Pair, regions: Sequence[Region]) -> Gallery:
    return Gallery(
        title=f"{pair.candidate.key} against {pair.reference.key}",
        pictures=tuple(_picture(study, pair, region) for region in regions),
        note="White is the 99.5th percentile of the fully sampled slice. The frame is where the"
        " enlarged pictures are from; differences are shown times the factor below them.",
    )


def _picture(study: Study, pair: Pair, region: Region) -> Picture:
    volume, n = study.volumes[region.volume], region.slice
    target = volume.target
    peak = float(target.max())
    images = {
        "fully sampled": target[n] / peak,
        ZERO_FILLED: study.images(ZERO_FILLED)[region.volume][n] / peak,
        pair.reference.key: study.images(pair.reference.key)[region.volume][n] / peak,
        pair.candidate.key: study.images(pair.candidate.key)[region.volume][n] / peak,
    }
    white = float(np.percentile(images["fully sampled"], 99.5)) or 1.0
    place = _around(region, target.shape[1:])
    name = volume.case.name
    shown, around = _to_find_it(images[pair.candidate.key], place)
    whole = grey(
        f"{pair.candidate.key}, whole slice", f"{name}, slice {volume.slices[n]}",
        _turned(_framed(shown, around, white)), white,
    )  # fmt: skip
    tiles = [whole]
    tiles += [
        grey(title, f"{title}, region of {name}", _turned(image[place]), white)
        for title, image in images.items()
    ]
    differences = {
        "difference": images[pair.candidate.key] - images[pair.reference.key],
        f"error of {pair.reference.key}": images[pair.reference.key] - images["fully sampled"],
        f"error of {pair.candidate.key}": images[pair.candidate.key] - images["fully sampled"],
    }
    high = max(float(np.abs(values[place]).max()) for values in differences.values()) or 1.0
    factor = max((f for f in _FACTORS if f * high <= 1.0), default=_FACTORS[0])
    tiles += [_error(title, name, values[place], factor) for title, values in differences.items()]
    nearer = pair.candidate.key if region.candidate < region.reference else pair.reference.key
    title = (
        f"{name}, slice {volume.slices[n]}, row {region.row}, column {region.column}:"
        f" {100 * region.rms:.1f} % apart; errors {100 * region.candidate:.1f} %"
        f" ({pair.candidate.key}) and {100 * region.reference:.1f} % ({pair.reference.key});"
        f" nearer to the truth: {nearer}"
    )
    return Picture(title=title, tiles=tuple(tiles))


def _error(title: str, name: str, values: NDArray[Any], factor: int) -> Tile:
    return hot(
        f"{title}, x {factor}", f"{title}, region of {name}", _turned(np.abs(values)) * factor
    )


def _turned(image: NDArray[Any]) -> Values:
    """Turn an image so that phase encode runs across, as the other reports show it."""
    return np.asarray(np.rot90(image), np.float64)


def _around(region: Region, shape: tuple[int, ...]) -> tuple[slice, slice]:
    parts = []
    for middle, size in zip((region.row, region.column), shape, strict=True):
        side = min(_SIDE, size)
        start = min(max(0, middle - side // 2), size - side)
        parts.append(slice(start, start + side))
    return parts[0], parts[1]


def _to_find_it(
    image: NDArray[Any], place: tuple[slice, slice]
) -> tuple[NDArray[Any], tuple[slice, slice]]:
    """Return a slice, at half its size where it is large, and a region of it.

    It shows where the region lies, which the enlarged pictures show in full: a quarter of the
    page's bytes is enough for that.
    """
    if min(image.shape) < 2 * _SIDE:
        return image, place
    height, width = (size // 2 for size in image.shape)
    halved = image[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean((1, 3))
    rows, columns = (slice(part.start // 2, part.stop // 2) for part in place)
    return halved, (rows, columns)


def _framed(image: NDArray[Any], place: tuple[slice, slice], white: float) -> Values:
    """Return a copy with a white frame around a region."""
    framed = np.array(image, np.float64)
    rows, columns = place
    framed[[rows.start, rows.stop - 1], columns] = white
    framed[rows, [columns.start, columns.stop - 1]] = white
    return framed
