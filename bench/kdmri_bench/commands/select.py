"""`kdmri-edge select`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from kdmri_bench.commands.limits import limit_options, read_limits
from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import json_option
from kdmri_edge.utils.console import print_result

__all__ = ["select"]


@click.command(cls=Command)
@click.argument("report", type=click.Path(path_type=Path), default=Path("kdmri-bench"))
@limit_options
@json_option("Print the choice as JSON.")
def select(
    report: Path,
    max_latency: float | None,
    max_memory: float | None,
    max_loss: float | None,
    as_json: bool,
) -> None:
    """Pick the smallest variant of a report that keeps your limits.

    REPORT is a report.json of `kdmri-edge bench`, its folder, or a run that was measured: by
    default ./kdmri-bench. Of the networks that keep all
    limits the one with the fewest parameters is taken, in its fastest way of running. Without any
    limit the report's own are used, which gives the variant that the report recommends. If none
    keeps them, the exit code is 1 and each variant says what it misses.

    \b
    Example:
      kdmri-edge select report/report.json --max-latency 20ms --max-memory 300MB --max-loss 0.1dB
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_bench.reporting.report import read_report
    from kdmri_bench.reporting.selection import as_dict, lines
    from kdmri_bench.results.select import choose, limits_of
    from kdmri_edge.errors import BenchError
    from kdmri_edge.utils.files import damaged

    found = read_report(report)
    limits = read_limits(max_latency, max_memory, max_loss)
    with damaged(report, BenchError):
        limits = limits or limits_of(found)
        choice = choose(found, limits)
        shown = json.dumps(as_dict(choice, limits), indent=1) if as_json else ""
        said = [] if as_json else list(lines(found, choice, limits))
    for line in [shown] if as_json else said:
        print_result(line)
    if choice.row is None:
        sys.exit(1)
