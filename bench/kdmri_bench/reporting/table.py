"""The benchmark as a table in the terminal and in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdmri_bench.reporting.figures import (
    COLUMNS,
    HEADERS,
    NOTHING,
    cells,
    footnotes,
    header_line,
    seen_lines,
    text_of,
    variant_name,
)
from kdmri_bench.results.schema import ZERO_FILLED, Report, Row, Status
from kdmri_bench.results.select import limits_of, recommended_row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "console_width",
    "markdown_details",
    "markdown_report",
    "markdown_table",
    "plain_table",
    "print_table",
    "recommendation",
]

# Left out where the terminal is narrow; report.csv always has everything.
SECONDARY = ("NMSE", "HFN", "p90 ms", "size KiB")
FULL_WIDTH = 132


def print_table(report: Report, console: Console) -> None:
    """Print the table, what was not measured and why, and how to read the figures."""
    for line in seen_lines(report):
        _line(console, f"Warning: {line}", "bold red")
    _line(console, header_line(report))
    wide = console.width >= FULL_WIDTH
    table, reasons = _table(report, wide=wide)
    console.print(table)
    for line in reasons + footnotes(report):
        _line(console, line, "dim")
    if report.limits:
        _line(console, recommendation(report), "bold")
    if not wide:
        _line(console, f"Left out here, in report.csv: {', '.join(SECONDARY)}.", "dim")


def plain_table(report: Report, width: int | None = None) -> str:
    """Return what `print_table` prints as plain text; None leaves room for the whole table."""
    from io import StringIO

    from rich.console import Console

    stream = StringIO()
    print_table(report, Console(file=stream, width=width or FULL_WIDTH, color_system=None))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _line(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False)


def _table(report: Report, *, wide: bool) -> tuple[Table, list[str]]:
    """Return the table, one section per network, and the reasons of rows without figures."""
    from rich import box
    from rich.table import Table

    shown = [i for i, name in enumerate(HEADERS) if i and (wide or name not in SECONDARY)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    for index in shown:
        name = HEADERS[index].replace(" (", "\n(")
        left = index <= 2
        table.add_column(
            name,
            justify="left" if left else "right",
            no_wrap=index > 1,
            overflow="fold",
            min_width=28 if index == 1 and wide else None,
        )
    reasons = _Reasons("[{}]")
    network = None
    for row in report.rows:
        values = list(cells(row))
        if row.network != network and network is not None:
            table.add_section()
        if row.role == ZERO_FILLED:  # nothing runs it
            values[1] = row.network
        else:
            values[1] = f"  {values[1]}"
            if row.network != network:
                table.add_row(row.network, style="bold")
        network = row.network
        missing = row.status is not Status.MEASURED
        if missing:
            values[HEADERS.index("PSNR dB")] = reasons.mark(row)
        table.add_row(*(_plain(values[i]) for i in shown), style="dim" if missing else None)
    return table, reasons.lines()


class _Reasons:
    """Why rows have no figures: one note for all rows of one reason.

    Args:
        mark: How a note is marked, with {} for its number.
    """

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._rows: dict[str, list[str]] = {}

    def mark(self, row: Row) -> str:
        """Return the mark of a row's note."""
        text = f"{row.status}: {row.reason}"
        self._rows.setdefault(text, []).append(row.key)
        return self._mark.format(list(self._rows).index(text) + 1)

    def lines(self) -> list[str]:
        """Return the notes."""
        return [
            f"{self._mark.format(number)} {', '.join(keys)}, {text}"
            for number, (text, keys) in enumerate(self._rows.items(), start=1)
        ]


def _plain(text: str) -> str:
    """Keep rich from reading "[1]" as markup."""
    from rich.markup import escape

    return escape(text)


def markdown_table(report: Report, *, absent: bool = True) -> str:
    """Return the table as GitHub Markdown, with its notes below.

    Args:
        report: The results.
        absent: Whether rows that were not measured stand in the table; their reasons always do
            below it.
    """
    lines = [
        "| " + " | ".join(HEADERS) + " |",
        "|" + "|".join("---" if index < 3 else "---:" for index in range(len(HEADERS))) + "|",
    ]
    reasons = _Reasons("({})")
    for row in report.rows:
        values = list(cells(row))
        if row.status is not Status.MEASURED:
            values[HEADERS.index("PSNR dB")] = reasons.mark(row)
            if not absent:
                continue
        if row.role == "student":
            values[0] = f"**{values[0]}**"
        lines.append("| " + " | ".join(value or NOTHING for value in values) + " |")
    notes = [
        header_line(report),
        *(f"**{line}**" for line in seen_lines(report)),
        *reasons.lines(),
        *footnotes(report),
    ]
    return "\n".join(lines) + "\n\n" + "\n".join(f"{note}  " for note in notes).rstrip()


def markdown_details(report: Report) -> str:
    """Return the figures that the table leaves out as a second GitHub Markdown table."""
    shown = {name for header in HEADERS for name in header.split()} - {"p50", "p90", "speed-up"}
    rows = [row for row in report.rows if row.status is Status.MEASURED and row.latency]
    used = [
        column
        for column in COLUMNS
        if column.title not in {*shown, "memory", "own", "network p50", "network p90"}
        and any(text_of(column, row, report) != NOTHING for row in rows)
    ]
    heads = [f"{column.title} {column.unit}".strip() for column in used]
    lines = [
        "| " + " | ".join(["variant", *heads]) + " |",
        "|---|" + "---:|" * len(used),
    ]
    for row in rows:
        name = variant_name(row)
        name = f"**{name}**" if row.key == report.recommended else name
        texts = [text_of(column, row, report) for column in used]
        lines.append("| " + " | ".join([name, *texts]) + " |")
    return "\n".join(lines)


def recommendation(report: Report) -> str:
    """Say in one sentence which variant the report recommends."""
    asked = "; ".join(limits_of(report).describe())
    row = recommended_row(report)
    if row is None:
        return f"Recommended: none; no variant keeps all limits ({asked})."
    return f"Recommended: {variant_name(row)} (`{row.key}`), which keeps: {asked}."


def markdown_report(report: Report) -> str:
    """Return the whole report as one Markdown document."""
    parts = [
        "# Reconstruction benchmark",
        recommendation(report),
        markdown_table(report),
        "## More figures",
        markdown_details(report),
        "\n".join(f"- {line}" for line in report.absent),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def console_width() -> int | None:
    """Width for standard output: the terminal's, and room for the whole table in files and pipes.

    Returns:
        Columns, or None to let rich ask the terminal.
    """
    import sys

    return None if sys.stdout.isatty() else FULL_WIDTH
