"""`kdmri-edge select`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

__all__ = ["select"]


@click.command()
@click.argument("report", type=click.Path(path_type=Path), default=Path("kdmri-bench"))
@click.option(
    "--max-latency", metavar="TIME",
    help="Of one slice from k-space to image, kept by nine of ten (p90), e.g. 20ms.",
)  # fmt: skip
@click.option("--max-memory", metavar="SIZE", help="Peak of the process, e.g. 300MB or 256MiB.")
@click.option(
    "--max-loss", metavar="DB",
    help="Largest loss in PSNR to the teacher, e.g. 0.1dB: the upper end of its 95 % interval.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the choice as JSON.")
def select(
    report: Path,
    max_latency: str | None,
    max_memory: str | None,
    max_loss: str | None,
    as_json: bool,
) -> None:
    """Pick the smallest variant of a report that keeps your limits.

    REPORT is a report.json of `kdmri-edge bench`, or its folder. Of the networks that keep all
    limits the one with the fewest parameters is taken, in its fastest way of running. Without any
    limit the report's own are used, which gives the variant that the report recommends. If none
    keeps them, the exit code is 1 and each variant says what it misses.

    \b
    Example:
      kdmri-edge select report/report.json --max-latency 20ms --max-memory 300MB --max-loss 0.1dB
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_bench.report import read_report
    from kdmri_bench.select import Limits, choose, limits_of, parse
    from kdmri_bench.select_text import as_dict, lines

    found = read_report(report / "report.json" if report.is_dir() else report)
    given = [
        parse(text, option) if text is not None else None
        for text, option in (
            (max_latency, "max-latency"),
            (max_memory, "max-memory"),
            (max_loss, "max-loss"),
        )
    ]
    limits = limits_of(found)
    if any(value is not None for value in given):
        limits = Limits(latency_ms=given[0], memory_bytes=given[1], loss_db=given[2])
    choice = choose(found, limits)
    if as_json:
        click.echo(json.dumps(as_dict(choice, limits), indent=1))
    else:
        for line in lines(found, choice, limits):
            click.echo(line)
    if choice.row is None:
        sys.exit(1)
