"""The same network by the path that one would take without us: `python -m experiments.peers`.

A trained student is exported by one call of `torch.onnx.export`, from a network whose data
consistency is written with torch.fft, and run in ONNX Runtime and OpenVINO; and it is compiled by
torch.compile. Both are measured in one run with this project's own exports, in the same interleaved
rounds, so that the ratios hold on a noisy machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from experiments.ratios import markdown_ratios
from experiments.script import Script
from kdmri_bench.benchmark import measure_networks
from kdmri_bench.planning.rows import Plan, planned_row
from kdmri_bench.planning.settings import FULL, QUICK
from kdmri_bench.planning.sources import Source, gather
from kdmri_bench.planning.testdata import choose_files, load_cases
from kdmri_bench.results.schema import PEER_COMPILE, PEER_EXPORT, Status
from kdmri_edge.runtime.backends.registry import BACKENDS
from kdmri_edge.utils.console import say
from kdmri_edge.utils.extras import available

__all__ = ["main", "peer_plans"]

_OPENER = "experiments.peer_sessions:open_peer"
_GRAPHS = (("onnxruntime", "f32"), ("openvino", "f32"), ("openvino", "bf16"))


def peer_plans(sources: Sequence[Source], scratch: Path) -> list[Plan]:
    """Lay out the peers' rows of every student with a checkpoint."""
    plans: list[Plan] = []
    for source in sources:
        if source.role != "teacher" and source.checkpoint and source.spec.has_data_consistency:
            plans += _of(source, source.checkpoint, scratch)
    return plans


def _of(source: Source, checkpoint: Path, scratch: Path) -> list[Plan]:
    graph = scratch / f"peer-{checkpoint.stem}-{source.role}.onnx"
    reason, nodes = _export(source, checkpoint, graph)
    plans = []
    for name, precision in _GRAPHS:
        key = f"peer-{name}-{precision}"
        row = planned_row(source, key, BACKENDS[name].title, precision, variant=PEER_EXPORT)
        if reason is not None:
            failed = replace(row, status=Status.FAILED, reason=reason)
            plans.append(Plan(row=failed, source=None))
            continue
        row = replace(row, size_bytes=graph.stat().st_size, dft_nodes=nodes)
        plans.append(Plan(row=row, source=graph, backend=name, opener=_OPENER, reads=checkpoint))
    row = planned_row(source, "peer-compile-f32", "PyTorch", "f32", variant=PEER_COMPILE)
    row = replace(row, size_bytes=checkpoint.stat().st_size)
    options = {"matrix": source.matrix}
    plans.append(Plan(row=row, source=checkpoint, opener=_OPENER, options=options))
    return plans


def _export(source: Source, checkpoint: Path, graph: Path) -> tuple[str | None, int | None]:
    """Export; return why that failed, or the number of Fourier transforms in the graph."""
    if not available("onnx") or not available("onnxscript"):
        return "torch.onnx.export needs the packages onnx and onnxscript.", None
    import onnx

    from experiments.peer_sessions import write_onnx

    try:
        write_onnx(checkpoint, source.matrix, graph)
        nodes = onnx.load(graph).graph.node
    except Exception as error:  # an exporter may raise anything
        said = str(error).strip().splitlines()
        return f"The export failed: {said[0][:300] if said else type(error).__name__}", None
    return None, sum(node.op_type == "DFT" for node in nodes)


@click.command(cls=Script)
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Test volumes.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the report.")
@click.option("--contrast", help="Measure on this contrast only.")
@click.option("--quick/--full", "quick", default=True, show_default="quick", help="See `bench`.")
@click.option("--threads", type=int, help="Threads of every runtime.  [default: all CPUs]")
@click.option("--limit-slices", type=int, help="Central slices of each volume.")
@click.option("--samples", type=int, help="Timed queries per row.")
def main(
    sources: tuple[Path, ...],
    data: Path,
    out: Path | None,
    contrast: str | None,
    quick: bool,
    threads: int | None,
    limit_slices: int | None,
    samples: int | None,
) -> None:
    """Measure networks beside what one gets of them without this project."""
    mode = QUICK if quick else FULL
    settings = replace(
        mode,
        threads=threads,
        every_way=False,
        plain_export=False,
        peaks_s=0.0,
        batches=(),
        samples=samples or mode.samples,
        end_to_end=samples or mode.end_to_end,
        seconds=mode.seconds if samples is None else None,
        limit_slices=limit_slices or mode.limit_slices,
    )
    networks = gather(sources)
    files, split = choose_files(data, contrast=contrast)
    first = networks[0]
    cases = load_cases(files, mask=first.mask, matrix=first.matrix, spec=first.spec, split=split)
    done = measure_networks(networks, cases, settings, out=out, extra=peer_plans)
    click.echo(markdown_ratios(done.report, PEER_EXPORT))
    click.echo()
    click.echo(markdown_ratios(done.report, PEER_COMPILE))
    for row in done.report.rows:
        if row.reason:
            say(f"{row.key}: {row.reason}")


if __name__ == "__main__":
    main()
