"""Putting int8 copies beside the networks of the package: `python -m maintainer.ship_tuned`.

A copy is what `kdmri-edge distill --quantize` made of a network of the package (for maintainers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from experiments.script import Script
from kdmri_edge.distillation.recipe import Quantize
from kdmri_edge.distillation.run_folder import Run, open_run, tuned_path
from kdmri_edge.errors import BenchError
from kdmri_edge.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from kdmri_edge.models.shipped import WEIGHTS, resolve, shipped_networks
from kdmri_edge.utils.files import sha256_file
from maintainer.ship import preset_name, write_index

__all__ = ["main", "ship_tuned"]


def ship_tuned(runs: Sequence[Path], place: str, root: Path = WEIGHTS) -> list[Path]:
    """Copy tuned networks into the package, and note them in the index.

    Args:
        runs: Folders of runs that tuned a network of the package.
        place: What comes after the @ of those networks.
        root: The package's folder of weights.

    Returns:
        The copies.

    Raises:
        BenchError: A run tuned nothing, or not the network of that name.
        KdmriError: See `open_run`, `load_checkpoint` and `resolve`.
    """
    networks = {name: dict(known.entry) for name, known in shipped_networks(root).items()}
    work: list[tuple[Path, Checkpoint, dict[str, Any]]] = []
    for run in map(open_run, runs):
        for quantise, file in _tuned(run):
            held = load_checkpoint(file)
            reference = f"{preset_name(held.spec)}@{place}"
            start = load_checkpoint(resolve(reference, root))
            if _origin(held) != _origin(start):
                raise BenchError(
                    f"{file} was not tuned from {reference}: mask, data or steps differ.",
                    f"Tune it with: kdmri-edge distill --student {reference} --quantize {quantise}",
                )
            entry = networks[reference]
            copy = tuned_path(root / entry["file"], quantise)
            described: dict[str, Any] = {
                "file": copy.relative_to(root).as_posix(),
                "steps": held.training["steps"][quantise],
                "validation_psnr_db": held.training["quantised"],
                "provenance": run.meta["provenance"],
            }
            entry["tuned"] = {**entry.get("tuned", {}), quantise: described}
            work.append((copy, replace(held, role=start.role), described))
    for copy, held, described in work:  # all were looked at before the first is written
        save_checkpoint(copy, held)
        described["sha256"] = sha256_file(copy)
    write_index(root, networks)
    return [copy for copy, _, _ in work]


def _tuned(run: Run) -> list[tuple[str, Path]]:
    """Return the finished copies of a run, with the kind of their integers."""
    kinds = [str(kind) for kind in Quantize if kind is not Quantize.NONE]
    found = [(kind, run.tuned(kind)) for kind in kinds if run.tuned(kind).is_file()]
    if not found:
        raise BenchError(f"Run {run.path} tuned nothing for int8.", "Use distill --quantize.")
    return found


def _origin(checkpoint: Checkpoint) -> tuple[Any, ...]:
    """What a tuned copy has in common with the network that it was tuned from."""
    training = checkpoint.training
    steps = {name: n for name, n in training["steps"].items() if not name.startswith("int8")}
    data = sorted(str(item["sha256"]) for item in training["data"])
    return checkpoint.spec, checkpoint.mask.sha256, checkpoint.matrix, data, steps


@click.command(cls=Script)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--as", "place", required=True, help='Place of the reference, e.g. "brain-4x".')
def main(runs: tuple[Path, ...], place: str) -> None:
    """Put what RUNS tuned for int8 beside the float networks of the package."""
    for copy in ship_tuned(runs, place):
        click.echo(copy)


if __name__ == "__main__":
    main()
