"""Networks at matrices that they were not trained at: `python -m experiments.any_matrix`.

Test volumes are resampled to each matrix (`data.resample`) and undersampled there with a mask of
one kind. Each network is exported once for each runtime, with height and width free, and that one
bundle reconstructs all of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from experiments.script import Script, record
from kdmri_bench.measuring.quality import volume_rows
from kdmri_bench.planning.testdata import central_slices
from kdmri_bench.reproduce.work import STATEMENT
from kdmri_edge.data.case import Case, make_case
from kdmri_edge.data.datasets import attribution_of, find_parts, read_found
from kdmri_edge.data.resample import is_large_enough, to_matrix
from kdmri_edge.errors import BenchError
from kdmri_edge.models.checkpoint import read_checkpoint_meta
from kdmri_edge.models.shipped import resolve_weights
from kdmri_edge.models.specs import spec_from_dict
from kdmri_edge.physics.masks import Mask, variable_density_lines
from kdmri_edge.physics.redraw import lines_around_zero, redrawn
from kdmri_edge.runtime.inputs import NetworkInput
from kdmri_edge.runtime.pipeline import Pipeline
from kdmri_edge.runtime.scope import trained_for
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.files import sha256_file
from kdmri_edge.utils.provenance import provenance
from kdmri_export.jobs import export

__all__ = ["MATRICES", "compare", "markdown"]

SCHEMA: Final = 1
MATRICES: Final = ((192, 192), (240, 240), (256, 256), (320, 320), (256, 208))
TARGETS: Final = ("onnx", "openvino")
_SLICES: Final = 8


def compare(
    networks: Mapping[str, Path],
    data: Path,
    split: str,
    *,
    matrices: Sequence[tuple[int, int]] = MATRICES,
    targets: Sequence[str] = TARGETS,
    slices: int = _SLICES,
) -> dict[str, Any]:
    """Measure every network at every matrix.

    The mask is the first network's own, and at other matrices one that is drawn like it. At its own
    matrix another one of that kind is measured too, which tells the matrix from the mask.

    Args:
        networks: Checkpoints by name: magnitude networks for line masks.
        data: Folder of volumes.
        split: Split whose test subjects are measured.
        matrices: (H, W).
        targets: Exports that are measured; the first one's figures are shown.
        slices: Central slices of each volume.

    Returns:
        The report: mean PSNR and SSIM over the test volumes that are large enough, by matrix,
        network and target.

    Raises:
        BenchError: A network that does not read magnitudes with data consistency, or no test volume
            is as large as a matrix.
        KdmriError: Missing or damaged weights or data.
    """
    metas = {name: read_checkpoint_meta(path) for name, path in networks.items()}
    for name, meta in metas.items():
        spec = spec_from_dict(meta["spec"])
        if spec.channels != 1 or not spec.has_data_consistency:
            raise BenchError(
                f"{name} is no network of magnitudes with data consistency.",
                "Measure networks such as dccnn-d3c5.",
            )
    own = Mask.from_dict(next(iter(metas.values()))["mask"])
    volumes = [read_found(file) for file in find_parts(data, split=split).test]
    found: list[dict[str, Any]] = []
    cases: list[list[Case]] = []
    for mask, (height, width) in _settings(own, matrices):
        fitting = [one for one in volumes if is_large_enough(one, (height, width))]
        if not fitting:
            raise BenchError(
                f"No test volume is as large as {height} x {width}.", "Leave that matrix out."
            )
        drawn = [make_case(to_matrix(one, (height, width)), mask) for one in fitting]
        cases.append([central_slices(case, slices) for case in drawn])
        zero = _means(cases[-1], [case.zero_filled for case in cases[-1]])
        found.append(
            {
                "matrix": [height, width],
                "mask": mask.to_dict(),
                "volumes": [case.name for case in cases[-1]],
                "figures": {"zero-filled": zero},
                "beyond_training": {
                    name: list(trained_for(meta).beyond(mask, height, width))
                    for name, meta in metas.items()
                },
            }
        )
    executed = {
        name: _measure(name, path, targets, found, cases) for name, path in networks.items()
    }
    return {
        "schema": SCHEMA,
        "networks": {name: sha256_file(path) for name, path in networks.items()},
        "trained_at": {
            name: [list(one) for one in trained_for(meta).matrices] for name, meta in metas.items()
        },
        "targets": list(targets),
        "executed": executed,
        "split": split,
        "slices": slices,
        "statement": STATEMENT,
        "attribution": attribution_of(data),
        "rows": found,
        "provenance": provenance(),
    }


def _settings(own: Mask, matrices: Sequence[tuple[int, int]]) -> list[tuple[Mask, tuple[int, int]]]:
    """Return masks and matrices; at the mask's own matrix, another mask of its kind as well."""
    found = []
    for matrix in matrices:
        mask = redrawn(own, *matrix)
        found.append((mask, matrix))
        if mask is own:
            acceleration, centre = own.nominal_acceleration, lines_around_zero(own)
            other = variable_density_lines(own.height, acceleration, centre_lines=centre, seed=0)
            found.append((other, matrix))
    return found


