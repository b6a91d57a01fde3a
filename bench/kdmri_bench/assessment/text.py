"""An assessment as plain text for a terminal, and as Markdown for a page of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from kdmri_bench.assessment.page import interval_text
from kdmri_bench.results.figures import NOTHING

if TYPE_CHECKING:
    from kdmri_bench.assessment.assess import Assessment
    from kdmri_bench.assessment.sections import Section

__all__ = ["markdown", "plain"]


def plain(assessment: Assessment) -> str:
    """Return the figures of all sections, one a line, and why others could not be measured."""
    parts = [f"Note: {note}" for note in assessment.notes]
    return "\n\n".join([*parts, *(_section(section) for section in assessment.sections)])


def _section(section: Section) -> str:
    lines = [section.title]
    if section.reason:
        return f"{section.title}\n  not measured: {section.reason}"
    lines += [f"  {line}" for line in section.findings]
    width = max((len(measure.title) for measure in section.measures), default=0)
    for measure in section.measures:
        who = measure.network
        if measure.against:
            who += f" against {measure.against}"
        unit = f" {measure.unit}" if measure.unit and measure.value is not None else ""
        why = f"  ({measure.reason})" if measure.value is None and measure.reason else ""
        lines.append(f"  {measure.title:<{width}}  {interval_text(measure)}{unit}  {who}{why}")
    if section.tables:
        lines.append("  On the page: " + "; ".join(table.title for table in section.tables) + ".")
    return "\n".join(lines)


_TABLES: Final[dict[str, tuple[str, ...]]] = {
    "verdict": (),
    "disagreement": ("How much they differ, % of the volume's maximum",),
    "phantom": ("Tests of the phantom", "Low contrast: spokes seen of 10"),
    "robustness": (
        "PSNR in dB, mean over volumes", "Other data: PSNR in dB",
        "Aimed perturbations of the acquired samples",
    ),
}  # fmt: skip
"""Tables of the results' page, by section."""


def markdown(report: Mapping[str, Any]) -> str:
    """Return verdict, and the most telling tables, of what `Assessment.to_dict` gave."""
    subjects = {volume["subject"] for volume in report["volumes"]}
    slices = sum(volume["slices"] for volume in report["volumes"])
    parts = [
        f"{len(report['volumes'])} volumes of {len(subjects)} subjects, {slices} slices, mask"
        f" {report['mask']['name']}; margins {report['margins']['name']!r}, SHA-256"
        f" {report['margins']['sha256'][:12]}."
    ]
    parts += report.get("notes", [])
    sections = {section["name"]: section for section in report["sections"]}
    for name, titles in _TABLES.items():
        section = sections.get(name)
        if section is None:
            continue
        parts.append(f"## {section['title']}")
        if section["reason"]:
            parts.append(f"Not measured: {section['reason']}")
        parts.append("\n".join(f"- {line}" for line in section["findings"]))
        found = {table["title"]: table for table in section["tables"]}
        for title in titles:
            if title in found:
                parts += [f"{title}:", _markdown_table(found[title])]
    return "\n\n".join(part for part in parts if part)


def _markdown_table(table: Mapping[str, Any]) -> str:
    def line(cells: Sequence[object]) -> str:
        return f"| {' | '.join(_cell(cell) for cell in cells)} |"

    rule = "|" + "|".join("---" for _ in table["head"]) + "|"
    return "\n".join([line(table["head"]), rule, *(line(row) for row in table["rows"])])


def _cell(value: object) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:.2f}"
    return str(value).replace("|", "/")
