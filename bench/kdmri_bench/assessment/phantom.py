"""Image quality as a physicist measures it on the ACR phantom, through every network.

The phantom is the project's own, made of shapes whose k-space is known exactly
(`kdmri_bench.assessment.shapes`), after the American College of Radiology's large phantom: a disc
of 190 mm, arrays of small holes, spokes of three discs of low contrast. Tests and their names are
those of the ACR's Phantom Test Guidance; the idea of doing this to learned reconstruction is that
of the FDA's MRI-IQ-ETK (Tan, Delfino and Zeng, Bioengineering 2024, 11, 614). Counting is automatic
here, where the ACR has a reader count: figures are for comparing columns of this table with each
other, not with an accreditation's limits. Slice thickness and position, which reconstruction does
not change, are not among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_bench.assessment.networks import ZERO_FILLED, AssessedNetwork
from kdmri_bench.assessment.sections import Cell, Gallery, Picture, Section, Table
from kdmri_bench.assessment.shapes import Disc, Rectangle, drawn, sampled
from kdmri_bench.assessment.study import Study
from kdmri_bench.reporting.page.images import grey
from kdmri_bench.results.statistics import Values
from kdmri_edge.data.simulation import complex_noise
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.extras import require

__all__ = [
    "CONTRASTS",
    "FIELD_MM",
    "HOLES_MM",
    "diameters_mm",
    "ghosting_percent",
    "measure",
    "modulation",
    "seen_spokes",
    "uniformity_percent",
]

NAME: Final = "phantom"
TITLE: Final = "Image quality as on an ACR phantom"

DIFFERENCES: Final = ()
"""What margins can be stated for: nothing, one phantom is no sample."""

FIELD_MM: Final = 240.0
"""Field of view; a pixel of a matrix of 240 is 1 mm."""
DISC_MM: Final = 190.0
"""Diameter of the phantom, as the ACR's is inside."""
HOLES_MM: Final = (4.0, 3.0, 2.5, 2.0, 1.5, 1.25, 1.0)
"""Diameters of the holes of the resolution arrays; their distance is twice that."""
CONTRASTS: Final = (1.4, 2.5, 3.6, 5.1)
"""Contrast in percent of the four slices of low-contrast discs, as the ACR's."""

_SPOKES_MM: Final = tuple(float(d) for d in np.linspace(7.0, 1.5, 10))  # diameters of the discs
_RADII_MM: Final = (13.0, 26.0, 39.0)  # of a spoke's three discs from the middle
_NOISE: Final = 0.02  # standard deviation in the fully sampled image, over the disc's value
_DRAWS: Final = 4  # of the noise
_SMALLEST: Final = 96  # matrix below which the holes are no pixels apart
_RESOLVED: Final = 0.1  # modulation from which four holes count as told apart
_UNSEEN: Final = 97.5  # percentile of empty places that a disc has to stand above
_HOLDER: Final = 0.1  # value of the block that the holes are in


