"""Lesions that are known exactly: put into fully sampled images before they are undersampled.

A lesion is a disc of some diameter, added to the image with its contrast times the mean of the
tissue that it lies in, so that the tissue is brighter there by that share (darker in T1w). Each
slice is reconstructed twice, with lesions and without, from the same noise: what the lesions
changed of the image is told exactly, and model observers (`assessment.observers`) are asked which
of the patches of the same places hold one.

Lesions lie at plausible places: all around is tissue, away from the edge of the head, from real
lesions and from each other, and as even as half of the tissue is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_bench.assessment.data import AssessedVolume
from kdmri_bench.assessment.lesions import caution
from kdmri_bench.assessment.networks import ZERO_FILLED
from kdmri_bench.assessment.observers import Hotelling, NonPrewhitening, difference_of_gaussians
from kdmri_bench.assessment.sections import Section, Table, of_interval
from kdmri_bench.assessment.study import Study, shown
from kdmri_bench.planning.sources import Source
from kdmri_bench.results.statistics import Interval, Values, percentiles, resampling_weights
from kdmri_edge.data.simulation import complex_noise
from kdmri_edge.errors import DataError
from kdmri_edge.models.protocol import reads_coils
from kdmri_edge.physics.operators import as_network_reads, zero_filled
from kdmri_edge.runtime.inputs import NetworkInput
from kdmri_edge.runtime.pipeline import Pipeline
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.extras import require

__all__ = [
    "DROP",
    "RESAMPLES",
    "Areas",
    "Grid",
    "Scene",
    "area_weights",
    "areas",
    "disc",
    "false_structures",
    "find_places",
    "first_drop",
    "inserted",
    "make_scene",
    "patches",
    "response_pairs",
    "retained_contrast",
    "tissue",
]

RESAMPLES: Final = 1000
"""Of subjects and their places: each draws the pairs of all conditions anew."""

DROP: Final = 0.02
"""A student falls behind its teacher where the area under its ROC curve is so much smaller."""

OBSERVERS: Final = ("NPWE", "CHO")

PATCH: Final = 33
"""Pixels along each axis of a patch."""

_LARGEST_SPREAD: Final = 1.25  # of pixel sizes: observers expect one size of the signal
_APART_MM: Final = 24.0
_FROM_EDGE_MM: Final = 12.0
_SUBPIXELS: Final = 8
_DARK: Final = 0.25  # of the 98th percentile of a slice: air, and fluid in FLAIR
_FALSE_MM: Final = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """What is inserted.

    Attributes:
        sizes_mm: diameters.
        contrasts: as a share of the tissue's mean.
        noise: standard deviation of the k-space samples' complex noise (orthonormal transform), as
            a share of the volume's maximum.
        places: most lesions in a slice.
        seed: of places and noise.
    """

    sizes_mm: tuple[float, ...] = (2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
    contrasts: tuple[float, ...] = (0.05, 0.1, 0.2)
    noise: float = 0.02
    places: int = 12
    seed: int = 0

    @property
    def conditions(self) -> list[tuple[float, float]]:
        """All pairs of size and contrast."""
        return [(size, contrast) for size in self.sizes_mm for contrast in self.contrasts]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scene:
    """A fully sampled slice and where lesions can be put into it.

    Attributes:
        image: magnitudes float32 [H, W], in the volume's unit.
        noise: what is added to the image, complex64 [H, W]: white, so that it is white in k-space.
        places: centres (h, w), intp [K, 2].
        levels: mean of the tissue at each place, [K].
        tissue: where false structures are looked for, bool [H, W].
        pixel_mm: size of a pixel along H and W, taken as square.
        sign: +1 where lesions are bright, -1 where they are dark.
        subject: whom it shows.
    """

    image: NDArray[np.float32]
    noise: NDArray[np.complex64]
    places: NDArray[np.intp]
    levels: Values
    tissue: NDArray[np.bool_]
    pixel_mm: float
    sign: int
    subject: str


def disc(diameter_mm: float, pixel_mm: float, size: int) -> Values:
    """Return the share of each pixel that a disc around the middle pixel covers, [n, n].

    Args:
        diameter_mm: Of the disc.
        pixel_mm: Of the pixels.
        size: n, odd.

    Raises:
        DataError: The disc is larger than the patch, or a number makes no sense.
    """
    if size < 1 or size % 2 == 0 or not 0 < diameter_mm <= size * pixel_mm:
        raise DataError(
            f"A disc of {diameter_mm:g} mm does not fit into {size} pixels of {pixel_mm:g} mm.",
            "Give an odd number of pixels that holds it.",
        )
    fine = (np.arange(size * _SUBPIXELS) + 0.5) / _SUBPIXELS - size / 2
    inside = np.hypot(fine[:, None], fine[None, :]) * pixel_mm <= diameter_mm / 2
    cells = inside.reshape(size, _SUBPIXELS, size, _SUBPIXELS)
    return np.asarray(cells.mean((1, 3)), np.float64)


def _odd(millimetres: float, pixel_mm: float) -> int:
    return 2 * int(np.ceil(millimetres / pixel_mm / 2)) + 1


def tissue(image: NDArray[Any], pixel_mm: float) -> NDArray[np.bool_]:
    """Return where a slice shows tissue well inside of the head, bool [H, W].

    Pixels below a quarter of the slice's 98th percentile are air or fluid; the head is the largest
    connected part of the others, with its holes, without a margin of 12 mm.
    """
    ndimage: Any = require("scipy.ndimage", extra="bench")
    bright = np.asarray(image) > _DARK * float(np.percentile(image, 98))
    labels, count = ndimage.label(bright)
    if not count:
        return np.zeros(np.shape(image), bool)
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    head = ndimage.binary_fill_holes(labels == largest)
    deep = ndimage.distance_transform_edt(np.pad(head, 1))[1:-1, 1:-1] * pixel_mm
    found: NDArray[np.bool_] = bright & (deep > _FROM_EDGE_MM)
    return found


def find_places(
    image: NDArray[Any],
    pixel_mm: float,
    *,
    largest_mm: float,
    count: int,
    seed: Sequence[int] | int = 0,
    lesions: NDArray[np.bool_] | None = None,
) -> NDArray[np.intp]:
    """Draw places where lesions may lie.

    Around each, as far as the largest lesion reaches and 2 mm more, all is tissue and no real
    lesion; the standard deviation over the mean there is at most the median of all such places.
    Places are 24 mm apart.

    Args:
        image: Magnitudes [H, W].
        pixel_mm: Of its pixels.
        largest_mm: Diameter of the largest lesion.
        count: Most places.
        seed: Of the drawing.
        lesions: Where real ones are, [H, W].

    Returns:
        Centres (h, w), [K, 2]; none where there is no such place.
    """
    ndimage: Any = require("scipy.ndimage", extra="bench")
    inner = tissue(image, pixel_mm)
    if lesions is not None:
        inner &= ~np.asarray(lesions, bool)
    reach = disc(largest_mm + 4.0, pixel_mm, _odd(largest_mm + 4.0, pixel_mm)) > 0
    half, patch = reach.shape[0] // 2, PATCH // 2
    allowed = ndimage.binary_erosion(inner, reach)
    border = max(half, patch)
    allowed[:border] = allowed[-border:] = allowed[:, :border] = allowed[:, -border:] = False
    candidates = np.argwhere(allowed)
    if not len(candidates):
        return candidates
    values = np.asarray(image, np.float64)
    around = reach / reach.sum()
    mean = ndimage.convolve(values, around, mode="nearest")
    square = ndimage.convolve(values**2, around, mode="nearest")
    uneven = np.sqrt(np.maximum(square - mean**2, 0)) / np.maximum(mean, 1e-30)
    own = uneven[tuple(candidates.T)]
    candidates = candidates[own <= np.median(own)]
    order = np.random.default_rng(seed).permutation(len(candidates))
    chosen: list[NDArray[np.intp]] = []
    for place in candidates[order]:
        away = [np.hypot(*(place - other)) * pixel_mm >= _APART_MM for other in chosen]
        if all(away):
            chosen.append(place)
        if len(chosen) == count:
            break
    return np.array(chosen, np.intp).reshape(-1, 2)


def make_scene(
    image: NDArray[Any],
    pixel_mm: float,
    grid: Grid,
    *,
    peak: float,
    seed: Sequence[int],
    subject: str,
    contrast: str | None = None,
    lesions: NDArray[np.bool_] | None = None,
) -> Scene | None:
    """Prepare a slice.

    Args:
        image: Fully sampled magnitudes [H, W].
        pixel_mm: Of its pixels.
        grid: What will be inserted.
        peak: The volume's maximum, which the noise is a share of.
        seed: Of this slice.
        subject: Whom it shows.
        contrast: In "T1w" lesions are dark.
        lesions: Where real ones are.

    Returns:
        None where no lesion can be put.
    """
    ndimage: Any = require("scipy.ndimage", extra="bench")
    largest = max(grid.sizes_mm)
    places = find_places(
        image, pixel_mm, largest_mm=largest, count=grid.places, seed=seed, lesions=lesions
    )
    if not len(places):
        return None
    around = disc(largest, pixel_mm, _odd(largest, pixel_mm))
    mean = ndimage.convolve(np.asarray(image, np.float64), around / around.sum(), mode="nearest")
    drawn = int(np.random.default_rng(seed).integers(2**31))
    noise = np.float32(grid.noise * peak) * complex_noise(np.shape(image), seed=drawn)
    inner = tissue(image, pixel_mm)
    return Scene(
        image=np.asarray(image, np.float32),
        noise=noise.astype(np.complex64, copy=False),
        places=places,
        levels=mean[tuple(places.T)],
        tissue=inner if lesions is None else inner & ~lesions,
        pixel_mm=pixel_mm,
        sign=-1 if (contrast or "").lower().startswith("t1") else 1,
        subject=subject,
    )


def inserted(scene: Scene, size_mm: float, contrast: float) -> NDArray[np.complex64]:
    """Return the slice with a lesion at each place and its noise, complex64 [H, W].

    Args:
        scene: The slice.
        size_mm: Diameter.
        contrast: Of each, as a share of its tissue's mean; 0 inserts none.
    """
    image = scene.image.astype(np.complex64) + scene.noise
    if contrast:
        size = _odd(size_mm, scene.pixel_mm)
        profile, half = disc(size_mm, scene.pixel_mm, size), size // 2
        for (h, w), level in zip(scene.places, scene.levels, strict=True):
            part = (slice(h - half, h + half + 1), slice(w - half, w + half + 1))
            image[part] += (scene.sign * contrast * level * profile).astype(np.float32)
    return image


def patches(image: NDArray[Any], scene: Scene) -> Values:
    """Cut the places out of an image [H, W], as shares of their tissue's mean, [K, n, n].

    Dark lesions are turned bright, so that observers expect one sign.
    """
    half = PATCH // 2
    cut = [image[h - half : h + half + 1, w - half : w + half + 1] for h, w in scene.places]
    return np.asarray(cut, np.float64) * scene.sign / scene.levels[:, None, None]


def retained_contrast(present: Values, absent: Values, profiles: Values, contrast: float) -> Values:
    """Return how much of each inserted lesion an image shows: 1 where all of it is there.

    The change of the image is projected on the lesion: <present - absent, s> / <s, s>.

    Args:
        present: Patches with lesions, [K, n, n].
        absent: The same without, from the same noise.
        profiles: The lesion at contrast 1, [n, n], or of each place, [K, n, n].
        contrast: What was inserted.

    Returns:
        [K].
    """
    signal = contrast * np.broadcast_to(profiles, present.shape)
    change = np.sum((present - absent) * signal, (1, 2))
    return np.asarray(change / np.sum(signal**2, (1, 2)))


def false_structures(
    reconstruction: NDArray[Any], scene: Scene, least: float, size_mm: float = _FALSE_MM
) -> int:
    """Count bright spots in tissue that the fully sampled image does not have.

    The error, reconstruction minus fully sampled image without noise, is averaged over a disc of
    the size of a lesion, minus the mean of a ring around it; a local maximum that is at least so
    large a share of the tissue's mean would pass for a lesion of that contrast.

    Args:
        reconstruction: Of the slice without lesions, [H, W].
        scene: The slice.
        least: Contrast from which a spot counts.
        size_mm: Diameter of the disc; the ring lies 1 to 4 mm outside.
    """
    ndimage: Any = require("scipy.ndimage", extra="bench")
    pixel = scene.pixel_mm
    size = _odd(size_mm + 8.0, pixel)
    spot = disc(size_mm, pixel, size)
    ring = disc(size_mm + 8.0, pixel, size) - disc(size_mm + 2.0, pixel, size)
    kernel = spot / spot.sum() - ring / ring.sum()
    error = (np.asarray(reconstruction, np.float64) - scene.image) * scene.sign
    mean = ndimage.convolve(scene.image.astype(np.float64), spot / spot.sum(), mode="nearest")
    seen = ndimage.convolve(error, kernel, mode="nearest") / np.maximum(mean, 1e-30)
    top = ndimage.maximum_filter(seen, size=_odd(size_mm, pixel), mode="nearest")
    return int(np.sum((seen >= least) & (seen == top) & scene.tissue))


def _pairs(absent: Values, present: Values) -> Values:
    """Return for each pair of responses 1, 1/2 or 0, [P, A]: is that with the signal larger?"""
    more = present[:, None] - absent[None, :]
    return np.where(more > 0, 1.0, np.where(more < 0, 0.0, 0.5))


def response_pairs(
    absent: Values, present: Values, signal: Values, pixel_mm: float
) -> dict[str, tuple[Values, Values]]:
    """Ask both observers about the patches of the same places.

    The channelised Hotelling observer is trained on one half of the places and tested on the other,
    and the other way round; responses of different trainings are not compared.

    Args:
        absent: Patches without lesions, [K, n, n].
        present: Patches with, [K, n, n].
        signal: The lesion, [n, n].
        pixel_mm: Of the pixels.

    Returns:
        By observer (`OBSERVERS`) the pairs' values [K, K] and which of them count [K, K]; the
        second is left out where there are too few places to train on.
    """
    npwe = NonPrewhitening.of(signal, pixel_mm)
    count = len(absent)
    first, second = OBSERVERS
    found = {
        first: (_pairs(npwe.responses(absent), npwe.responses(present)), np.ones((count, count)))
    }
    channels = difference_of_gaussians(absent.shape[1])
    folds = np.arange(count) % 2
    if count // 2 > len(channels):
        values, counted = np.zeros((count, count)), np.zeros((count, count))
        for fold in (0, 1):
            train, test = folds != fold, np.flatnonzero(folds == fold)
            cho = Hotelling.trained(absent[train], present[train], channels)
            own = _pairs(cho.responses(absent[test]), cho.responses(present[test]))
            values[np.ix_(test, test)] = own
            counted[np.ix_(test, test)] = 1.0
        found[second] = (values, counted)
    return found


def area_weights(subjects: Sequence[str], resamples: int, seed: int) -> Values:
    """Return how often each place is drawn, [1 + R, K]: first all once, then by subject."""
    own = np.ones((1, len(subjects)))
    if len(set(subjects)) < 2:
        return own
    return np.concatenate([own, resampling_weights(subjects, resamples, seed)])


def areas(pairs: Values, counted: Values, weights: Values) -> Values:
    """Return the area under the ROC curve for each row of weights, [R]; see `roc_area`."""
    above = ((weights @ (pairs * counted)) * weights).sum(1)
    of = ((weights @ counted) * weights).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(above / of)


def _interval(drawn: Values, subjects: int) -> Interval:
    """Return the first value with the interval of the others, where there are any."""
    others = drawn[1:][np.isfinite(drawn[1:])]
    if len(others) < 2:
        return Interval(value=float(drawn[0]), low=None, high=None)
    low, high = percentiles(others, subjects)
    return Interval(value=float(drawn[0]), low=low, high=high)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Areas:
    """What observers make of one network's images, by size and contrast.

    Attributes:
        subjects: How many subjects the places are of.
        drawn: observer -> (size, contrast) -> areas of all places and of resamples, [1 + R].
        retained: (size, contrast) -> mean of the contrast retained, [1 + R].
        false: least contrast -> false structures in all slices.
    """

    subjects: int
    drawn: Mapping[str, Mapping[tuple[float, float], Values]]
    retained: Mapping[tuple[float, float], Values]
    false: Mapping[float, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "drawn": {
                observer: [[*condition, values.tolist()] for condition, values in own.items()]
                for observer, own in self.drawn.items()
            },
            "retained": [
                [*condition, values.tolist()] for condition, values in self.retained.items()
            ],
            "false": [[least, count] for least, count in self.false.items()],
        }

    @classmethod
    def of_json(cls, value: Mapping[str, Any], subjects: int) -> Areas:
        """Rebuild areas of so many subjects from `to_json`."""

        def by_condition(rows: Sequence[Sequence[Any]]) -> dict[tuple[float, float], Values]:
            return {(size, contrast): np.array(own) for size, contrast, own in rows}

        return cls(
            subjects=subjects,
            drawn={name: by_condition(rows) for name, rows in value["drawn"].items()},
            retained=by_condition(value["retained"]),
            false=dict(value["false"]),
        )

    def area(self, observer: str, condition: tuple[float, float]) -> Interval:
        """Return an area with its interval."""
        return _interval(self.drawn[observer][condition], self.subjects)

    def contrast(self, condition: tuple[float, float]) -> Interval:
        """Return the contrast retained with its interval."""
        return _interval(self.retained[condition], self.subjects)

    def behind(self, teacher: Areas, observer: str, condition: tuple[float, float]) -> Interval:
        """Return this area minus the teacher's, of the same places and resamples."""
        change = self.drawn[observer][condition] - teacher.drawn[observer][condition]
        return _interval(change, self.subjects)


