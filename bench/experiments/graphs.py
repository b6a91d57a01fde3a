"""How long graphs take beside one another: `python -m experiments.graphs`.

Bundles take turns in one process, so that their ratios hold on a noisy machine: those of one
runtime at a time, whose threads would otherwise wait for work while another one computes. So a
graph can be compared with that of an earlier version, which `bench` takes for the same network.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from experiments.script import Script, record
from kdmri_edge.errors import BenchError
from kdmri_edge.runtime.bundle import GOLDEN_INPUT, Bundle, open_bundle
from kdmri_edge.runtime.session import Session, open_session
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.provenance import provenance

__all__ = ["main", "markdown", "measure"]

SCHEMA: Final = 1
_FIRST: Final = 3
"""Queries of a turn that are not timed: caches hold another graph's weights then."""


def measure(
    bundles: Mapping[str, Path], *, rounds: int = 12, queries: int = 20, threads: int | None = None
) -> dict[str, Any]:
    """Time bundles in turns.

    Args:
        bundles: Their folders, by what they are to be called. The first one of each runtime is
            what the others of it are compared with.
        rounds: How often each has its turn.
        queries: Timed queries of a turn, one slice each.
        threads: CPU threads; None leaves the runtime's choice.

    Returns:
        JSON values: a row for each bundle, with the median of each round in ms, and its ratio to
        the first one's of the same round.

    Raises:
        BenchError: There is no bundle.
        KdmriError: A bundle cannot be loaded.
    """
    if not bundles:
        raise BenchError("There is nothing to measure.", "Name a bundle, as NAME=FOLDER.")
    known = {name: open_bundle(path) for name, path in bundles.items()}
    by_runtime: dict[str, list[str]] = {}
    for name, bundle in known.items():
        by_runtime.setdefault(bundle.target.backend.name, []).append(name)
    rows = []
    with progress("Queries", len(known) * rounds * (queries + _FIRST)) as advance:
        for names in by_runtime.values():
            sessions = {name: open_session(bundles[name], threads=threads) for name in names}
            inputs = {name: _slice(known[name]) for name in names}
            taken: dict[str, list[float]] = {name: [] for name in names}
            for _ in range(rounds):
                for name, session in sessions.items():
                    taken[name].append(_turn(session, inputs[name], queries))
                    advance(queries + _FIRST)
            rows += [
                _row(name, known[name], sessions[name], taken[name], names[0], taken[names[0]])
                for name in names
            ]
    return {
        "schema": SCHEMA,
        "rounds": rounds,
        "queries": queries,
        "rows": rows,
        "provenance": provenance(0),
    }


def _slice(bundle: Bundle) -> NDArray[np.float32]:
    given: NDArray[np.float32] = np.load(bundle.path / GOLDEN_INPUT)
    return given[:1]


def _turn(session: Session, x_u: NDArray[np.float32], queries: int) -> float:
    """Return the median of some queries in ms."""
    times = []
    for number in range(_FIRST + queries):
        began = time.perf_counter()
        session.run(x_u)
        if number >= _FIRST:
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def _row(
    name: str, bundle: Bundle, session: Session, taken: list[float], beside: str,
    other: list[float],
) -> dict[str, Any]:  # fmt: skip
    info = session.info
    return {
        "name": name,
        "network": bundle.manifest["checkpoint_sha256"],
        "revision": bundle.manifest["provenance"]["git"]["revision"],
        "runtime": f"{info.backend} {info.version}",
        "threads": info.threads,
        "executed": info.precision_executed,
        "ms": taken,
        "beside": beside,
        "ratios": [own / first for own, first in zip(taken, other, strict=True)],
    }


def markdown(report: dict[str, Any]) -> str:
    """Return the table as GitHub Markdown."""
    lines = [
        "| graph | runtime | executed | written at | ms a slice, median of rounds (range) |"
        " share of the first one's (quarter to three quarters of the rounds) |",
        "|---|---|---|---|---:|---:|",
    ]
    for row in report["rows"]:
        low, middle, high = np.quantile(row["ratios"], (0.25, 0.5, 0.75))
        share = (
            "1"
            if row["name"] == row["beside"]
            else f"**{middle:.0%}** ({low:.0%} to {high:.0%})".replace("%", " %")
        )
        times = row["ms"]
        lines.append(
            f"| {row['name']} | {row['runtime']} | {row['executed']} | {row['revision'][:12]} |"
            f" {statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f}) | {share} |"
        )
    threads = ", ".join(sorted({str(row["threads"]) for row in report["rows"]}))
    lines += [
        "",
        f"One slice at a time, {threads} threads; {report['rounds']} rounds in which the graphs of"
        f" a runtime took turns of {report['queries']} queries in one process, medians of each"
        " turn.",
    ]
    return "\n".join(lines)


def _named(values: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not equals or not name or not folder or name in found:
            raise BenchError(
                f"{value!r} is no bundle with a name of its own.", "Give each as NAME=FOLDER."
            )
        found[name] = Path(folder)
    return found


@click.command(cls=Script)
@click.argument("bundles", nargs=-1, required=True)
@click.option("--rounds", type=click.IntRange(1), default=12, show_default=True)
@click.option("--queries", type=click.IntRange(1), default=20, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--out", type=click.Path(path_type=Path), help="Write report.json into this folder.")
def main(
    bundles: tuple[str, ...], rounds: int, queries: int, threads: int | None, out: Path | None
) -> None:
    """Time bundles, NAME=FOLDER each, beside the first one of their runtime."""
    report = measure(_named(bundles), rounds=rounds, queries=queries, threads=threads)
    record(report, out)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