@dataclass(frozen=True, kw_only=True, slots=True)
class _Grid:
    """Pixels of the phantom's field of view."""

    matrix: int

    @property
    def mm(self) -> float:
        """Side of a pixel."""
        return FIELD_MM / self.matrix

    def pixels(self, millimetres: float) -> float:
        """Return a length in pixels."""
        return millimetres / self.mm

    def distance(self, row: float = 0.0, column: float = 0.0) -> Values:
        """Return each pixel's distance in mm from a point given in mm from the middle, [N, N]."""
        axis = (np.arange(self.matrix) - self.matrix // 2) * self.mm
        found: Values = np.hypot(axis[:, None] - row, axis[None, :] - column)
        return found


def measure(study: Study) -> Section:
    """Draw the phantom, undersample it, and measure what each network makes of it."""
    grid = _Grid(matrix=study.matrix)
    if study.matrix < _SMALLEST:
        return Section.without(
            NAME,
            TITLE,
            f"A matrix of {study.matrix} is too coarse for the phantom's holes; {_SMALLEST} pixels"
            " or more are needed.",
        )
    disc = drawn([_body(grid)], study.matrix)
    holes, places = _resolution(grid)
    arrays = drawn(holes, study.matrix)
    spokes = [drawn(_spokes(grid, contrast), study.matrix) for contrast in CONTRASTS]
    noisy = [_noisy(disc, n) for n in range(_DRAWS)]
    noisy += [
        _noisy(one, 100 * (n + 1) + draw) for n, one in enumerate(spokes) for draw in range(_DRAWS)
    ]
    kspace = sampled(np.stack([*noisy, arrays.astype(np.complex128)]))
    columns: dict[str, NDArray[Any]] = {"fully sampled": np.abs(np.stack([*noisy, arrays]))}
    refused: dict[str, list[str]] = {}
    with progress("Phantom", len(study.keys)) as advance:
        for network in study.each():
            key = ZERO_FILLED if network is None else network.key
            images, why = study.kept.arrays(
                NAME, key, partial(_made_by, network, study=study, kspace=kspace)
            )
            columns[key], refused[key] = images, why.tolist()
            advance(1)
    quality = tuple(_row(key, images, grid) for key, images in columns.items())
    modulations = {key: _modulations(images[-1], places) for key, images in columns.items()}
    notes = tuple(
        f"{key} refused {len(why)} of {len(kspace)} images, which are zero-filled: {why[0]}"
        for key, why in refused.items()
        if why
    )
    return Section(
        name=NAME,
        title=TITLE,
        measured=(
            "A phantom of discs with exactly known k-space, after the ACR's large phantom, with"
            f" complex noise of {100 * _NOISE:g} % ({_DRAWS} draws; the resolution arrays without)."
            " Percent integral uniformity: 100 (1 - (high - low) / (high + low)) of the means of"
            " 1 cm² within the inner 80 % of the diameter. Percent signal ghosting: 100 |(top +"
            " bottom) - (left + right)| / (2 mean), outside the disc. Geometry: diameters in four"
            f" directions at half the signal, {DISC_MM:g} mm true. Resolution: the smallest of"
            f" {len(HOLES_MM)} sizes of hole of which one of four rows of four is told apart (the"
            f" darkest hole brighter than the brightest gap by {100 * _RESOLVED:g} % of the"
            " contrast), along readout and along phase encode. Low contrast: spokes of three discs"
            " seen one after the other from the largest on, of 40 in four slices; a disc is seen"
            f" where it stands above {_UNSEEN:g} % of empty places."
            " Definitions: ACR Phantom Test Guidance; compare FDA MRI-IQ-ETK (Bioengineering 2024,"
            " 11, 614). Counts are automatic: compare rows, not accreditation limits."
        ),
        findings=notes,
        tables=(
            Table(
                title="Tests of the phantom",
                head=(
                    "image", "uniformity, %", "ghosting, %", "largest error of a diameter, mm",
                    "smallest holes along readout, mm", "along phase encode, mm",
                    "spokes seen of 40", "sharpness of the edge, mm",
                ),
                rows=quality,
                digits=2,
                note="Sharpness: from 10 to 90 % of the disc's edge along phase encode.",
            ),
            _modulation_table(modulations),
            _contrast_table(columns, grid),
        ),
        galleries=(_gallery(columns, grid),),
        facts={"refused": {key: len(why) for key, why in refused.items()}},
    )  # fmt: skip


def _made_by(
    network: AssessedNetwork | None, *, study: Study, kspace: NDArray[np.complex64]
) -> list[NDArray[Any]]:
    """Return a network's images, and why it refused some, in words."""
    images, why = study.reconstruct(network, kspace)
    return [images, np.array(why, dtype=np.str_)]


def _body(grid: _Grid) -> Disc:
    return Disc(row=0, column=0, radius=grid.pixels(DISC_MM / 2), value=1.0)


def _noisy(image: Values, seed: int) -> NDArray[np.complex128]:
    noisy: NDArray[np.complex128] = image + _NOISE * complex_noise(image.shape, seed=seed)
    return noisy


def _resolution(grid: _Grid) -> tuple[list[Disc | Rectangle], dict[float, Values]]:
    """Return the slice of the resolution arrays, and where their holes are.

    Returns:
        Shapes, and for each diameter the middles of its 4 x 4 holes, [4, 4, 2] in pixels from the
        middle of the image.
    """
    shapes: list[Disc | Rectangle] = [
        _body(grid),
        Rectangle(
            row=0, column=0, height=grid.pixels(100), width=grid.pixels(124), value=_HOLDER - 1
        ),
    ]
    places: dict[float, Values] = {}
    corners = {
        4.0: (-22.0, -42.0), 3.0: (-22.0, -10.0), 2.5: (-22.0, 16.0), 2.0: (-22.0, 40.0),
        1.5: (18.0, -36.0), 1.25: (18.0, -6.0), 1.0: (18.0, 24.0),
    }  # fmt: skip
    for diameter in HOLES_MM:
        steps = 2 * diameter * (np.arange(4) - 1.5)
        row, column = corners[diameter]
        # between pixels in rows, on them in others, as the ACR's arrays are staggered
        stagger = diameter / 2 * (np.arange(4) % 2)
        middles = np.zeros((4, 4, 2))
        middles[..., 0] = row + steps[:, None] + stagger[None, :]
        middles[..., 1] = column + steps[None, :] + stagger[:, None]
        middles = middles / grid.mm
        places[diameter] = middles
        shapes += [
            Disc(row=r, column=c, radius=grid.pixels(diameter / 2), value=1 - _HOLDER)
            for r, c in middles.reshape(-1, 2)
        ]
    return shapes, places


def _spokes(grid: _Grid, contrast: float) -> list[Disc | Rectangle]:
    shapes: list[Disc | Rectangle] = [_body(grid)]
    for (row, column), diameter in _discs():
        shapes.append(
            Disc(
                row=grid.pixels(row),
                column=grid.pixels(column),
                radius=grid.pixels(diameter / 2),
                value=contrast / 100,
            )
        )
    return shapes


def _discs(turn: float = 0.0) -> list[tuple[tuple[float, float], float]]:
    """Return middle (mm) and diameter of each disc, spoke by spoke, the largest first.

    Args:
        turn: Of all spokes, in parts of the angle between two of them; 0.5 is where there is none.
    """
    found = []
    for n, diameter in enumerate(_SPOKES_MM):
        angle = 2 * math.pi * (n + turn) / len(_SPOKES_MM)
        found += [
            ((radius * math.cos(angle), radius * math.sin(angle)), diameter) for radius in _RADII_MM
        ]
    return found


def _row(key: str, images: NDArray[Any], grid: _Grid) -> tuple[str | float | None, ...]:
    discs = images[:_DRAWS]
    _, places = _resolution(grid)
    found = _modulations(images[-1], places)
    limit = [
        min((d for d in HOLES_MM if found[d][axis] >= _RESOLVED), default=None) for axis in (0, 1)
    ]
    spokes = sum(_spokes_of(images, grid, n) for n in range(len(CONTRASTS)))
    return (
        key,
        _mean(uniformity_percent, discs, grid),
        _mean(ghosting_percent, discs, grid),
        float(np.mean([np.abs(diameters_mm(one, grid.mm) - DISC_MM).max() for one in discs])),
        *limit,
        spokes,
        float(np.mean([_edge_mm(one, grid) for one in discs])),
    )


def _mean(function: Callable[..., float], images: NDArray[Any], grid: _Grid) -> float:
    return float(np.mean([function(image, grid.mm) for image in images]))


def uniformity_percent(image: NDArray[Any], mm: float) -> float:
    """Return percent integral uniformity of the disc's image (ACR).

    Args:
        image: [N, N], the disc in the middle.
        mm: Side of a pixel.
    """
    convolve: Any = require("scipy.signal", extra="bench").fftconvolve
    grid = _Grid(matrix=len(image))
    reach = math.sqrt(100 / math.pi)  # radius of 1 cm², mm
    kernel = (grid.distance() * mm / grid.mm <= reach).astype(np.float64)
    kernel /= kernel.sum()
    means = convolve(np.asarray(image, np.float64), kernel, mode="same")
    inside = grid.distance() * mm / grid.mm <= 0.4 * DISC_MM - reach
    high, low = float(means[inside].max()), float(means[inside].min())
    return 100 * (1 - (high - low) / (high + low))


def ghosting_percent(image: NDArray[Any], mm: float) -> float:
    """Return percent signal ghosting: background along phase encode against that along readout.

    Args:
        image: [N, N], magnitudes, the disc in the middle; phase encode is the first axis.
        mm: Side of a pixel.
    """
    size = len(image)
    deep = max(2, int((FIELD_MM - DISC_MM) / 2 / mm * 0.7))  # clear of the disc and its ringing
    wide = slice(size // 2 - size // 6, size // 2 + size // 6)
    top, bottom = image[:deep, wide].mean(), image[-deep:, wide].mean()
    left, right = image[wide, :deep].mean(), image[wide, -deep:].mean()
    grid = _Grid(matrix=size)
    signal = float(image[grid.distance() <= 0.4 * DISC_MM].mean())
    return 100 * abs(float(top + bottom - left - right)) / (2 * signal)


def diameters_mm(image: NDArray[Any], mm: float) -> Values:
    """Return the disc's diameters along H, W and both diagonals, at half its signal.

    Args:
        image: [N, N], the disc in the middle.
        mm: Side of a pixel.
    """
    found = []
    for angle in np.arange(4) * np.pi / 4:
        both = [_edge(image, angle + turn, 0.5) for turn in (0.0, np.pi)]
        found.append(sum(both) * mm)
    return np.array(found)


def _edge(image: NDArray[Any], angle: float, part: float) -> float:
    """Return how many pixels from the middle the signal falls below a part of its value."""
    at: Any = require("scipy.ndimage", extra="bench").map_coordinates
    size = len(image)
    middle = size // 2
    steps = np.arange(0, size // 2 - 1, 0.05)
    points = np.stack([middle + steps * np.cos(angle), middle + steps * np.sin(angle)])
    profile = at(np.asarray(image, np.float64), points, order=1)
    signal = float(profile[: len(profile) // 2].mean())
    below = np.flatnonzero(profile < part * signal)
    outside = below[steps[below] > size / 5]
    return float(steps[outside[0]]) if len(outside) else float("nan")


def _edge_mm(image: NDArray[Any], grid: _Grid) -> float:
    """Return the width of the disc's edge along phase encode, from 90 to 10 % of the signal."""
    return (_edge(image, 0.0, 0.1) - _edge(image, 0.0, 0.9)) * grid.mm


def modulation(image: NDArray[Any], middles: Values) -> tuple[float, float]:
    """Return how well the best of four rows of four holes is told apart.

    Args:
        image: [N, N].
        middles: Of the holes, [4, 4, 2] in pixels from the image's middle.

    Returns:
        Along readout and along phase encode: the darkest hole minus the brightest gap between
        two, over the contrast; 1 for sharp holes, 0 or less where they run into each other.
    """
    at: Any = require("scipy.ndimage", extra="bench").map_coordinates
    given = np.asarray(image, np.float64)

    def values(points: Values) -> Values:
        found: Values = at(given, points.T + len(image) // 2, order=3)
        return found

    best = []
    for grid in (middles, middles.swapaxes(0, 1)):
        rows = []
        for holes in grid:
            gaps = (holes[1:] + holes[:-1]) / 2
            rows.append((values(holes).min() - values(gaps).max()) / (1 - _HOLDER))
        best.append(float(max(rows)))
    return best[0], best[1]


def _modulations(
    image: NDArray[Any], places: dict[float, Values]
) -> dict[float, tuple[float, float]]:
    return {diameter: modulation(image, middles) for diameter, middles in places.items()}


def _modulation_table(found: dict[str, dict[float, tuple[float, float]]]) -> Table:
    head = ["image"]
    head += [f"{d:g} mm readout" for d in HOLES_MM] + [f"{d:g} mm phase" for d in HOLES_MM]
    rows: list[tuple[Cell, ...]] = [
        (key, *(own[d][0] for d in HOLES_MM), *(own[d][1] for d in HOLES_MM))
        for key, own in found.items()
    ]
    return Table(
        title="Resolution: modulation of the best row of holes",
        head=tuple(head),
        rows=tuple(rows),
        digits=2,
        note="1: sharp; 0 or less: holes run into each other.",
    )


def _spokes_of(images: NDArray[Any], grid: _Grid, contrast: int) -> float:
    """Return how many spokes are seen in the slice of one contrast, mean over draws."""
    start = _DRAWS * (contrast + 1)
    return float(np.mean(seen_spokes(images[start : start + _DRAWS], grid.mm)))


def seen_spokes(images: NDArray[Any], mm: float) -> list[int]:
    """Count spokes in images of one slice of low-contrast discs, drawn with different noise.

    Args:
        images: [draws, N, N].
        mm: Side of a pixel.

    Returns:
        Of each draw: spokes whose three discs are seen, from the largest on until one is not.
    """
    grid = _Grid(matrix=images.shape[-1])
    scale = grid.mm / mm  # a pixel of another size sees another part of the phantom
    full = _contrasts(images, grid, _discs(), scale)
    empty = _contrasts(images, grid, _discs(0.5), scale)
    sizes = len(_RADII_MM)
    counts = []
    for draw in range(len(images)):
        seen = 0
        for spoke in range(len(_SPOKES_MM)):
            own = slice(spoke * sizes, (spoke + 1) * sizes)
            # neighbours in size serve as well: three empty places a draw would be few
            near = slice(max(0, spoke - 1) * sizes, (spoke + 2) * sizes)
            limit = float(np.percentile(empty[:, near], _UNSEEN))
            if not (full[draw, own] > limit).all():
                break
            seen += 1
        counts.append(seen)
    return counts


def _contrasts(
    images: NDArray[Any],
    grid: _Grid,
    discs: Sequence[tuple[tuple[float, float], float]],
    scale: float,
) -> Values:
    """Return the mean of each disc minus that of a ring around it, [draws, discs]."""
    found = np.zeros((len(images), len(discs)))
    for n, ((row, column), diameter) in enumerate(discs):
        distance = grid.distance(row * scale, column * scale)
        radius = diameter / 2 * scale
        inside = distance <= max(radius, grid.mm / math.sqrt(math.pi))
        ring = (distance > radius + 1 * grid.mm) & (distance <= radius + 3 * grid.mm)
        found[:, n] = images[:, inside].mean(1) - images[:, ring].mean(1)
    return found


def _contrast_table(columns: dict[str, NDArray[Any]], grid: _Grid) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (key, *(_spokes_of(images, grid, n) for n in range(len(CONTRASTS))))
        for key, images in columns.items()
    ]
    return Table(
        title="Low contrast: spokes seen of 10",
        head=("image", *(f"{contrast:g} %" for contrast in CONTRASTS)),
        rows=tuple(rows),
        digits=1,
        note=f"Mean of {_DRAWS} draws of the noise.",
    )


def _gallery(columns: dict[str, NDArray[Any]], grid: _Grid) -> Gallery:
    middle = grid.matrix // 2
    near, block = int(grid.pixels(48)), int(grid.pixels(66))
    low, wide = slice(middle - near, middle + near), slice(middle - block, middle + block)
    last = _DRAWS * len(CONTRASTS)  # first draw of the slice of most contrast
    shown = (
        ("Resolution arrays", -1, (wide, wide), 0.0, 1.1),
        (f"Low contrast, {CONTRASTS[-1]:g} %", last, (low, low), 0.95, 1.1),
        (
            "Uniformity and ghosts, white at 10 % of the signal",
            0,
            (slice(None), slice(None)),
            0,
            0.1,
        ),
    )
    pictures = [
        Picture(
            title=title,
            tiles=tuple(
                grey(key, f"{title}, {key}", images[n][place] - black, white - black)
                for key, images in columns.items()
            ),
        )
        for title, n, place, black, white in shown
    ]
    return Gallery(title="The phantom, through every network", pictures=tuple(pictures))