FALSE: Final = (0.05, 0.1, 0.2)
"""Contrasts from which a false structure counts."""


def measure_scenes(
    scenes: Sequence[Scene],
    grid: Grid,
    reconstruct: Callable[[NDArray[np.complex64]], NDArray[Any]],
    weights: Values,
    *,
    advance: Callable[[int], object] = lambda _: None,
) -> Areas:
    """Reconstruct every slice with and without lesions, and ask the observers.

    Args:
        scenes: The slices; their pixels are of about one size.
        grid: What is inserted.
        reconstruct: From fully sampled complex images [S, H, W] to reconstructions [S, H, W].
        weights: See `area_weights`, of all places in the order of the slices.
        advance: Called with the number of slices that are finished.

    Raises:
        DataError: Pixels are of different sizes.
    """
    pixels = np.array([scene.pixel_mm for scene in scenes])
    if pixels.max() > _LARGEST_SPREAD * pixels.min():
        raise DataError(
            f"Pixels are of {pixels.min():.2f} to {pixels.max():.2f} mm, and observers look for one"
            " size of a lesion.",
            "Assess volumes of one resolution at a time.",
        )
    pixel = float(pixels.mean())

    def images(size_mm: float, contrast: float) -> list[NDArray[Any]]:
        made = []
        for scene in scenes:
            made.append(reconstruct(inserted(scene, size_mm, contrast)[None])[0])
            advance(1)
        return made

    without = images(0.0, 0.0)
    absent = np.concatenate([patches(i, s) for i, s in zip(without, scenes, strict=True)])
    drawn: dict[str, dict[tuple[float, float], Values]] = {}
    kept: dict[tuple[float, float], Values] = {}
    for condition in grid.conditions:
        made = images(*condition)
        present = np.concatenate([patches(i, s) for i, s in zip(made, scenes, strict=True)])
        own = [disc(condition[0], s.pixel_mm, PATCH) for s in scenes for _ in s.places]
        share = retained_contrast(present, absent, np.stack(own), condition[1])
        kept[condition] = weights @ share / weights.sum(1)
        signal = disc(condition[0], pixel, PATCH)
        for name, (pairs, counted) in response_pairs(absent, present, signal, pixel).items():
            drawn.setdefault(name, {})[condition] = areas(pairs, counted, weights)
    false = {
        least: sum(
            false_structures(image, scene, least)
            for image, scene in zip(without, scenes, strict=True)
        )
        for least in FALSE
    }
    subjects = len(set(subjects_of(scenes)))
    return Areas(subjects=subjects, drawn=drawn, retained=kept, false=false)


