"""The page of report.json and report.csv, made from what declares them.

`python -m maintainer.report_schema` writes docs/reference/report-schema.md anew.
"""

from __future__ import annotations

import re
from dataclasses import fields
from inspect import cleandoc
from pathlib import Path
from typing import Final

from kdmri_bench.results.figures import FIGURES, LABELS
from kdmri_bench.results.schema import SCHEMA_VERSION, Network, Report, Row, TestVolume

__all__ = ["PAGE", "main", "page"]

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "reference" / "report-schema.md"

_HEAD: Final = f"""# report.json, version {SCHEMA_VERSION}

What `kdmri-edge bench` writes. Units are in the names; a value that could not be found is null.
Readers refuse a `schema_version` above their own, pass over keys that they do not know, and take
keys that are missing for empty; reports of version 1 are read this way. This page is made from the
classes of `kdmri_bench/results/schema.py` and the figures of `kdmri_bench/results/figures.py` by
`python -m maintainer.report_schema`.
"""


def page() -> str:
    """Return the page as Markdown."""
    kinds = {
        "The report": Report,
        "Networks": Network,
        "Volumes": TestVolume,
        "Rows": Row,
    }
    parts = [_HEAD]
    for title, kind in kinds.items():
        parts.append(f"## {title}\n\n| key | since | what |\n|---|---|---|\n{_keys(kind)}\n")
    labels = "\n".join(f"| `{label.name}` | {_cell(label.description)} |" for label in LABELS)
    figures = "\n".join(
        f"| `{figure.name}` | {figure.title} | {figure.unit} | {figure.since}"
        f" | {_cell(figure.description)} |"
        for figure in FIGURES
    )
    parts.append(
        "## report.csv\n\nOne line for each row and volume, after one with the means of all"
        " volumes. A text that a spreadsheet would take for a formula has an apostrophe before it."
        " These columns say which:\n\n| column | what |\n|---|---|\n"
        f"{labels}\n| `recommended` | Whether the report recommends this row. |\n\nThe figures, in"
        " report.csv in the unit of their name, in tables and on the page as they are called"
        " there:\n\n| column | on the page | unit there | since | what |\n|---|---|---|---|---|\n"
        f"{figures}\n"
    )
    return "\n".join(parts)


def _keys(kind: type) -> str:
    said = dict(
        re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", cleandoc(str(kind.__doc__)), re.M | re.S)
    )
    return "\n".join(
        f"| `{field.name}` | {field.metadata.get('since', 1)} | {_cell(said[field.name])} |"
        for field in fields(kind)
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
