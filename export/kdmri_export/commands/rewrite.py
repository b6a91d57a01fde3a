"""`kdmri-edge rewrite`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import json_option
from kdmri_edge.utils.console import print_result, tell
from kdmri_edge.utils.extras import require
from kdmri_export.commands.shapes import shape_option
from kdmri_export.runtime_check import SECONDS

__all__ = ["rewrite"]


@click.command(cls=Command)
@click.argument("graph", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The .onnx file to write.",
)
@shape_option("where the graph leaves them free along a transform")
@click.option("--time", "timed", is_flag=True, help="Time both graphs in ONNX Runtime.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=SECONDS,
    metavar="SECONDS",
    help=f"How long a runtime may work on a graph [{SECONDS}].",
)
@json_option()
def rewrite(
    graph: Path,
    output: Path,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    timed: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Write an ONNX graph with matrix products in place of its DFT nodes.

    GRAPH is an .onnx file of any origin. Few runtimes have a DFT, and fewer a fast one; all
    multiply matrices. Shifts of zero frequency around a transform go into its matrix, factors of
    normalisation stay. The result is run beside the original on random numbers, and is written
    only if it computes the same.

    \b
    Examples:
      kdmri-edge rewrite varnet.onnx -o varnet-products.onnx --time
      kdmri-edge rewrite varnet.onnx -o fixed.onnx --shape kspace=1x4x320x320x2
    """  # noqa: D301 - click wants the backspace itself
    require("torch", extra="train")
    require("onnx", extra="onnx")
    from kdmri_export.rewrite import rewrite_graph

    made = rewrite_graph(graph, output, shapes=dict(shapes), timed=timed, limit_s=timeout)
    if as_json:
        print_result(json.dumps({"output": str(output), **asdict(made)}, indent=2))
        return
    shifts = f", {made.shifts} shifts within them" if made.shifts else ""
    tell(
        f"{output}: {made.transforms} DFT nodes are products now{shifts};"
        f" {made.file_bytes / 1e6:.1f} MB, of which {made.matrix_bytes / 1e6:.1f} MB matrices."
    )
    limits = made.tolerance
    tell(
        f"Against {made.against}: max error {made.max_error:.1e} of the range"
        f" (limit {limits['max_error']:.0e}), NRMSE {made.nrmse:.1e} (limit {limits['nrmse']:.0e})."
    )
    if made.before_ms is not None and made.after_ms is not None:
        tell(
            f"ONNX Runtime, in turn: {made.before_ms:.2f} ms before, {made.after_ms:.2f} ms after,"
            f" ratio {made.before_ms / made.after_ms:.2f}."
        )
    elif timed:
        tell("Not timed: ONNX Runtime does not run the graph as it was.")
