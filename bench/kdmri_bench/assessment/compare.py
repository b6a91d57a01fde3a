"""Change control: may a retrained network take the place of an old one, under stated margins?

A predetermined change control plan in miniature: margins and data are stated first, the new network
is measured against the old one on the same volumes, and the answer is yes only where each margin is
shown to be kept. No other answer, "inconclusive" among them, is a yes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from kdmri_bench.assessment.assess import REPORT, Assessment, read_assessment
from kdmri_bench.assessment.margins import Margins, load_margins, read_margins
from kdmri_bench.assessment.networks import FLOAT, ZERO_FILLED
from kdmri_bench.assessment.sections import Measure, over_subjects
from kdmri_bench.assessment.verdict import NON_INFERIOR, Judged, judge, overall
from kdmri_edge.errors import BenchError
from kdmri_edge.utils.files import damaged

__all__ = ["Replacement", "compare_reports", "is_report", "replacement_of"]

_SAME: Final = 0.1  # of a margin: what arithmetic may change of zero-filled images' figures
_ANSWERS: Final = {NON_INFERIOR: "may replace", "inferior": "must not replace"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Replacement:
    """Whether a network may take another one's place.

    Attributes:
        old: key of the network in use.
        new: key of the one that would follow.
        verdict: of all figures, see `verdict.overall`.
        judged: figure by figure.
        margins: what they were judged by.
    """

    old: str
    new: str
    verdict: str
    judged: Sequence[Judged]
    margins: Margins

    @property
    def allowed(self) -> bool:
        """Whether each margin was shown to be kept."""
        return self.verdict == NON_INFERIOR

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "old": self.old,
            "new": self.new,
            "allowed": self.allowed,
            "verdict": self.verdict,
            "judged": [one.to_dict() for one in self.judged],
            "margins": self.margins.to_dict(),
        }

    def __str__(self) -> str:
        """Return the answer, and each figure with its reason."""
        from kdmri_bench.assessment.page import interval_text

        said = _ANSWERS.get(self.verdict, "is not shown to be able to replace")
        lines = [f"{self.new} {said} {self.old} (margins {self.margins.name!r}: {self.verdict})."]
        for one in self.judged:
            unit = f" {one.unit}" if one.unit else ""
            change = "not measured" if one.change is None else f"{interval_text(one.change)}{unit}"
            lines.append(
                f"  {one.section}: {one.title}: {change}, margin -{one.margin:g}{unit}:"
                f" {one.verdict}. {one.reason}"
            )
        return "\n".join(lines)


def is_report(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is meant as a finished assessment rather than as a network."""
    place = Path(path)
    return (place / REPORT).is_file() or (place.suffix == ".json" and place.is_file())


def replacement_of(done: Assessment, margins: Margins) -> list[Replacement]:
    """Return the answers of an assessment of an old and a new network, one for each precision.

    Raises:
        BenchError: They have no precision in common.
    """
    section = done.section("verdict")
    pairs = [] if section is None else list(section.facts.get("pairs", ()))
    if not pairs:
        raise BenchError(
            "The old and the new network have no precision in common.",
            "Give both as checkpoints, or both as bundles of one precision.",
        )
    return [
        Replacement(
            old=pair["reference"],
            new=pair["candidate"],
            verdict=pair["verdict"],
            judged=[_read(one) for one in pair["judged"]],
            margins=margins,
        )
        for pair in pairs
    ]


def _read(value: Mapping[str, Any]) -> Judged:
    change = None if value["change"] is None else Measure.from_dict(value["change"])
    return Judged(
        section=value["section"],
        name=value["name"],
        title=value["name"] if change is None else change.title,
        margin=value["margin"],
        unit=value["unit"],
        change=change,
        verdict=value["verdict"],
        reason=value["reason"],
    )