def _measure(
    name: str,
    checkpoint: Path,
    targets: Sequence[str],
    rows: list[dict[str, Any]],
    cases: Sequence[Sequence[Case]],
) -> dict[str, str]:
    """Add a network's figures to the rows; return what ran, by target."""
    executed = {}
    for row in rows:
        row["figures"][name] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        progress(f"Reconstructing with {name}", len(targets) * len(rows)) as advance,
    ):
        for target in targets:
            bundle = export(checkpoint, target=target, matrix="any", out=Path(folder) / target)
            with Pipeline(bundle.path) as pipeline:
                for row, own in zip(rows, cases, strict=True):
                    mask = Mask.from_dict(row["mask"])
                    images = [
                        pipeline.images(NetworkInput(zero_filled=case.zero_filled, mask=mask))
                        for case in own
                    ]
                    row["figures"][name][target] = _means(own, images)
                    advance(1)
                info = pipeline.session.info
                executed[target] = f"{info.backend} {info.version}, {info.precision_executed}"
    return executed


def _means(cases: Sequence[Case], images: Sequence[Any]) -> dict[str, float]:
    rows = volume_rows(cases, images)
    return {name: float(np.mean([row[name] for row in rows])) for name in ("psnr", "ssim")}


def markdown(report: dict[str, Any]) -> str:
    """Return the table as GitHub Markdown: PSNR in dB and SSIM, one line per matrix and mask."""
    names, first = list(report["networks"]), report["targets"][0]
    lines = [
        "| matrix | mask | volumes | " + " | ".join(["zero-filled", *names]) + " |",
        "|---|---|---:|" + "---:|" * (1 + len(names)),
    ]
    largest = 0.0
    for row in report["rows"]:
        figures = row["figures"]
        shown = [figures["zero-filled"], *(figures[name][first] for name in names)]
        cells = [f"{one['psnr']:.2f} / {one['ssim']:.4f}" for one in shown]
        height, width = row["matrix"]
        mask = f"{row['mask']['name']}, {row['mask']['nominal_acceleration']:.2f}x"
        lines.append(
            f"| {height} x {width} | {mask} | {len(row['volumes'])} | " + " | ".join(cells) + " |"
        )
        for name in names:
            values = [figures[name][target]["psnr"] for target in report["targets"]]
            largest = max(largest, max(values) - min(values))
    trained = "; ".join(
        f"{name} at " + ", ".join(f"{h} x {w}" for h, w in report["trained_at"][name])
        for name in names
    )
    ran = next(iter(report["executed"].values()))[first]
    targets = ", ".join(report["targets"])
    return "\n".join(
        [
            *lines,
            "",
            f"Mean PSNR in dB and SSIM of {report['slices']} central slices of each volume;"
            f" trained: {trained}. One bundle of each network for all rows, in {ran}; between the"
            f" runtimes ({targets}) PSNR differs by {largest:.1g} dB at most."
            f" {report['statement']}",
        ]
    )


@click.command(cls=Script)
@click.argument("networks", nargs=-1, required=True)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of volumes.")
@click.option("--split", default="brain", show_default=True)
@click.option("--slices", default=_SLICES, show_default=True, help="Central slices of each volume.")
@click.option("--out", type=click.Path(path_type=Path), help="Write report.json into this folder.")
def main(networks: tuple[str, ...], data: Path, split: str, slices: int, out: Path | None) -> None:
    """Measure NETWORKS, each NAME=WEIGHTS, at matrices that they were not trained at."""
    found: dict[str, Path] = {}
    for text in networks:
        name, equals, place = text.partition("=")
        if not equals:
            raise BenchError(f"{text!r} has no '='.", "Write NAME=WEIGHTS.")
        found[name] = resolve_weights(Path(place))
    report = compare(found, data, split, slices=slices)
    record(report, out)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
