"""An assessment as plain text, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdmri_bench.assessment.page import interval_text

if TYPE_CHECKING:
    from kdmri_bench.assessment.assess import Assessment
    from kdmri_bench.assessment.sections import Section

__all__ = ["plain"]


def plain(assessment: Assessment) -> str:
    """Return the figures of all sections, one a line, and why others could not be measured."""
    return "\n\n".join(_section(section) for section in assessment.sections)


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
        lines.append(f"  {measure.title:<{width}}  {interval_text(measure)}{unit}  {who}")
    if section.tables:
        lines.append("  On the page: " + "; ".join(table.title for table in section.tables) + ".")
    return "\n".join(lines)
