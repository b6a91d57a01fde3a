"""The parts of an assessment, and the table of those that there are.

How a section is added
----------------------
1. Write a module of this package with a function `measure(study: Study) -> Section`. `Study`
   (`kdmri_bench.assessment.study`) holds the networks (float, their int8 copies, which is the
   teacher), the volumes with their fully sampled images, and `study.images(network)`: what each
   network made of each volume, reconstructed once for all sections. Whatever else has to be
   reconstructed goes through `study.reconstruct(network, kspace)`, the same road as `kdmri-edge
   run`.
2. Give back a `Section`: what was measured in one or two sentences, `Measure`s (a figure of one
   network, or of one against another, with its interval over subjects: `over_subjects` makes it),
   tables, plots (SVG text) and galleries. Where nothing can be measured, give back
   `Section.without(...)` with the reason; where one figure cannot be given, a `Measure` whose value
   is None and whose `reason` says why. Zero never stands for a figure that is absent.
3. Add a row to `SECTIONS` below, in the order of the page. The verdict is last: it judges every
   `Measure` that has `against` and a margin of its name (`[SECTION] NAME = ...` in the margins'
   file, `kdmri_bench.assessment.margins`), so that a section need not know of it; its row names
   its differences, so that a margin for none of them is found out first. A difference has
   the name of the figure that it is the difference of: `assess --compare` of two reports pairs
   these figures by their `by_subject`. State the margin in `margins.toml`, too.

Everything is in the report's JSON (`Section.to_dict`) but plots and pictures, which are on the page
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kdmri_bench.results.schema import finite
from kdmri_bench.results.statistics import Interval, bootstrap
from kdmri_edge.errors import BenchError
from kdmri_edge.registry import Registry

if TYPE_CHECKING:
    from kdmri_bench.reporting.page.images import Tile

__all__ = [
    "ONE_SUBJECT",
    "SECTIONS",
    "Gallery",
    "Measure",
    "Picture",
    "Plot",
    "Section",
    "SectionKind",
    "Table",
    "of_interval",
    "over_subjects",
]

ONE_SUBJECT: Final = "One subject: how far others differ from it cannot be estimated."
"""Why a figure has no interval."""

Cell = str | float | int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A figure of a network, or of one network against another.

    Attributes:
        name: its key in the report, e.g. "psnr_db"; the same for all networks of a section.
        title: what it is called on the page.
        network: key of the network (`AssessedNetwork.key`).
        against: key of the network that it is compared with; the figure is then a difference,
            `network` minus `against`, that is negative where `network` is the worse one. Empty for
            a figure of one network.
        value: the figure, None where it cannot be given.
        low: lower end of its 95 % interval over subjects, None where there is none.
        high: upper end.
        unit: of all three, e.g. "dB"; empty for a number without one.
        digits: how many are shown after the point.
        subjects: number of subjects that it is made of.
        by_subject: mean of each subject, by its key: another report is compared by them.
        reason: why there is no figure, or no interval, in a sentence.
    """

    name: str
    title: str
    network: str
    value: float | None
    against: str = ""
    low: float | None = None
    high: float | None = None
    unit: str = ""
    digits: int = 3
    subjects: int = 0
    by_subject: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None

    @property
    def interval(self) -> Interval:
        """The figure as an estimate."""
        return Interval(value=self.value, low=self.low, high=self.high)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "title": self.title,
            "network": self.network,
            **({"against": self.against} if self.against else {}),
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "unit": self.unit,
            "digits": self.digits,
            "subjects": self.subjects,
            "by_subject": dict(self.by_subject),
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Measure:
        """Read what `to_dict` gave; keys of later versions are passed over."""
        known = {name: value[name] for name in cls.__slots__ if name in value}
        return cls(**known)


def over_subjects(
    name: str,
    title: str,
    network: str,
    values: Sequence[float],
    subjects: Sequence[str],
    *,
    against: str = "",
    unit: str = "",
    digits: int = 3,
    seed: int = 0,
) -> Measure:
    """Return the mean of a figure with its interval over subjects.

    Subjects are drawn with replacement, then their volumes (`results.statistics.bootstrap`), 10,000
    times; the ends are percentiles.

    Args:
        name: See `Measure`, as are title, network, against, unit and digits.
        title: See `Measure`.
        network: See `Measure`.
        values: One of each volume (or slice, or lesion); those that are not finite are left out.
        subjects: Whose it is.
        against: See `Measure`.
        unit: See `Measure`.
        digits: See `Measure`.
        seed: Of the resampling.
    """
    kept = [(float(v), s) for v, s in zip(values, subjects, strict=True) if np.isfinite(v)]
    known = {"name": name, "title": title, "network": network, "against": against}
    shown: dict[str, Any] = {**known, "unit": unit, "digits": digits}
    if not kept:
        return Measure(**shown, value=None, reason="There is nothing that it could be measured on.")
    whose = [subject for _, subject in kept]
    numbers = np.array([value for value, _ in kept])
    present = sorted(set(whose))
    means = {
        subject: float(numbers[[own == subject for own in whose]].mean()) for subject in present
    }
    mean = float(numbers.mean())
    if len(present) < 2:
        return Measure(**shown, value=mean, subjects=1, by_subject=means, reason=ONE_SUBJECT)
    found = bootstrap(whose, numbers[:, None], lambda drawn: drawn[:, 0], seed=seed)
    return Measure(
        **shown,
        value=found.value,
        low=found.low,
        high=found.high,
        subjects=len(present),
        by_subject=means,
    )