def compare_reports(
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    *,
    margins: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> list[Replacement]:
    """Compare the students of two reports, without measuring anything.

    Their figures are paired over subjects. The two have to be of the same mask, matrix, volumes and
    slices.

    Args:
        old: Report of the network in use.
        new: Report of the one that would follow.
        margins: TOML file; None takes the margins that the old report was made with: they were
            stated before the new network was there.
        seed: Of the resampling.

    Returns:
        One answer for each precision that both have.

    Raises:
        BenchError: A file is missing or no report, the two are of different data, or either holds
            several students.
    """
    before, after = read_assessment(old), read_assessment(new)
    with damaged(Path(old), BenchError), damaged(Path(new), BenchError):
        _check_same_data(before, after)
        stated = (
            load_margins(Path(margins))
            if margins is not None
            else _quoted(before["margins"], f"the margins in {old}")
        )
        ours, theirs = _student(before, "old"), _student(after, "new")
        common = [precision for precision in ours if precision in theirs]
        if not common:
            raise BenchError(
                f"The old report has {', '.join(ours)}, the new one {', '.join(theirs)}.",
                "Assess both networks in the same precision.",
            )
        seen = _seen(before, {ours[p] for p in common}) or _seen(after, {theirs[p] for p in common})
        return [_replacement(before, after, ours[p], theirs[p], stated, seed, seen) for p in common]


def _check_same_data(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for key, what in (("sha256", "mask"),):
        if before["mask"][key] != after["mask"][key]:
            raise BenchError(
                f"The reports are of another {what}: {before['mask']['name']!r} and"
                f" {after['mask']['name']!r}.",
                "Compare networks for one mask.",
            )
    facts = ("sha256", "slices", "first_slice")
    seen = [
        {tuple(volume[fact] for fact in facts) for volume in report["volumes"]}
        for report in (before, after)
    ]
    if seen[0] != seen[1] or before["matrix"] != after["matrix"]:
        raise BenchError(
            "The reports are of other volumes, slices or matrices.",
            "Assess both networks on the same data, with the same options.",
        )


def _quoted(margins: Mapping[str, Any], name: str) -> Margins:
    """Read the margins that a report quotes.

    Raises:
        BenchError: They are not those whose SHA-256 the report names: they were written after it.
    """
    found = read_margins(str(margins["text"]), name)
    if found.sha256 != margins["sha256"]:
        raise BenchError(
            f"{name} are not those that it was made with: their SHA-256 is another.",
            "Give the file of margins that was stated beforehand, with --margins.",
        )
    return found


def _student(report: Mapping[str, Any], which: str) -> dict[str, str]:
    """Return the keys of the one student of a report, by precision."""
    names: dict[str, dict[str, str]] = {}
    for network in report["networks"]:
        if network["name"] not in (ZERO_FILLED, report["teacher"]):
            names.setdefault(network["name"], {})[network.get("precision", FLOAT)] = network["key"]
    if len(names) != 1:
        raise BenchError(
            f"The {which} report holds {len(names)} students ({', '.join(names) or 'none'}).",
            "Assess one student in each, or compare the networks themselves: give both with"
            " --data.",
        )
    return next(iter(names.values()))


def _seen(report: Mapping[str, Any], keys: set[str]) -> str:
    names = {network["name"] for network in report["networks"] if network["key"] in keys}
    for volume in report["volumes"]:
        both = names & set(volume["seen_in_training"])
        if both:
            return f"{min(both)} has seen {volume['name']} in its training."
    return ""


def _replacement(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    old: str,
    new: str,
    margins: Margins,
    seed: int,
    seen: str,
) -> Replacement:
    judged = []
    for section, own in margins.losses.items():
        for name, margin in own.items():
            theirs, ours = _measure(before, section, name, old), _measure(after, section, name, new)
            change, why = None, seen
            if theirs is None or ours is None:
                which = "old" if theirs is None else "new"
                why = f"The {which} report has no such figure."
            elif unlike := (
                _missing(ours, theirs) or _measured_apart(before, after, section, name, margin)
            ):
                why = why or unlike
            else:
                change = _change(ours, theirs, seed)
            judged.append(judge(section, name, margin, change, margins.subjects, why))
    return Replacement(old=old, new=new, verdict=overall(judged), judged=judged, margins=margins)


def _measure(report: Mapping[str, Any], section: str, name: str, key: str) -> Measure | None:
    for part in report["sections"]:
        if part["name"] != section:
            continue
        for value in part["measures"]:
            found = value["name"] == name and value["network"] == key and not value.get("against")
            if found and value["value"] is not None:
                return Measure.from_dict(value)
    return None


def _measured_apart(
    before: Mapping[str, Any], after: Mapping[str, Any], section: str, name: str, margin: float
) -> str:
    """Say that two reports measured in two ways, which their zero-filled images show.

    These are the same in both, so that their figures are: other annotations of lesions, other
    options, or another definition of a later version would be taken for the network's change.
    """
    found = [_measure(report, section, name, ZERO_FILLED) for report in (before, after)]
    if found[0] is None or found[1] is None:
        return ""
    old, new = found[0].by_subject, found[1].by_subject
    same = old.keys() == new.keys() and all(
        abs(new[subject] - value) <= _SAME * margin for subject, value in old.items()
    )
    if same:
        return ""
    return (
        "Zero-filled images have another value in each report: the two were not measured alike"
        " (annotations, options or version)."
    )


def _missing(new: Measure, old: Measure) -> str:
    """Say whose figure one report lacks: a network could be judged without its worst subject."""
    for which, own, other in (("new", new, old), ("old", old, new)):
        known = {subject for subject, value in own.by_subject.items() if np.isfinite(value)}
        lacking = sorted(other.by_subject.keys() - known)
        if lacking:
            return f"The {which} report has no such figure of subject {lacking[0]}."
    return ""


def _change(new: Measure, old: Measure, seed: int) -> Measure:
    subjects = list(new.by_subject)
    return over_subjects(
        new.name,
        f"change in {new.title}",
        new.network,
        [new.by_subject[subject] - old.by_subject[subject] for subject in subjects],
        subjects,
        against=old.network,
        unit=new.unit,
        digits=new.digits + 1,
        seed=seed,
    )
