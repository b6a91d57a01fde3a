"""`kdmri-edge bench`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import click

from kdmri_bench.commands.limits import limit_options, read_limits
from kdmri_bench.commands.options import (
    contrast_option,
    limit_slices_option,
    names,
    subjects_option,
    threads_option,
)
from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import brought_options, json_option

__all__ = ["bench"]

# The second spellings are those of version 0.1.
_PRECISIONS = ["fp32", "fp16", "bf16", "int8", "f32", "f16"]


def _batches(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    """Read a list of batch sizes.

    Raises:
        click.BadParameter: It holds something else than whole numbers from 1 on.
    """
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise click.BadParameter(f"{text!r} is no list of numbers from 1 on, such as 1,8.")
    return tuple(sorted({int(word) for word in words}))


@click.command(cls=Command)
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path),
    help="Folder of volumes, BIDS too, or one file. Of a folder that follows the run's split or a"
    " known one only the test subjects are measured; any other folder is all test data.",
)  # fmt: skip
@contrast_option
@subjects_option
@click.option(
    "--out", type=click.Path(path_type=Path),
    help="Folder for report.html, .md, .json, .csv and panel.png."
    "  [default: RUN/bench, else ./kdmri-bench]",
)  # fmt: skip
@threads_option("all CPUs, for every runtime")
@click.option(
    "--precision", "precisions", multiple=True, type=click.Choice(_PRECISIONS),
    metavar="fp32|fp16|bf16|int8",
    help="Measure this precision; may be repeated.  [default: fp32, bf16, int8]",
)  # fmt: skip
@click.option(
    "--quick/--full", "quick", default=True, show_default="quick",
    help="Quick: an answer in minutes, on the central slices. Full: for publication, over an hour,"
    " unattended: 1,024 queries or 60 s per row, whole volumes, p99, batches, torch.compile.",
)  # fmt: skip
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="Timed queries per row, however long they take.  [quick: 40, full: 1024, the slowest rows"
    " fewer]",
)
@click.option("--warmup", type=click.IntRange(min=0), help="Untimed queries before each round.")
@click.option(
    "--batches",
    callback=_batches,
    help="Batch sizes of the offline throughput.  [quick: 1, full: 1,8,32]",
)
@click.option(
    "--with-plain-export/--without-plain-export", default=True, show_default="with",
    help="Measure exports that keep DFT nodes, as a plain export of the network would.",
)  # fmt: skip
@click.option(
    "--usual-only", is_flag=True,
    help="Measure each runtime in its usual way alone: no other layouts, hints or compilers.",
)  # fmt: skip
@limit_slices_option("quick: 4, full: all")
@click.option(
    "--rows", multiple=True, metavar="PATTERN",
    help="Measure only rows that are called so, e.g. 'student/*' or 'cuda-*'; may be repeated.",
)  # fmt: skip
@click.option("--list-rows", is_flag=True, help="Measure nothing: list the rows that there are.")
@click.option(
    "--evaluation",
    type=click.Choice(["target", "fastmri"]),
    default="target",
    show_default=True,
    help="Compare with what the networks are taught; or, of fastMRI's files, with their references"
    " as its public evaluation does, on whole volumes.",
)
@click.option(
    "--profile", is_flag=True,
    help="Also time every layer, in OpenVINO and ONNX Runtime: a pass of its own at the end, since"
    " that slows a network.",
)  # fmt: skip
@limit_options
@brought_options(several=True)
@click.option(
    "--compare", nargs=2, type=click.Path(path_type=Path), metavar="A.json B.json",
    help="Measure nothing: say where report B is worse than A beyond the noise; exit 1 if it is.",
)  # fmt: skip
@click.option(
    "--import", "imports", multiple=True, type=click.Path(path_type=Path), metavar="ROW.json",
    help="Measure nothing: join to a report what a device has measured, the output of a bundle's"
    " jetson.py or run_engine.py; may be repeated.",
)  # fmt: skip
@json_option("Print the report, or what --list-rows lists, as JSON, not as a table.")
def bench(
    sources: tuple[Path, ...],
    data: Path | None,
    contrast: str | None,
    subjects: str | None,
    out: Path | None,
    threads: int | None,
    precisions: tuple[str, ...],
    quick: bool,
    samples: int | None,
    warmup: int | None,
    batches: tuple[int, ...] | None,
    with_plain_export: bool,
    usual_only: bool,
    limit_slices: int | None,
    rows: tuple[str, ...],
    list_rows: bool,
    evaluation: str,
    profile: bool,
    max_latency: float | None,
    max_memory: float | None,
    max_loss: float | None,
    weights: tuple[Path, ...],
    for_mask: str | None,
    matrix: int | None,
    convention: str | None,
    compare: tuple[Path, Path] | None,
    imports: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Compare quality, latency and memory of networks on every runtime of this machine.

    SOURCES are runs, checkpoints, bundles, folders of bundles, or trained networks of the package
    (`kdmri-edge models`); without any, the newest run under runs/ is measured. Code,
    FILE.py:factory or package.module:factory, makes a network of your own, whose --weights and
    --for-mask are named as well; of several, --weights is repeated. For a run, missing exports are
    made first and kept under RUN/exports.

    Every row is measured in a process of its own; quality comes from that runtime's own output on
    the test volumes. What this machine lacks keeps its row, with the reason. Each row is kept under
    OUT as soon as it has a figure: the same command goes on where it was cut off. The report
    recommends the smallest variant that keeps the limits of --max-latency, --max-memory and
    --max-loss (without any of them 50 ms, 512 MiB and 0.1 dB; of some, the others are left open);
    `kdmri-edge select` tries others without measuring again.

    \b
    Examples:
      kdmri-edge bench runs/mine --data DIR
      kdmri-edge bench dccnn-d5c5@brain-4x dccnn-edge@brain-4x --data DIR --full --out report
      kdmri-edge bench --compare report-old/report.json report/report.json
      kdmri-edge bench report --import row.json
    """  # noqa: D301 - click wants the backspace itself
    if compare is not None:
        from kdmri_bench.results.compare import compare_files

        sys.exit(compare_files(*compare, as_json=as_json))
    if imports:
        from kdmri_bench.commands.outcome import import_rows

        if len(sources) != 1:
            raise click.UsageError("--import takes one report: its folder, or its report.json.")
        import_rows(sources[0], imports, out=out, as_json=as_json)
        return
    if data is None and not list_rows:
        raise click.UsageError("Missing option '--data': the folder of the test volumes.")
    from kdmri_bench.benchmark import benchmark
    from kdmri_bench.commands.outcome import next_steps, print_outcome
    from kdmri_bench.planning.settings import FULL, PROFILED, QUICK, USUAL, Precision
    from kdmri_bench.planning.sources import has_code, with_checkpoints
    from kdmri_edge.distillation.run_folder import newest_run
    from kdmri_edge.utils.console import say

    limits = read_limits(max_latency, max_memory, max_loss)
    mode = QUICK if quick else FULL
    given: dict[str, Any] = {
        "samples": samples,
        "end_to_end": samples,
        "warmup": warmup,
        "limit_slices": limit_slices,
        "batches": batches,
    }
    if evaluation == "fastmri":  # of whole volumes, in the quick mode too
        mode = replace(mode, limit_slices=None)
    settings = replace(
        mode,
        threads=threads,
        evaluation=evaluation,
        precisions=tuple(Precision.of(name) for name in precisions) or USUAL,
        plain_export=with_plain_export,
        every_way=not usual_only,
        profile=PROFILED if profile else 0,
        seconds=mode.seconds if samples is None else None,
        **{name: value for name, value in given.items() if value is not None},
    )
    if not sources:
        sources = (newest_run().path,)
        say(f"Measuring the newest run, {sources[0]}.")
    coded = has_code(sources)
    sources = tuple(
        cast(Path, source)  # of what is named by text there is nothing else
        for source in with_checkpoints(
            sources,
            weights=weights,
            for_mask=for_mask,
            matrix=matrix if coded else None,
            convention=convention,
        )
    )
    if list_rows or data is None:
        from kdmri_bench.commands.outcome import print_rows

        print_rows(sources, settings, rows, as_json=as_json)
        return
    runs = [path for path in sources if (path / "run.json").is_file()]
    done = benchmark(
        sources,
        data,
        contrast=contrast,
        subjects=names("--subjects", subjects),
        settings=settings,
        limits=limits,
        matrix=None if coded else matrix,
        rows=rows,
        out=out or (runs[0] / "bench" if len(runs) == 1 else Path("kdmri-bench")),
    )
    print_outcome(done, as_json=as_json)
    if quick:
        part = " on central slices" if settings.limit_slices else ""
        say(f"This was the quick mode: few samples{part}.")
    say("Next:")
    for step in next_steps(done, sources, again_on=data if quick else None):
        say(f"  {step}")
