"""`kdmri-edge bench`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kdmri_edge.errors import BenchError

__all__ = ["bench"]


@click.command()
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path),
    help="Folder of volumes (or one file). Of a folder that follows the run's split or a known one"
    " only the test subjects are measured; any other folder is all test data.",
)  # fmt: skip
@click.option("--contrast", help="Measure on this contrast only, e.g. T1w.")
@click.option(
    "--subjects", help="Measure on exactly these subjects, comma-separated, whatever the split."
)
@click.option(
    "--out", type=click.Path(path_type=Path),
    help="Folder for report.json, report.csv and panel.png."
    "  [default: RUN/bench, else ./kdmri-bench]",
)  # fmt: skip
@click.option("--threads", type=int, help="Threads of every runtime.  [default: all CPUs]")
@click.option(
    "--precision", "precisions", multiple=True, type=click.Choice(["f32", "f16", "bf16", "int8"]),
    help="Measure this precision; may be repeated.  [default: f32, bf16, int8]",
)  # fmt: skip
@click.option("--samples", default=100, show_default=True, help="Timed queries per row.")
@click.option("--warmup", default=10, show_default=True, help="Untimed queries before each round.")
@click.option(
    "--with-plain-export", is_flag=True,
    help="Also measure exports that keep DFT nodes, as a plain export of the network would.",
)  # fmt: skip
@click.option("--limit-slices", type=int, help="Measure on the central N slices of each volume.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, not as a table.")
def bench(
    sources: tuple[Path, ...],
    data: Path,
    contrast: str | None,
    subjects: str | None,
    out: Path | None,
    threads: int | None,
    precisions: tuple[str, ...],
    samples: int,
    warmup: int,
    with_plain_export: bool,
    limit_slices: int | None,
    as_json: bool,
) -> None:
    """Compare quality, latency and memory of networks on every runtime of this machine.

    SOURCES are runs, checkpoints, bundles, folders of bundles, or trained networks of the package
    (`kdmri-edge models`); without any, the newest run under
    runs/ is measured. For a run, missing exports are made first and kept under RUN/exports.

    Every row is measured in a process of its own; quality comes from that runtime's own output on
    the test volumes.
    """
    from kdmri_bench.report import check_writable
    from kdmri_bench.settings import USUAL, BenchSettings, Precision
    from kdmri_bench.sources import gather
    from kdmri_bench.testdata import choose_files, load_cases, run_split
    from kdmri_edge.console import say
    from kdmri_edge.runs import Run, newest_run

    settings = BenchSettings(
        threads=threads,
        precisions=tuple(Precision(p) for p in precisions) or USUAL,
        samples=samples,
        warmup=warmup,
        plain_export=with_plain_export,
        limit_slices=limit_slices,
    )
    if not sources:
        sources = (newest_run().path,)
        say(f"Measuring the newest run, {sources[0]}.")
    networks = gather(sources)
    runs = [Run(path) for path in sources if (path / "run.json").is_file()]
    own = run_split(runs[0].meta) if len(runs) == 1 else None
    first = networks[0]
    files, split = choose_files(data, contrast=contrast, subjects=_list(subjects), own=own)
    out = out or (runs[0].path / "bench" if len(runs) == 1 else Path("kdmri-bench"))
    check_writable(out)
    loaded = load_cases(
        files,
        mask=first.mask,
        matrix=first.matrix,
        spec=first.spec,
        split=split,
    )

    from kdmri_bench.cells import seen_lines
    from kdmri_bench.run import bench as measure

    done = measure(networks, loaded, settings, out=out)
    if as_json:
        for line in seen_lines(done.report):
            say(f"Warning: {line}")
        click.echo(json.dumps(done.report.to_dict(), indent=1, ensure_ascii=False))
    else:
        from rich.console import Console

        from kdmri_bench.table import console_width, print_table

        print_table(done.report, Console(width=console_width()))
    for kind in ("json", "csv", "panel"):
        say(f"{kind}: {done.files[kind]}")


def _list(text: str | None) -> list[str]:
    """Split a comma-separated option.

    Raises:
        BenchError: it names nothing.
    """
    if text is None:
        return []
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise BenchError("--subjects names no subject.", "Write e.g. --subjects 04,19.")
    return names
