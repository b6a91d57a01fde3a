"""The benchmark as a table in the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from kdmri_bench.reporting.notes import footnotes, header_line, seen_lines
from kdmri_bench.reporting.profile import markdown_profiles, print_profiles
from kdmri_bench.results.figures import (
    NOTHING,
    Figure,
    figures,
    network_of,
    precision_text,
    runtime_text,
    spelled,
    variant_name,
)
from kdmri_bench.results.schema import ZERO_FILLED, Report, Row, Status
from kdmri_bench.results.select import (
    UNKNOWN_LOSS,
    choose,
    knows_loss,
    limits_of,
    recommended_row,
)
from kdmri_edge.utils.console import table_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "cells",
    "console_width",
    "explained",
    "further_figures",
    "main_figures",
    "markdown_details",
    "markdown_report",
    "markdown_table",
    "plain_table",
    "print_table",
    "recommendation",
    "with_values",
]

COLUMNS: Final = (
    "psnr_db", "ssim", "nmse", "hfn", "p50_ms", "p90_ms", "speedup", "peak_bytes", "size_bytes",
)  # fmt: skip
"""Figures of the table, by name."""

DETAILS: Final = (
    "psnr_to_teacher_db", "p99_ms", "end_to_end_p50_ms", "end_to_end_p90_ms", "end_to_end_p99_ms",
    "resident_p50_ms", "cold_start_s", "slices_per_s_batch_1", "slices_per_s_batch_8",
    "slices_per_s_batch_32", "gpu_peak_bytes", "parameters", "macs", "fraction_of_peak",
    "fraction_of_bandwidth", "joules_per_slice",
)  # fmt: skip
"""Figures of the second table; what is in neither, report.csv has."""

# Left out where the terminal is narrow; report.csv always has everything.
SECONDARY: Final = ("ssim", "nmse", "hfn", "p90_ms", "size_bytes")
FULL_WIDTH: Final = 132
UNLIMITED: Final = 1000
"""Columns of files and pipes: names and paths stay whole, whoever reads them can copy them."""

_HEADS: Final = ("network", "runtime", "precision")


def main_figures() -> list[Figure]:
    """Return the figures of the table, in its order."""
    known = {figure.name: figure for figure in figures()}
    return [known[name] for name in COLUMNS]


def further_figures(report: Report) -> list[Figure]:
    """Return the figures of the second table that any measured row has."""
    known = {figure.name: figure for figure in figures()}
    brought = [figure for figure in figures() if figure.metric and figure.name not in COLUMNS]
    return with_values(report, [*(known[name] for name in DETAILS), *brought])


def with_values(report: Report, wanted: Sequence[Figure]) -> list[Figure]:
    """Return those figures that any measured row of a report has."""
    rows = [row for row in report.rows if row.status is Status.MEASURED]
    return [
        figure
        for figure in wanted
        if any(figure.value(row, network_of(row, report)) is not None for row in rows)
    ]


def cells(row: Row, report: Report) -> list[str]:
    """Return a row of the table as text: network, runtime, precision, and `COLUMNS`."""
    network = network_of(row, report)
    named = [row.network, runtime_text(row), precision_text(row)]
    return named + [figure.cell(row, network) for figure in main_figures()]


def explained() -> list[str]:
    """Explain the figure of the table that few readers will have met."""
    return [f"HFN: {figure.description}" for figure in main_figures() if figure.name == "hfn"]


def print_table(report: Report, console: Console) -> None:
    """Print the table, what was not measured and why, and how to read the figures."""
    for line in seen_lines(report):
        _line(console, f"Warning: {line}", "bold red")
    _line(console, header_line(report))
    wide = console.width >= FULL_WIDTH
    table, reasons = _table(report, wide=wide)
    console.print(table)
    for line in reasons + footnotes(report) + (explained() if wide else []):
        _line(console, line, "dim")
    if report.limits:
        _line(console, recommendation(report), "bold")
    if not wide:
        titles = [figure.title for figure in main_figures() if figure.name in SECONDARY]
        _line(console, f"Left out here, in report.csv: {', '.join(titles)}.", "dim")
    print_profiles(report, console)


def plain_table(report: Report, width: int | None = None) -> str:
    """Return what `print_table` prints as plain text; None leaves room for the whole table."""
    from io import StringIO

    stream = StringIO()
    print_table(report, table_console(file=stream, width=width or UNLIMITED, color_system=None))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _line(console: Console, text: str, style: str | None = None) -> None:
    whole = console.width >= UNLIMITED  # no terminal: nothing is broken into lines
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=whole)


def _table(report: Report, *, wide: bool) -> tuple[Table, list[str]]:
    """Return the table, one section per network, and the reasons of rows without figures."""
    from rich import box
    from rich.table import Table

    heads = [*_HEADS, *(figure.head for figure in main_figures())]
    names = [*_HEADS, *COLUMNS]
    shown = [i for i, name in enumerate(names) if i and (wide or name not in SECONDARY)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    for index in shown:
        left = index <= 2
        table.add_column(
            heads[index].replace(" ", "\n", 1 if wide else -1),
            justify="left" if left else "right",
            no_wrap=index > 1,
            overflow="fold",
            min_width=None if index != 1 else 28 if wide else 16,
        )
    reasons = _Reasons("[{}]")
    network = None
    for row in report.rows:
        values = cells(row, report)
        if row.network != network and network is not None:
            table.add_section()
        if row.role == ZERO_FILLED:  # nothing runs it
            values[1] = row.network
        else:
            values[1] = "  " + (values[1] if wide else values[1].replace(", ", ",\n  "))
            if row.network != network:
                table.add_row(row.network, style="bold")
        network = row.network
        missing = row.status is not Status.MEASURED
        if missing:
            values[len(_HEADS)] = reasons.mark(row)
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
        text = f"{row.status}: {spelled(str(row.reason))}"
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
    heads = [*_HEADS, *(figure.head for figure in main_figures())]
    lines = [
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(_HEADS) + "---:|" * len(COLUMNS),
    ]
    reasons = _Reasons("({})")
    for row in report.rows:
        values = cells(row, report)
        if row.status is not Status.MEASURED:
            values[len(_HEADS)] = reasons.mark(row)
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
    rows = [row for row in report.rows if row.status is Status.MEASURED and row.latency]
    used = further_figures(report)
    heads = [figure.head for figure in used]
    lines = [
        "| " + " | ".join(["variant", *heads]) + " |",
        "|---|" + "---:|" * len(used),
    ]
    for row in rows:
        name = variant_name(row)
        name = f"**{name}**" if row.key == report.recommended else name
        texts = [figure.cell(row, network_of(row, report)) for figure in used]
        lines.append("| " + " | ".join([name, *texts]) + " |")
    return "\n".join(lines)


def recommendation(report: Report) -> str:
    """Say in one sentence which variant the report recommends, in another what is not known."""
    limits = limits_of(report)
    asked = "; ".join(limits.describe())
    row = recommended_row(report)
    if row is None:
        said = _best(report, asked)
    else:
        said = f"Recommended: {variant_name(row)} (`{row.key}`), which keeps: {asked}."
    return said if limits.loss_db is not None or knows_loss(report) else f"{said} {UNKNOWN_LOSS}"


def _best(report: Report, asked: str) -> str:
    """Name the variant that comes nearest to limits that none keeps."""
    choice = choose(report, limits_of(report))
    if choice.nearest is None:
        return f"Recommended: none; no variant keeps all limits ({asked})."
    missed = "; ".join(choice.misses[choice.nearest.key])
    return (
        f"Best trade-off: {variant_name(choice.nearest)} (`{choice.nearest.key}`). No variant keeps"
        f" all limits ({asked}); this one comes nearest and misses: {missed}."
    )


def markdown_report(report: Report) -> str:
    """Return the whole report as one Markdown document."""
    parts = [
        "# Reconstruction benchmark",
        recommendation(report),
        markdown_table(report),
        *explained(),
        "## More figures",
        markdown_details(report),
        "\n".join(f"- {line}" for line in report.absent),
        markdown_profiles(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def console_width() -> int | None:
    """Width for standard output: None lets rich ask the terminal; files and pipes have no end."""
    import sys

    return None if sys.stdout.isatty() else UNLIMITED
