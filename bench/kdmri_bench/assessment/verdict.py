"""The verdict: does a candidate lose more than margins allow that were stated beforehand?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kdmri_bench.assessment.margins import Margins
from kdmri_bench.assessment.sections import Measure, Section, Table
from kdmri_bench.assessment.study import Pair, Study
from kdmri_bench.results.statistics import EXPANDED, verdict

__all__ = ["INCONCLUSIVE", "INFERIOR", "NON_INFERIOR", "Judged", "judge", "measure", "overall"]

NAME: Final = "verdict"
TITLE: Final = "Verdict"

DIFFERENCES: Final = ()
"""It judges those of others."""

NON_INFERIOR: Final = "non-inferior"
INFERIOR: Final = "inferior"
INCONCLUSIVE: Final = "inconclusive"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """One figure of a pair, judged by its margin.

    Attributes:
        section: of the figure.
        name: of the figure.
        title: what it is called.
        margin: largest loss that counts as none.
        unit: of margin and figure.
        change: the difference, candidate minus reference; None where it was not measured.
        verdict: `NON_INFERIOR`, `INFERIOR` or `INCONCLUSIVE`.
        reason: why, in a sentence.
    """

    section: str
    name: str
    title: str
    margin: float
    unit: str
    change: Measure | None
    verdict: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "section": self.section,
            "name": self.name,
            "margin": self.margin,
            "unit": self.unit,
            "change": None if self.change is None else self.change.to_dict(),
            "verdict": self.verdict,
            "reason": self.reason,
        }


def judge(
    section: str, name: str, margin: float, change: Measure | None, fewest: int, why: str = ""
) -> Judged:
    """Judge one figure.

    Args:
        section: Of the figure.
        name: Of the figure.
        margin: Largest loss that counts as none.
        change: Candidate minus reference; None where it was not measured.
        fewest: Below so many subjects there is no verdict.
        why: Why it was not measured, or may not be judged.
    """
    told: dict[str, Any] = {"section": section, "name": name, "margin": margin}
    if change is None or change.value is None:
        reason = (change.reason if change is not None else None) or why or "It was not measured."
        title, unit = (name, "") if change is None else (change.title, change.unit)
        return Judged(
            **told, title=title, unit=unit, change=change, verdict=INCONCLUSIVE, reason=reason
        )
    shown: dict[str, Any] = {**told, "title": change.title, "unit": change.unit, "change": change}
    if why:
        return Judged(**shown, verdict=INCONCLUSIVE, reason=why)
    if change.subjects < fewest:
        reason = f"{change.subjects} subject(s), and the margins ask for {fewest} or more."
        return Judged(**shown, verdict=INCONCLUSIVE, reason=reason)
    if change.low is None or change.high is None:
        reason = change.reason or "There is no interval."
        return Judged(**shown, verdict=INCONCLUSIVE, reason=reason)
    found = verdict(change.interval, margin, change.subjects, fewest)
    if found == NON_INFERIOR:
        return Judged(**shown, verdict=found, reason="The whole interval lies above the margin.")
    if found == INFERIOR:
        return Judged(**shown, verdict=found, reason="The whole interval lies below the margin.")
    return Judged(
        **shown,
        verdict=INCONCLUSIVE,
        reason="The interval lies on both sides of the margin: the loss may be within it or not.",
    )


def overall(judged: Sequence[Judged]) -> str:
    """Return the verdict on all figures: inferior in one is inferior, and all have to be shown."""
    found = {one.verdict for one in judged}
    if INFERIOR in found:
        return INFERIOR
    return NON_INFERIOR if found == {NON_INFERIOR} else INCONCLUSIVE


def measure(study: Study) -> Section:
    """Judge every pair by every margin, from what the other sections found."""
    pairs = list(study.pairs())
    if not pairs:
        return Section.without(
            NAME, TITLE, "There is nothing to compare: one network, in one precision."
        )
    rows, found, findings = [], [], []
    for pair in pairs:
        judged = _judged(pair, study.margins, study.sections, _seen(pair, study))
        whole = overall(judged)
        findings.append(_said(pair, whole, judged))
        found.append(
            {
                "candidate": pair.candidate.key,
                "reference": pair.reference.key,
                "kind": pair.kind,
                "verdict": whole,
                "judged": [one.to_dict() for one in judged],
            }
        )
        rows += [_row(pair, one) for one in judged]
    margins = study.margins
    return Section(
        name=NAME,
        title=TITLE,
        measured=(
            f"Non-inferiority by the margins of {margins.name!r} (SHA-256 {margins.sha256[:12]}...,"
            " quoted below), which are stated before any result is seen. A candidate is"
            " non-inferior where the whole 95 % interval over subjects of its change lies above"
            " minus the margin, inferior where all of it lies below; else, and on fewer than"
            f" {margins.subjects} subjects, the data do not suffice: inconclusive. All figures"
            f" have to be non-inferior. Intervals: {EXPANDED}; of five subjects they are still a"
            " little too narrow. This is no clearance for clinical use."
        ),
        findings=tuple(findings),
        tables=(
            Table(
                title="Figure by figure",
                head=(
                    "candidate", "against", "figure", "margin", "change [95 % interval]",
                    "subjects", "verdict", "why",
                ),
                rows=tuple(rows),
            ),
        ),
        facts={"pairs": found},
    )  # fmt: skip


def _judged(
    pair: Pair, margins: Margins, sections: Mapping[str, Section], why: str
) -> list[Judged]:
    found = []
    for section, own in margins.losses.items():
        for name, margin in own.items():
            part = sections.get(section)
            change = None
            missing = "" if part is not None else f"Section {section!r} was not asked for."
            if part is not None:
                missing = part.reason or ""
                change = next(
                    (
                        one
                        for one in part.measures
                        if one.name == name
                        and one.network == pair.candidate.key
                        and one.against == pair.reference.key
                    ),
                    None,
                )
            found.append(judge(section, name, margin, change, margins.subjects, why or missing))
    return found


def _seen(pair: Pair, study: Study) -> str:
    """Return why figures on these volumes are no evidence for a pair; empty where they are."""
    for network in (pair.candidate, pair.reference):
        for volume in study.volumes:
            if volume.case.sha256 in network.source.hashes:
                return f"{network.name} has seen {volume.case.name} in its training."
    return ""


def _said(pair: Pair, whole: str, judged: Sequence[Judged]) -> str:
    decisive = [one for one in judged if one.verdict == whole and whole != NON_INFERIOR]
    why = f" {_up(decisive[0].title)}: {_low(decisive[0].reason)}" if decisive else ""
    return f"{pair.candidate.key} against {pair.reference.key}: {whole}.{why}"


def _up(words: str) -> str:
    """Return words as they begin a sentence."""
    return words[:1].upper() + words[1:]


def _low(sentence: str) -> str:
    """Return a sentence as it stands after a colon."""
    return sentence[:1].lower() + sentence[1:] if sentence.startswith("The ") else sentence


def _row(pair: Pair, one: Judged) -> tuple[str | int | float | None, ...]:
    from kdmri_bench.assessment.page import interval_text

    unit = f" {one.unit}" if one.unit else ""
    return (
        pair.candidate.key,
        pair.reference.key,
        f"{one.section}: {one.title}",
        f"-{one.margin:g}{unit}",
        None if one.change is None else f"{interval_text(one.change)}{unit}",
        None if one.change is None else one.change.subjects,
        one.verdict,
        one.reason,
    )