def of_interval(
    name: str,
    title: str,
    network: str,
    interval: Interval,
    *,
    subjects: int,
    by_subject: Mapping[str, float] | None = None,
    against: str = "",
) -> Measure:
    """Return a figure whose interval a section has drawn itself.

    Args:
        name: See `Measure`, as are title, network, by_subject and against.
        title: See `Measure`.
        network: See `Measure`.
        interval: The figure; without ends where there is one subject alone.
        subjects: Their number.
        by_subject: See `Measure`.
        against: See `Measure`.
    """
    return Measure(
        name=name,
        title=title,
        network=network,
        against=against,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        subjects=subjects,
        by_subject=dict(by_subject or {}),
        reason=ONE_SUBJECT if interval.low is None else None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of the page and the report.

    Attributes:
        title: what it shows; in the report its key.
        head: names of the columns.
        rows: the cells; a number is shown with `digits`, None as a dash. A number that is not
            finite, such as the diameter of a disc whose edge is not found, becomes None.
        note: how it is read.
        digits: after the point.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    digits: int = 3

    def __post_init__(self) -> None:
        rows = tuple(tuple(finite(cell) for cell in row) for row in self.rows)
        object.__setattr__(self, "rows", rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "title": self.title,
            "head": list(self.head),
            "rows": [list(row) for row in self.rows],
            "note": self.note,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """A drawing.

    Attributes:
        svg: an SVG element with a role and a label, in the colours of the page (`var(--ink)`,
            `--faint`, `--line`, `--teacher`, `--student`, `--plain`).
        caption: what it shows.
    """

    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """Pictures of one slice or region, side by side; the page enlarges each of them.

    Attributes:
        title: what they show.
        tiles: the pictures (`reporting.page.images` draws them).
    """

    title: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """Slices or regions to be looked at.

    Attributes:
        title: what they have in common.
        pictures: the most telling first.
        note: how they are read, e.g. what white is.
    """

    title: str
    pictures: tuple[Picture, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """What one part of the assessment found.

    Attributes:
        name: key of `SECTIONS`.
        title: its head on the page.
        measured: what was measured and how, a sentence or two with the source of the definition.
        findings: what a reader should take away, in sentences that hold figures.
        measures: the figures.
        tables: further figures.
        plots: drawings, on the page alone.
        galleries: pictures, on the page alone.
        reason: why nothing could be measured; None where something was.
        facts: further plain JSON values for the report.
    """

    name: str
    title: str
    measured: str = ""
    findings: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    reason: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def without(cls, name: str, title: str, reason: str) -> Section:
        """Return a section that could not be measured, with the reason."""
        return cls(name=name, title=title, reason=reason)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without drawings and pictures."""
        return {
            "name": self.name,
            "title": self.title,
            "measured": self.measured,
            "findings": list(self.findings),
            "measures": [measure.to_dict() for measure in self.measures],
            "tables": [table.to_dict() for table in self.tables],
            "reason": self.reason,
            "facts": dict(self.facts),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SectionKind:
    """A row of the table of sections.

    Attributes:
        name: what `--sections` calls it.
        title: its head on the page.
        function: "module:function", from a `Study` to a `Section`; imported when it is called.
        asks: what it answers, in one line, for `--list-sections`.
        differences: "module:NAME" of the names of its differences, those that margins can be stated
            for; None where they are not known before it has measured.
    """

    name: str
    title: str
    function: str
    asks: str
    differences: str | None = None


_HERE: Final = "kdmri_bench.assessment"

SECTIONS: Final = Registry(
    "kdmri_edge.sections",
    SectionKind,
    "section",
    {
        row.name: row
        for row in (
            SectionKind(
                name="volumes",
                title="Quality of whole volumes",
                function=f"{_HERE}.volumes:measure",
                differences=f"{_HERE}.volumes:DIFFERENCES",
                asks="How near are the images to the fully sampled ones, on average?",
            ),
            SectionKind(
                name="lesions",
                title="Contrast of real lesions",
                function=f"{_HERE}.lesions:measure",
                differences=f"{_HERE}.lesions:DIFFERENCES",
                asks="How much of a lesion's contrast is kept, of small ones above all?",
            ),
            SectionKind(
                name="inserted",
                title="Lesions that were inserted",
                function=f"{_HERE}.inserted:measure",
                differences=f"{_HERE}.inserted:DIFFERENCES",
                asks="How small and how faint may a lesion be and still be found?",
            ),
            SectionKind(
                name="disagreement",
                title="Where networks disagree",
                function=f"{_HERE}.disagreement:measure",
                differences=f"{_HERE}.disagreement:DIFFERENCES",
                asks="In which regions do student and teacher, or int8 and float, differ most?",
            ),
            SectionKind(
                name="phantom",
                title="Image quality as on an ACR phantom",
                function=f"{_HERE}.phantom:measure",
                differences=f"{_HERE}.phantom:DIFFERENCES",
                asks="Uniformity, ghosting, geometry, resolution, low contrast: what a physicist"
                " measures at the scanner.",
            ),
            SectionKind(
                name="robustness",
                title="Robustness",
                function=f"{_HERE}.robustness:measure",
                differences=f"{_HERE}.robustness:DIFFERENCES",
                asks="What do noise, motion, lost lines, other contrasts and the worst small"
                " perturbation do?",
            ),
            SectionKind(
                name="verdict",
                title="Verdict",
                function=f"{_HERE}.verdict:measure",
                differences=f"{_HERE}.verdict:DIFFERENCES",
                asks="Does a student lose more than the margins allow, or an int8 copy?",
            ),
        )
    },
    error=BenchError,
)
"""The sections, in the order of the page; installed packages may add some."""
