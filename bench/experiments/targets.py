"""What every target and precision costs in quality: `python -m experiments.targets`.

Every network is exported to every target in every precision that it has, the bundle is run on whole
test volumes in the runtime of the parity gate, and the images are compared with those of PyTorch in
float32. TensorRT graphs are run by ONNX Runtime: the graph's arithmetic, signed integers and all,
is the same, and no GPU is needed. Their engines are built for `RTX_DEFAULT`, and recorded as built.

Where a copy of a network was tuned for int8, the network itself has its rows as well: the
difference is what the tuning gave.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from experiments.script import Script, record
from kdmri_bench.measuring.quality import summary, volume_rows
from kdmri_bench.planning.sources import Source, check_comparable, gather
from kdmri_bench.planning.testdata import central_slices, choose_files, load_cases
from kdmri_edge.data.case import Case
from kdmri_edge.distillation.run_folder import tuned_for
from kdmri_edge.errors import BenchError
from kdmri_edge.metrics import METRICS
from kdmri_edge.runtime.bundle import Bundle
from kdmri_edge.runtime.session import Session, open_session, reconstruct
from kdmri_edge.runtime.targets import TARGETS
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.extras import available
from kdmri_edge.utils.provenance import provenance
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.tensorrt.engines import RTX_DEFAULT, EngineRequest

__all__ = ["main", "markdown", "measure"]

SCHEMA: Final = 1
LIMITS_DB: Final = {"f16": 0.01, "bf16": 0.01, "int8": 0.05}
"""Loss of PSNR up to which a precision counts as one that loses nothing, in dB."""

_ALL: Final = slice(None)
_PRECISIONS: Final = dict.fromkeys(name for row in TARGETS.values() for name in row.precisions)


def _recipes(precisions: Collection[str] = ()) -> list[ExportRecipe]:
    rtx = EngineRequest(builder="rtx", compute_capabilities=RTX_DEFAULT)
    here = available("tensorrt_rtx")
    return [
        ExportRecipe(
            target=target.name,
            precision=precision,
            engines=rtx if here and target.builds_engines else None,
        )
        for target in TARGETS.values()
        for precision in target.precisions
        if not precisions or precision in precisions
    ]


def _outputs(session: Session, cases: Sequence[Case], title: str) -> list[NDArray[Any]]:
    with progress(title, sum(len(case.target) for case in cases)) as advance:
        return [
            reconstruct(session, case.zero_filled, maps=case.maps_of(_ALL), advance=advance)
            for case in cases
        ]


def _graph_size(graph: Path) -> int:
    """Bytes of a graph with its weights."""
    weights = graph.with_suffix(".bin")  # OpenVINO's
    return graph.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)


def _row(
    bundle: Bundle, recipe: ExportRecipe, cases: Sequence[Case], reference: Sequence[Any]
) -> dict[str, Any]:
    session = open_session(bundle.path, backend=recipe.row.checker.name)
    volumes = volume_rows(cases, _outputs(session, cases, bundle.path.name))
    losses = [a["psnr"] - b["psnr"] for a, b in zip(reference, volumes, strict=True)]
    info = session.info
    engine = bundle.manifest.get("engine", {})
    return {
        "target": recipe.target,
        "precision": recipe.precision,
        "runtime": f"{info.backend} {info.version}",
        "executed": info.precision_executed,
        "bytes": _graph_size(bundle.graph),
        "calibrated_on": bundle.manifest["calibrated_on"],
        "parity": bundle.manifest["parity"]["figures"],
        "quality": summary(volumes),
        "volumes": volumes,
        "loss_db": {"mean": float(np.mean(losses)), "largest": float(max(losses))},
        "engines": [
            {key: one[key] for key in ("engine", "bytes", "engine_built", "engine_executed")}
            for one in engine.get("engines", [])
        ],
    }


def measure(
    networks: Sequence[Source], cases: Sequence[Case], recipes: Sequence[ExportRecipe] | None = None
) -> dict[str, Any]:
    """Export, run and compare.

    Args:
        networks: Networks with checkpoints, of one mask and matrix.
        cases: The test volumes.
        recipes: What to export; None takes every target in every precision.

    Returns:
        JSON values: per network PyTorch's own figures, and a row per recipe.

    Raises:
        BenchError: A network without a checkpoint.
        KdmriError: An export fails; a target whose library is missing is an error too.
    """
    recipes = _recipes() if recipes is None else recipes
    found = []
    for source in networks:
        if source.checkpoint is None:
            raise BenchError(f"{source.name} has no checkpoint to export.", "Give its checkpoint.")
        eager = _outputs(open_session(source.checkpoint), cases, f"{source.name} in PyTorch")
        reference = volume_rows(cases, eager)
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            for recipe in recipes:
                out = Path(folder) / recipe.bundle_name("network")
                tuned = tuned_for(source.checkpoint, recipe.precision, signed=recipe.signed)
                for start in dict.fromkeys((source.checkpoint, tuned)):
                    bundle = export_model(start, recipe, out / start.stem)
                    row = _row(bundle, recipe, cases, reference)
                    rows.append({**row, "tuned": start != source.checkpoint})
        found.append(
            {
                "network": source.name,
                "parameters": source.spec.parameters,
                "quality": summary(reference),
                "volumes": reference,
                "rows": rows,
            }
        )
    return {
        "schema": SCHEMA,
        "volumes": [case.name for case in cases],
        "slices": sum(len(case.target) for case in cases),
        "measures": list(METRICS),
        "limits_db": LIMITS_DB,
        "networks": found,
        "provenance": provenance(),
    }


def _engine_cell(row: dict[str, Any]) -> str:
    built = [one["engine"] for one in row["engines"] if one["engine_built"]]
    return f"{len(built)} built" if built else ""


def _precision_cell(row: dict[str, Any]) -> str:
    return f"{row['precision']}, tuned" if row.get("tuned") else str(row["precision"])


def markdown(report: dict[str, Any]) -> str:
    """Return the table as GitHub Markdown."""
    lines = [
        "| network | target | precision | run by | executed | PSNR [dB] | loss, mean (largest)"
        " [dB] | SSIM | size | engines |",
        "|---|---|---|---|---|---:|---:|---:|---:|---|",
    ]
    for network in report["networks"]:
        own = network["quality"]
        cells = [
            network["network"], "none", "f32", "PyTorch", "f32",
            f"{own['psnr']['mean']:.3f}", "", f"{own['ssim']['mean']:.4f}", "", "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
        for row in network["rows"]:
            quality, loss = row["quality"], row["loss_db"]
            cells = [
                network["network"], f"`{row['target']}`", _precision_cell(row), row["runtime"],
                row["executed"], f"{quality['psnr']['mean']:.3f}",
                f"{loss['mean']:+.3f} ({loss['largest']:+.3f})",
                f"{quality['ssim']['mean']:.4f}", f"{row['bytes'] / 1e3:.0f} kB",
                _engine_cell(row),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    names = ", ".join(report["volumes"])
    lines += [
        "",
        f"Mean over {len(report['volumes'])} test volumes ({report['slices']} slices: {names});"
        " the loss is against PyTorch in float32, per volume."
        " Engines are TensorRT-RTX's, built ahead of time and not executed: no GPU was at hand.",
    ]
    if any(row.get("tuned") for network in report["networks"] for row in network["rows"]):
        lines[-1] += (
            " Rows that say tuned are of the copy that `distill --quantize` trained with rounding,"
            " int8 rows without are its start: rounded after training."
        )
    return "\n".join(lines)


@click.command(cls=Script)
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of volumes.")
@click.option(
    "--precision", "precisions", multiple=True, type=click.Choice(list(_PRECISIONS)),
    help="Measure this precision alone; may be repeated.",
)  # fmt: skip
@click.option("--limit-slices", type=click.IntRange(1), help="Only the central N of each volume.")
@click.option("--out", type=click.Path(path_type=Path), help="Write report.json into this folder.")
def main(
    sources: tuple[Path, ...],
    data: Path,
    precisions: tuple[str, ...],
    limit_slices: int | None,
    out: Path | None,
) -> None:
    """Measure what every target and precision costs in quality."""
    networks = gather(sources)
    check_comparable(networks)
    first = networks[0]
    files, split = choose_files(data)
    loaded = load_cases(
        files, mask=first.mask, matrix=first.matrix, spec=first.spec, split=split, prepared=True
    )
    cases = [central_slices(case, limit_slices) for case in loaded.cases]
    report = measure(networks, cases, _recipes(precisions))
    record(report, out)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
