"""`kdmri-edge calibrate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import json_option
from kdmri_edge.utils.console import print_result, tell

__all__ = ["calibrate"]


@click.command(cls=Command)
@click.argument("network", type=click.Path(path_type=Path), metavar="BUNDLE|CHECKPOINT")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of fully sampled volumes that the network was trained and validated on.",
)
@click.option(
    "--split",
    help="Which subjects train and validate: the name of a recorded split, or a TOML or JSON file"
    " [recognised by the files' hashes, else by order].",
)
@click.option(
    "--every",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Take every N-th slice of training volumes; validation volumes are taken whole.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads [the runtime's choice].")
@json_option("Print what was calibrated as JSON.")
def calibrate(
    network: Path, data: Path, split: str | None, every: int, threads: int | None, as_json: bool
) -> None:
    """Calibrate scope and error bound of a network, which certificates then state.

    Volumes are undersampled with the network's mask and reconstructed. How their slices look, and
    how large their errors are, is kept in calibration.json of a bundle (whose manifest then has
    another digest), or beside a checkpoint, from where `export` copies it into bundles of floats. A
    bundle in int8 is calibrated itself.

    \b
    Examples:
      kdmri-edge calibrate runs/brain/student.safetensors --data volumes/
      kdmri-edge calibrate bundle --data volumes/ --split split.toml
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.data.datasets import find_parts
    from kdmri_edge.runtime import calibrating
    from kdmri_edge.runtime.networks import backend_at_hand, locate, where_it_runs
    from kdmri_edge.runtime.pipeline import Pipeline

    named, _ = locate(network)
    weights = calibrating.weights_of(named)
    find_parts(data, split=split)  # refused before anything is exported
    source, _ = where_it_runs(network)
    backend = backend_at_hand(source)
    with Pipeline(source, backend=backend, threads=threads, calibrated=False) as pipeline:
        made = calibrating.calibrate(pipeline, data, split=split, weights=weights, every=every)
    place = calibrating.place_calibration(named, made)
    slices = made.about["slices"]
    if as_json:
        print_result(json.dumps({"file": str(place), **made.about}, indent=2))
        return
    tell(
        f"{place}: {slices['train']} slices of {len(made.about['subjects']['train'])} training"
        f" subject(s), {slices['validation']} of {len(made.about['subjects']['validation'])}"
        " validation subject(s)."
    )
    if made.coefficients is None:
        tell("No validation subject is there, so that no error is bounded.")