def first_drop(differences: Mapping[float, Interval]) -> float | None:
    """Return the largest size at which a student is `DROP` or more behind; None where at none.

    Args:
        differences: Area of the student minus that of the teacher, by size.
    """
    behind = [
        size
        for size, found in differences.items()
        if found.value is not None and found.value <= -DROP
    ]
    return max(behind, default=None)


NAME: Final = "inserted"
TITLE: Final = "Lesions that were inserted"

METHOD: Final = (
    "Discs are added to the fully sampled images before undersampling, with their contrast as a"
    " share of the tissue's mean, at places drawn in even tissue; white noise is added to k-space."
    " Each slice is reconstructed with and without them from the same noise. Contrast retained is"
    " the change of the image projected on the disc, 1 where all of it is there. The area under the"
    " ROC curve is the chance that a model observer prefers a patch with the disc to one without,"
    " of all places: a non-prewhitening observer with an eye filter (NPWE; Burgess, Li and Abbey"
    " 1997), and a channelised Hotelling observer (CHO; Myers and Barrett 1987) with ten dense"
    " differences of Gaussians (Abbey and Barrett 2001), trained on the other half of the places."
)


def scenes_of(
    volumes: Sequence[AssessedVolume],
    grid: Grid,
    *,
    slices: int,
    lesions: Sequence[NDArray[np.bool_] | None] | None = None,
) -> list[Scene]:
    """Choose slices of volumes, spread over the middle half of each, and places in them.

    Args:
        volumes: Their images.
        grid: What will be inserted.
        slices: Of each volume.
        lesions: Where real lesions of each volume are, [S, H, W].
    """
    found = []
    for number, volume in enumerate(volumes):
        target = volume.target
        peak = float(target.max())
        first, last = len(target) // 4, max(len(target) // 4, 3 * len(target) // 4 - 1)
        for n in dict.fromkeys(np.linspace(first, last, slices).round().astype(int).tolist()):
            voxel = volume.voxel_mm
            real = lesions[number] if lesions is not None else None
            scene = make_scene(
                target[n],
                1.0 if voxel is None else float(np.sqrt(voxel[1] * voxel[2])),
                grid,
                peak=peak,
                seed=[grid.seed, number, n],
                subject=volume.case.subject,
                contrast=volume.case.contrast,
                lesions=None if real is None else real[n],
            )
            if scene is not None:
                found.append(scene)
    return found


