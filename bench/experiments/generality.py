"""What it costs to serve any mask: `python -m experiments.generality`.

Networks trained for one mask and networks trained over masks (`--set batches.masks=lines`) are run
on the same test volumes under masks that none of them was trained with, and under the fixed ones'
own. The
mask reaches a network through its projection matrix alone; the weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from experiments.script import Script, record
from kdmri_bench.measuring.quality import volume_rows
from kdmri_bench.planning.testdata import check_same_input, load_cases
from kdmri_bench.reproduce.work import STATEMENT, reconstruct
from kdmri_edge.data.datasets import attribution_of, find_parts
from kdmri_edge.distillation.recipe import recipe_value
from kdmri_edge.errors import BenchError
from kdmri_edge.models.checkpoint import read_checkpoint_meta
from kdmri_edge.models.shipped import resolve_weights
from kdmri_edge.models.specs import spec_from_dict
from kdmri_edge.physics.masks import Mask, equispaced_lines, random_lines, variable_density_lines
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.files import sha256_file
from kdmri_edge.utils.provenance import provenance

__all__ = ["compare", "held_out_masks", "markdown"]

SCHEMA: Final = 1
_SEED: Final = 7  # below distill.masks.HELD_OUT: no training draws it


def held_out_masks(height: int, accelerations: Sequence[int] = (4, 5, 8)) -> list[Mask]:
    """Return line masks of all families that no training draws."""
    families = (variable_density_lines, random_lines, equispaced_lines)
    return [
        family(height, float(acceleration), seed=_SEED)
        for family in families
        for acceleration in accelerations
    ]


def compare(
    networks: dict[str, Path], data: Path, split: str, *, masks: Sequence[Mask] | None = None
) -> dict[str, Any]:
    """Measure every network under every mask.

    Args:
        networks: Checkpoints by name, all of one matrix, magnitude networks for line masks.
        data: Folder of volumes.
        split: Split whose test subjects are measured.
        masks: What to measure under; None takes the networks' own and `held_out_masks`.

    Returns:
        The report: mean PSNR and SSIM over test volumes by mask and network.

    Raises:
        BenchError: Networks of different matrices.
        KdmriError: Missing or damaged weights or data.
    """
    metas = {name: read_checkpoint_meta(path) for name, path in networks.items()}
    matrices = {int(meta["matrix"]) for meta in metas.values()}
    if len(matrices) != 1:
        raise BenchError("The networks are for different matrices.", "Compare those of one matrix.")
    matrix = matrices.pop()
    specs = [spec_from_dict(meta["spec"]) for meta in metas.values()]
    check_same_input(list(zip(metas, specs, strict=True)))
    spec = specs[0]
    if masks is None:
        own = {Mask.from_dict(meta["mask"]) for meta in metas.values()}
        masks = [*sorted(own, key=lambda mask: mask.name), *held_out_masks(matrix)]
    files = find_parts(data, split=split).test
    rows = []
    with progress("Measuring under masks", len(masks) * len(networks)) as advance:
        for mask in masks:
            cases = load_cases(files, mask=mask, matrix=matrix, spec=spec).cases
            zero = volume_rows(cases, [case.zero_filled for case in cases])
            found = {"zero-filled": _means(zero)}
            for name, path in networks.items():
                found[name] = _means(volume_rows(cases, reconstruct(path, cases, mask)))
                advance(1)
            rows.append(
                {
                    "mask": mask.name,
                    "nominal_acceleration": mask.nominal_acceleration,
                    "effective_acceleration": mask.effective_acceleration,
                    "trained_with": [
                        name
                        for name, meta in metas.items()
                        if _for_one_mask(meta) and Mask.from_dict(meta["mask"]) == mask
                    ],
                    "figures": found,
                }
            )
    return {
        "schema": SCHEMA,
        "networks": {name: sha256_file(path) for name, path in networks.items()},
        "split": split,
        "volumes": len(files),
        "statement": STATEMENT,
        "attribution": attribution_of(data),
        "rows": rows,
        "provenance": provenance(_SEED),
    }


def _for_one_mask(meta: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint was trained for its own mask alone."""
    return bool(recipe_value(meta["training"].get("recipe", {}), "batches.masks", "own") == "own")


def _means(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in ("psnr", "ssim")}


def markdown(report: dict[str, Any]) -> str:
    """Return the table as GitHub Markdown: PSNR in dB, one line per mask."""
    names = ["zero-filled", *report["networks"]]
    lines = [
        "| mask | nominal | mirrored | " + " | ".join(names) + " |",
        "|---|---:|---:|" + "---:|" * len(names),
    ]
    for row in report["rows"]:
        cells = []
        for name in names:
            own = " (its own)" if name in row["trained_with"] else ""
            cells.append(f"{row['figures'][name]['psnr']:.2f}{own}")
        lines.append(
            f"| {row['mask']} | {row['nominal_acceleration']:.2f}x"
            f" | {row['effective_acceleration']:.2f}x | " + " | ".join(cells) + " |"
        )
    return "\n".join(
        [*lines, "", f"Mean PSNR in dB over {report['volumes']} volumes. {report['statement']}"]
    )


@click.command(cls=Script)
@click.argument("networks", nargs=-1, required=True)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of volumes.")
@click.option("--split", default="brain", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write report.json into this folder.")
def main(networks: tuple[str, ...], data: Path, split: str, out: Path | None) -> None:
    """Measure NETWORKS, each NAME=WEIGHTS, under masks that they were not trained with."""
    found: dict[str, Path] = {}
    for text in networks:
        name, equals, place = text.partition("=")
        if not equals:
            raise BenchError(f"{text!r} has no '='.", "Write NAME=WEIGHTS.")
        found[name] = resolve_weights(Path(place))
    report = compare(found, data, split)
    record(report, out)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
