"""`kdmri-edge check`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from kdmri_edge.commands.options import NamedChoice
from kdmri_edge.errors import ExportError
from kdmri_export.graph_check import CHECKED

__all__ = ["check"]


@click.command()
@click.argument("graph", type=click.Path(path_type=Path))
@click.option(
    "--target",
    "targets",
    type=NamedChoice(CHECKED, "table of operators for target"),
    multiple=True,
    help="Check for this target; may be repeated [all].",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def check(graph: Path, targets: tuple[str, ...], as_json: bool) -> None:
    """List the operators of an ONNX graph, and the nodes that a target does not take.

    GRAPH is an .onnx file of any origin, or a bundle that holds one. Exits with 1 if a target does
    not take it.

    \b
    Examples:
      kdmri-edge check model.onnx --target trt
      kdmri-edge check runs/brain/exports/student-onnx
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.runtime.bundle import open_bundle
    from kdmri_export.graph_check import check_graph

    file = graph
    if graph.is_dir() or not (graph.exists() or graph.suffix == ".onnx"):
        bundle = open_bundle(graph)
        file = bundle.graph
        if file.suffix != ".onnx":
            raise ExportError(
                f"{graph} holds a graph for {bundle.target.name}, not one of ONNX.",
                "Export it with `kdmri-edge export --target onnx`, whose bundles hold one.",
            )
    found = {}
    for target in targets or CHECKED:
        operators, findings = check_graph(file, target)
        found[target] = findings
    if as_json:
        listed = {target: [asdict(one) for one in some] for target, some in found.items()}
        click.echo(json.dumps({"operators": operators, "findings": listed}, indent=2))
    else:
        click.echo(", ".join(f"{name} x{count}" for name, count in operators.items()))
        for target, findings in found.items():
            click.echo(f"{target}: {'does not take' if findings else 'takes all'}")
            for one in findings:
                click.echo(f"  {one}. {one.remedy}")
    if any(found.values()):
        raise click.exceptions.Exit(1)