def subjects_of(scenes: Sequence[Scene]) -> list[str]:
    """Return the subject of each place."""
    return [scene.subject for scene in scenes for _ in scene.places]


def reconstruction_of(
    source: Source, pipeline: Pipeline | None
) -> Callable[[NDArray[np.complex64]], NDArray[Any]]:
    """Return what reconstructs fully sampled complex images [S, H, W] after undersampling them.

    Args:
        source: A network of one image.
        pipeline: The network; None gives the zero-filled images.
    """

    def reconstruct(images: NDArray[np.complex64]) -> NDArray[Any]:
        x_u = as_network_reads(
            zero_filled(images, source.mask), channels=source.spec.channels,
            magnitude=source.spec.magnitude_input,
        )  # fmt: skip
        if pipeline is None:
            return shown(x_u)
        return shown(pipeline.images(NetworkInput(zero_filled=x_u, mask=source.mask)))

    return reconstruct


def fully_sampled(images: NDArray[np.complex64]) -> NDArray[Any]:
    """Return the images themselves, with their noise, as a network of magnitudes gives them."""
    return shown(images.real)


def _as_json(make: Callable[[], Areas]) -> dict[str, Any]:
    return make().to_json()


QUICK: Final = Grid(sizes_mm=(2.0, 4.0, 8.0), contrasts=(0.1, 0.2))
"""What `kdmri-edge assess` inserts; the project's own record has the whole grid."""


