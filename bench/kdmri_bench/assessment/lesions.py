"""How much of the contrast of real lesions a reconstruction keeps.

What is measured is a section: a connected part of the annotation in one slice (pixels that share an
edge). Its contrast is the mean over the section minus the mean over its surroundings, and what is
retained of it is the contrast in the reconstruction over that in the fully sampled image: 1 where
nothing is lost, 0 where the lesion is as bright as what is around it, below 0 where it has turned
dark. A factor or an offset of the whole image cancels or scales alike, and blurring lowers it.

The surroundings are the pixels that are reached within `RING` steps to a neighbour from the
section, but not within `GAP` of any lesion, whose edge is drawn by hand and blurred by the scanner;
pixels of air (zero in the fully sampled image) are no surroundings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_bench.assessment.annotations import Annotation, nothing_beside
from kdmri_bench.assessment.data import AssessedVolume
from kdmri_bench.assessment.networks import ZERO_FILLED
from kdmri_bench.assessment.sections import Measure, Section, Table, of_interval
from kdmri_bench.assessment.study import STUDENT, Study
from kdmri_bench.results.statistics import (
    FEW_SUBJECTS,
    Interval,
    Values,
    percentiles,
    resampling_weights,
)
from kdmri_edge.errors import DataError
from kdmri_edge.utils.extras import require

__all__ = [
    "DEFINITION",
    "GAP",
    "GROUPS",
    "LEAST_CONTRAST",
    "LEAST_PIXELS",
    "LOSS",
    "RING",
    "SMALL",
    "AnnotatedVolume",
    "Figures",
    "LesionSection",
    "Sections",
    "annotated",
    "caution",
    "chosen",
    "contrasts",
    "figures",
    "find_sections",
    "interval_of",
    "measure",
    "retained",
    "weighted_quantile",
]

LEAST_PIXELS: Final = 4
"""Sections of fewer pixels are not measured: their mean says more of noise than of the lesion."""

SMALL: Final = 12
"""Up to so many pixels a section counts as small."""

RING: Final = 4
GAP: Final = 1

LEAST_CONTRAST: Final = 0.05
"""Of the mean of the surroundings; where a lesion's own contrast is less, no ratio is formed."""

LOSS: Final = 0.05
"""A section is lost to a student where it keeps so much less of the contrast than its teacher."""

RESAMPLES: Final = 2000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LesionSection:
    """A connected part of an annotation in one slice.

    Attributes:
        slice: number of the slice.
        inside: its pixels, indices into the flattened slice.
        around: those of its surroundings.
        contrast: in the fully sampled image, in its unit.
    """

    slice: int
    inside: NDArray[np.intp]
    around: NDArray[np.intp]
    contrast: float

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return len(self.inside)

    @property
    def is_small(self) -> bool:
        """Whether it is one of the small ones."""
        return self.pixels <= SMALL


@dataclass(frozen=True, kw_only=True, slots=True)
class Sections:
    """The sections of a volume.

    Attributes:
        kept: those that are measured.
        left_out: why how many others are not.
    """

    kept: tuple[LesionSection, ...]
    left_out: Mapping[str, int]


