"""`kdmri-edge check`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import NamedChoice, json_option
from kdmri_edge.errors import ExportError
from kdmri_edge.utils.console import print_result, tell
from kdmri_export.commands.shapes import shape_option
from kdmri_export.graph_check import CHECKED, WHOLE
from kdmri_export.runtime_check import SECONDS, Verdict, ask_targets

__all__ = ["check"]


@click.command(cls=Command)
@click.argument("graph", type=click.Path(path_type=Path))
@click.option(
    "--target",
    "targets",
    type=NamedChoice(CHECKED, "table of operators for target"),
    multiple=True,
    help="Check for this target; may be repeated [all].",
)
@shape_option("where the graph leaves them free")
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=SECONDS,
    metavar="SECONDS",
    help=f"How long each runtime may think about it [{SECONDS}].",
)
@json_option()
def check(
    graph: Path,
    targets: tuple[str, ...],
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    timeout: float,
    as_json: bool,
) -> None:
    """Ask the runtimes that are installed whether they take an ONNX graph.

    GRAPH is an .onnx file of any origin, or a bundle that holds one. ONNX Runtime and OpenVINO load
    and run it on random numbers, and their results are compared; the parser of TensorRT or
    TensorRT-RTX reads it. Operators that no export of this project uses are listed beside.

    Exits with 0 if every target takes it, with 1 if one refuses it or computes something else, and
    with 3 if none does, but one could not be asked.

    \b
    Examples:
      kdmri-edge check model.onnx --target trt
      kdmri-edge check unet.onnx --shape image=1x1x320x320
      kdmri-edge check runs/brain/exports/student-onnx
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.runtime.bundle import open_bundle
    from kdmri_export.graph_check import check_graph, load_graph

    file = graph
    if graph.is_dir() or not (graph.exists() or graph.suffix == ".onnx"):
        bundle = open_bundle(graph)
        file = bundle.graph
        if file.suffix != ".onnx":
            raise ExportError(
                f"{graph} holds a graph for {bundle.target.name}, not one of ONNX.",
                "Export it with `kdmri-edge export --target onnx`, whose bundles hold one.",
            )
    model = load_graph(file)
    found = {}
    for target in dict.fromkeys(targets or CHECKED):
        operators, findings = check_graph(model, target)
        found[target] = findings
    answers = ask_targets(file, model, found, shapes=dict(shapes), limit_s=timeout)
    if as_json:
        listed = {target: [asdict(one) for one in some] for target, some in found.items()}
        said = {target: asdict(answer) for target, answer in answers.items()}
        record = {"operators": operators, "targets": said, "findings": listed}
        print_result(json.dumps(record, indent=2))
    else:
        tell(", ".join(f"{name} x{count}" for name, count in operators.items()))
        for target, answer in answers.items():
            tell(f"{target}: {answer}")
        uncovered = {
            one.operator if one.node != WHOLE else one.why: one.remedy
            for some in found.values()
            for one in some
            if not one.fault
        }
        if uncovered:
            tell(
                "This project's exports never use, and its parity tests therefore do not cover: "
                f"{'; '.join(uncovered)}."
            )
    verdicts = {answer.verdict for answer in answers.values()}
    if verdicts & {Verdict.REFUSED, Verdict.WRONG}:
        raise click.exceptions.Exit(1)
    if Verdict.UNVERIFIED in verdicts:
        raise click.exceptions.Exit(3)