def _area_name(observer: str, size_mm: float, contrast: float) -> str:
    return f"{observer.lower()}_{size_mm:g}mm_{100 * contrast:g}pc"


DIFFERENCES: Final = tuple(
    _area_name(observer, *condition) for condition in QUICK.conditions for observer in OBSERVERS
)
"""What margins can be stated for."""


def measure(study: Study) -> Section:
    """Insert lesions into slices of the volumes, and ask observers for them."""
    source = study.networks[0].source
    if reads_coils(source.spec):
        return Section.without(
            NAME, TITLE, "Lesions are inserted into scans of one coil, not into simulated coils."
        )
    grid = replace(QUICK, seed=study.options.seed)
    scenes = scenes_of(
        study.volumes, grid, slices=study.options.slices,
        lesions=[None if one is None else one.mask for one in study.annotations],
    )  # fmt: skip
    if not scenes:
        return Section.without(NAME, TITLE, "No slice has a place where all around is even tissue.")
    subjects = subjects_of(scenes)
    weights = area_weights(subjects, RESAMPLES, study.options.seed)
    steps = len(scenes) * (1 + len(grid.conditions))
    found: dict[str, Areas] = {}
    with progress("Inserting lesions", steps * (1 + len(study.networks))) as advance:
        for network in study.each():
            road = reconstruction_of(source, None if network is None else network.pipeline)
            key = ZERO_FILLED if network is None else network.key
            made = partial(measure_scenes, scenes, grid, road, weights, advance=advance)
            try:
                value = study.kept.values(NAME, key, partial(_as_json, made))
                found[key] = Areas.of_json(value, len(set(subjects)))
            except DataError as error:
                return Section.without(NAME, TITLE, str(error))
    measures, patients = [], len(set(subjects))
    for size, contrast in grid.conditions:
        what = f"{size:g} mm, {contrast:.0%}"
        for observer in next(iter(found.values())).drawn:
            name = _area_name(observer, size, contrast)
            for key, own in found.items():
                area = own.area(observer, (size, contrast))
                measures.append(
                    of_interval(name, f"ROC area, {observer}, {what}", key, area, subjects=patients)
                )
            for pair in study.pairs():
                ours, theirs = found[pair.candidate.key], found[pair.reference.key]
                behind = ours.behind(theirs, observer, (size, contrast))
                measures.append(
                    of_interval(
                        name, f"change in ROC area, {observer}, {what}", pair.candidate.key, behind,
                        subjects=patients, against=pair.reference.key,
                    )
                )  # fmt: skip
        for key, own in found.items():
            name = f"retained_{size:g}mm_{100 * contrast:g}pc"
            kept = own.contrast((size, contrast))
            measures.append(
                of_interval(name, f"contrast retained, {what}", key, kept, subjects=patients)
            )
    rows: tuple[tuple[str | float, ...], ...] = tuple(
        (key, *(own.false[least] / len(scenes) for least in FALSE)) for key, own in found.items()
    )
    return Section(
        name=NAME,
        title=TITLE,
        measured=(
            f"{METHOD} Here {len(subjects)} places in {len(scenes)} slices of"
            f" {patients} subjects; noise {grid.noise:.0%} of the volume's maximum."
        ),
        findings=tuple(text for text in (caution(patients),) if text),
        measures=tuple(measures),
        tables=(
            Table(
                title="False structures in a slice",
                head=("network", *(f"from {least:.0%}" for least in FALSE)),
                rows=rows,
                note="Bright spots of 4 mm in tissue that the fully sampled image does not have, by"
                " the contrast from which they count; noise makes some of them.",
                digits=1,
            ),
        ),
    )