def _dilated(mask: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    ndimage: Any = require("scipy.ndimage", extra="bench")
    grown: NDArray[np.bool_] = ndimage.binary_dilation(mask, iterations=steps)
    return grown


def find_sections(
    reference: NDArray[Any], mask: NDArray[np.bool_], *, slices: Sequence[int] | None = None
) -> Sections:
    """Find the sections of lesions that can be measured.

    Args:
        reference: Magnitudes of the fully sampled images, [S, H, W].
        mask: Where lesions are, [S, H, W].
        slices: Numbers of the slices that are searched; None searches all.

    Raises:
        DataError: The mask is of another geometry.
    """
    if mask.shape != reference.shape:
        raise DataError(
            f"The mask has {list(mask.shape)} voxels, the volume {list(reference.shape)}.",
            "Give a mask on the volume's own grid.",
        )
    ndimage: Any = require("scipy.ndimage", extra="bench")
    kept: list[LesionSection] = []
    why = {
        f"of fewer than {LEAST_PIXELS} pixels": 0,
        "without surroundings": 0,
        f"of a contrast below {LEAST_CONTRAST:.0%} of the surroundings": 0,
    }
    small, bare, faint = why
    for number in range(len(mask)) if slices is None else slices:
        own = mask[number]
        if not own.any():
            continue
        image = np.asarray(reference[number], np.float64)
        labels, count = ndimage.label(own)
        free = ~_dilated(own, GAP) & (image > 0)
        for box, label in zip(ndimage.find_objects(labels), range(1, count + 1), strict=True):
            # the window holds all that dilation can reach, which is quicker than the whole slice
            window = tuple(slice(max(0, side.start - RING), side.stop + RING) for side in box)
            section = labels[window] == label
            if int(section.sum()) < LEAST_PIXELS:
                why[small] += 1
                continue
            around = _dilated(section, RING) & free[window]
            if not around.any():
                why[bare] += 1
                continue
            seen = image[window]
            level = float(seen[around].mean())
            contrast = float(seen[section].mean()) - level
            if not abs(contrast) >= LEAST_CONTRAST * level:
                why[faint] += 1
                continue
            kept.append(
                LesionSection(
                    slice=number,
                    inside=_indices(section, window, image.shape),
                    around=_indices(around, window, image.shape),
                    contrast=contrast,
                )
            )
    return Sections(kept=tuple(kept), left_out={name: n for name, n in why.items() if n})


def _indices(
    part: NDArray[np.bool_], window: tuple[slice, ...], shape: tuple[int, ...]
) -> NDArray[np.intp]:
    rows, columns = np.nonzero(part)
    found: NDArray[np.intp] = (rows + window[0].start) * shape[1] + columns + window[1].start
    return found


def contrasts(image: NDArray[Any], sections: Sequence[LesionSection]) -> Values:
    """Return the contrast of each section in images [S, H, W], in their unit."""
    flat = np.asarray(image).reshape(len(image), -1)
    return np.array(
        [
            flat[one.slice, one.inside].mean(dtype=np.float64)
            - flat[one.slice, one.around].mean(dtype=np.float64)
            for one in sections
        ],
        np.float64,
    )


def retained(
    reference: NDArray[Any], image: NDArray[Any], sections: Sequence[LesionSection]
) -> Values:
    """Return how much of the contrast of each section is left, 1 where all is.

    Args:
        reference: The fully sampled images that the sections were found in, [S, H, W].
        image: Reconstructions, [S, H, W].
        sections: What to measure.

    Raises:
        DataError: The images are of different shapes, or a reconstruction is not finite.
    """
    if np.shape(image) != np.shape(reference):
        raise DataError(
            f"A reconstruction has {list(np.shape(image))} pixels, the reference"
            f" {list(np.shape(reference))}.",
            "Compare images of one volume.",
        )
    if not np.isfinite(image).all():
        raise DataError("A reconstruction holds NaN or infinite values.", "Check the network.")
    return contrasts(image, sections) / contrasts(reference, sections)


def weighted_quantile(values: Values, weights: Values, level: float) -> Values:
    """Return a quantile of weighted values, for each row of weights.

    A value stands where the weight below it lies among the weight of all others, and between values
    lies a straight line; with equal weights that is NumPy's quantile.

    Args:
        values: [V].
        weights: [R, V], not negative, each row with a positive sum.
        level: Between 0 and 1.

    Returns:
        [R].
    """
    order = np.argsort(values)
    ordered, own = values[order], weights[:, order]
    below = np.cumsum(own, 1) - own
    others = own.sum(1, keepdims=True) - own
    found = np.empty(len(own))
    for row, weight in enumerate(own):
        drawn = weight > 0
        if drawn.sum() == 1:
            found[row] = ordered[drawn][0]
        else:
            found[row] = np.interp(level, below[row, drawn] / others[row, drawn], ordered[drawn])
    return found


def interval_of(
    subjects: Sequence[str],
    statistic: Callable[[Values], Values],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return a statistic of sections with its interval over subjects.

    Subjects are drawn with replacement, then their sections (`percentiles`).

    Args:
        subjects: Of each section.
        statistic: From weights of the sections [R, V] to [R].
        resamples: How often.
        seed: Of the drawing.

    Returns:
        Without ends where there is one subject alone.
    """
    own = float(statistic(np.ones((1, len(subjects))))[0])
    if len(set(subjects)) < 2:
        return Interval(value=own, low=None, high=None)
    drawn = statistic(resampling_weights(subjects, resamples, seed))
    low, high = percentiles(drawn, len(set(subjects)))
    return Interval(value=own, low=low, high=high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What a network retains of a group of sections.

    Attributes:
        sections: their number.
        median: of the contrast that is retained.
        low5: its 5th percentile.
        lost: share of sections that keep more than `LOSS` less than with the teacher; None without
            one.
        behind: median over sections of network minus teacher; None without one.
        by_subject: median of each subject.
        low5_by_subject: 5th percentile of each subject.
    """

    sections: int
    median: Interval
    low5: Interval
    lost: Interval | None
    behind: Interval | None
    by_subject: Mapping[str, float]
    low5_by_subject: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "sections": self.sections,
            "median": self.median.to_dict(),
            "low5": self.low5.to_dict(),
            "lost": None if self.lost is None else self.lost.to_dict(),
            "behind": None if self.behind is None else self.behind.to_dict(),
            "by_subject": dict(self.by_subject),
            "low5_by_subject": dict(self.low5_by_subject),
        }


def figures(
    values: Values,
    subjects: Sequence[str],
    teacher: Values | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Figures | None:
    """Sum up what is retained of a group of sections, with intervals over subjects.

    Args:
        values: Of each section, [V].
        subjects: Whose it is.
        teacher: The same of the teacher, [V]; None for the teacher itself.
        resamples: See `interval_of`.
        seed: See `interval_of`.

    Returns:
        None where there is no section.
    """
    if not len(values):
        return None

    def quantile(of: Values, level: float) -> Interval:
        return interval_of(
            subjects,
            lambda weights: weighted_quantile(of, weights, level),
            resamples=resamples,
            seed=seed,
        )

    lost = behind = None
    if teacher is not None:
        less = (teacher - values > LOSS).astype(np.float64)
        lost = interval_of(
            subjects,
            lambda weights: weights @ less / weights.sum(1),
            resamples=resamples,
            seed=seed,
        )
        behind = quantile(values - teacher, 0.5)
    names = np.asarray(subjects)
    present = sorted(set(subjects))
    return Figures(
        sections=len(values),
        median=quantile(values, 0.5),
        low5=quantile(values, 0.05),
        lost=lost,
        behind=behind,
        by_subject={name: float(np.median(values[names == name])) for name in present},
        low5_by_subject={name: float(np.quantile(values[names == name], 0.05)) for name in present},
    )


def caution(subjects: int) -> str:
    """Say what so few subjects allow, empty where they are enough."""
    if subjects >= FEW_SUBJECTS:
        return ""
    if subjects == 1:
        return (
            "One subject: sections of one brain are no sample of patients, so there is no interval."
        )
    return (
        f"{subjects} subjects: the intervals say how the figures move between these brains, which"
        " is not how they would move between patients; no verdict follows from them."
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AnnotatedVolume:
    """A volume with sections of lesions.

    Attributes:
        volume: its images.
        kind: of the annotation, "mask" or "boxes".
        sections: what is measured.
        index: which of the volumes it is.
    """

    volume: AssessedVolume
    kind: str
    sections: Sections
    index: int


def annotated(
    volumes: Sequence[AssessedVolume], annotations: Sequence[Annotation | None]
) -> tuple[list[AnnotatedVolume], dict[str, str]]:
    """Find the volumes beside which lesions are annotated.

    Args:
        volumes: What is assessed.
        annotations: Of each of them, see `annotations.annotation_of`.

    Returns:
        Them, and by name why others have no sections.
    """
    found, without = [], {}
    for index, (volume, annotation) in enumerate(zip(volumes, annotations, strict=True)):
        name = volume.case.name
        if annotation is None:
            without[name] = nothing_beside(volume.file)
            continue
        sections = find_sections(volume.target, annotation.mask)
        if not sections.kept:
            why = ", ".join(f"{n} {reason}" for reason, n in sections.left_out.items())
            without[name] = (
                f"no section can be measured ({why})"
                if why
                else ("it has no lesion in the slices that are assessed")
            )
            continue
        found.append(
            AnnotatedVolume(volume=volume, kind=annotation.kind, sections=sections, index=index)
        )
    return found, without


NAME: Final = "lesions"
TITLE: Final = "Contrast of real lesions"

DEFINITION: Final = (
    "Contrast of a lesion's section (a connected part of its annotation in one slice, of at least"
    f" {LEAST_PIXELS} pixels) is its mean minus that of its surroundings: the pixels within"
    f" {RING} steps to a neighbour, but not within {GAP} of any lesion, and not of air. What is"
    " retained is the contrast in the reconstruction over that in the fully sampled image, 1 where"
    f" nothing is lost. Small are sections of at most {SMALL} pixels."
)

GROUPS: Final = {"all": "all sections", "small": f"at most {SMALL} pixels"}

DIFFERENCES: Final = tuple(f"retained_{group}" for group in GROUPS)
"""What margins can be stated for."""


def chosen(group: str, small: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which sections belong to a group."""
    return small if group == "small" else np.ones_like(small)


def measure(study: Study) -> Section:
    """Measure what each network retains of the lesions that are annotated beside the volumes."""
    volumes, without = annotated(study.volumes, study.annotations)
    if not volumes:
        why = "; ".join(f"{name}: {reason}" for name, reason in without.items())
        return Section.without(NAME, TITLE, f"There is no lesion to measure on: {why}.")
    subjects = [one.volume.case.subject for one in volumes for _ in one.sections.kept]
    small = np.array([each.is_small for one in volumes for each in one.sections.kept])
    values = {
        key: np.concatenate(
            [
                retained(one.volume.target, study.images(key)[one.index], one.sections.kept)
                for one in volumes
            ]
        )
        for key in study.keys
    }
    measures: list[Measure] = []
    rows = []
    teacher = next((p.reference.key for p in study.pairs() if p.kind == STUDENT), None)
    for group, title in GROUPS.items():
        kept = chosen(group, small)
        whose = [subject for subject, is_in in zip(subjects, kept, strict=True) if is_in]
        for key in study.keys:
            compared = teacher is not None and key not in (teacher, ZERO_FILLED)
            own = figures(
                values[key][kept], whose, values[teacher][kept] if teacher and compared else None,
                seed=study.options.seed,
            )  # fmt: skip
            name, what = f"retained_{group}", f"contrast retained, {title}"
            if own is None:
                reason = f"There is no section of {title}."
                measures.append(
                    Measure(name=name, title=what, network=key, value=None, reason=reason)
                )
                continue
            shown: dict[str, Any] = {"subjects": len(own.by_subject)}
            measures.append(
                of_interval(name, what, key, own.median, by_subject=own.by_subject, **shown)
            )
            measures.append(
                of_interval(
                    f"{name}_p5", f"5th percentile of {what}", key, own.low5,
                    by_subject=own.low5_by_subject, **shown,
                )
            )  # fmt: skip
            lost = None if own.lost is None or own.lost.value is None else 100 * own.lost.value
            rows.append((title, key, own.sections, own.median.value, own.low5.value, lost))
        for pair in study.pairs():
            ours, theirs = (values[each.key][kept] for each in (pair.candidate, pair.reference))
            own = figures(ours, whose, theirs, seed=study.options.seed)
            if own is not None and own.behind is not None:
                differences = {
                    name: float(np.median((ours - theirs)[np.asarray(whose) == name]))
                    for name in sorted(set(whose))
                }
                measures.append(
                    of_interval(
                        f"retained_{group}", f"change in contrast retained, {title}",
                        pair.candidate.key, own.behind, subjects=len(differences),
                        by_subject=differences, against=pair.reference.key,
                    )
                )  # fmt: skip
    kinds = sorted({one.kind for one in volumes})
    notes = [caution(len(set(subjects)))]
    if "boxes" in kinds:
        notes.append(
            "Boxes hold healthy tissue, too: their contrast is less than that of the lesions in"
            " them."
        )
    notes += [f"{name} is left out: {why}." for name, why in without.items()]
    left_out = _total(one.sections.left_out for one in volumes)
    notes += [f"Left out: {n} sections {why}." for why, n in left_out.items()]
    return Section(
        name=NAME,
        title=TITLE,
        measured=(
            f"{DEFINITION} Medians over {len(subjects)} sections of {len(set(subjects))} subjects"
            f" ({', '.join(kinds)}); intervals by drawing subjects, then their sections."
        ),
        findings=tuple(note for note in notes if note),
        measures=tuple(measures),
        tables=(
            Table(
                title="Contrast retained",
                head=("sections", "network", "number", "median", "5th percentile",
                      f"% that keep {LOSS} less than with the teacher"),
                rows=tuple(rows),
                note="In the fully sampled image it is 1.",
            ),
        ),
    )  # fmt: skip


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)
