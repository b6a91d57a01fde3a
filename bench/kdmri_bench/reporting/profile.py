"""What layers take, as tables for the terminal and for Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kdmri_bench.results.figures import spelled, variant_name
from kdmri_bench.results.schema import Report, Row

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["markdown_profiles", "print_profiles"]

HEADS: Final = ("layer", "type", "precision", "kernel", "ms", "share")

# Layers that are shown: report.json has all of them.
_SHOWN: Final = 16


def print_profiles(report: Report, console: Console) -> None:
    """Print a table of layers for each row that has one."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    for row in _profiled(report):
        console.print(_title(row), style="bold", markup=False, highlight=False, soft_wrap=True)
        if "reason" in _profile(row):
            continue
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
        for head in HEADS:
            right = head in HEADS[-2:]
            table.add_column(head, justify="right" if right else "left", overflow="fold")
        for cells in _lines(row):
            table.add_row(*map(escape, cells))
        console.print(table)


def markdown_profiles(report: Report) -> str:
    """Return the same as GitHub Markdown, empty where no layer was timed."""
    parts = []
    for row in _profiled(report):
        lines = [f"### {_title(row)}"]
        if "reason" not in _profile(row):
            lines += ["", "| " + " | ".join(HEADS) + " |", "|---|---|---|---|---:|---:|"]
            lines += ["| " + " | ".join(cells) + " |" for cells in _lines(row)]
        parts.append("\n".join(lines))
    return "\n\n".join(["## Layers", *parts]) if parts else ""


def _profiled(report: Report) -> list[Row]:
    return [row for row in report.rows if row.profile is not None]


def _profile(row: Row) -> dict[str, Any]:
    return dict(row.profile or {})


def _title(row: Row) -> str:
    """Say which row it is, and how its layers' sum compares with a query that nobody watches."""
    profile = _profile(row)
    name = f"{variant_name(row)} (`{row.key}`)"
    if "reason" in profile:
        return f"{name}: its layers were not timed. {spelled(str(profile['reason']))}"
    usual = "" if row.latency is None else f"; {row.latency['p50_ms']:.2f} ms without that"
    return (
        f"{name}: {profile['total_ms']:.2f} ms in {len(profile['layers'])} layers, timed one by"
        f" one{usual}"
    )


def _lines(row: Row) -> list[tuple[str, ...]]:
    """Return the cells of the layers that take longest, and of the others together."""
    profile = _profile(row)
    layers = sorted(profile["layers"], key=lambda layer: -float(layer["ms"]))
    lines: list[tuple[str, ...]] = [
        (
            str(layer["layer"]),
            str(layer["type"]),
            spelled(str(layer["precision"])),
            str(layer["kernel"]),
            f"{layer['ms']:.3f}",
            f"{100 * layer['share']:.1f} %",
        )
        for layer in layers[:_SHOWN]
    ]
    others = layers[_SHOWN:]
    if others:
        ms = sum(float(layer["ms"]) for layer in others)
        share = 100 * sum(float(layer["share"]) for layer in others)
        lines.append((f"{len(others)} others", "", "", "", f"{ms:.3f}", f"{share:.1f} %"))
    return lines
