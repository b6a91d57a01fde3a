"""Putting trained networks into the package: `python -m maintainer.ship` (for maintainers).

Evaluates a teacher and a student on the test volumes of their split and copies their weights into
kdmri_edge/weights/PLACE/, with an entry each in the index.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from experiments.script import Script
from kdmri_bench.measuring.quality import summary, volume_rows
from kdmri_bench.planning.testdata import load_cases
from kdmri_bench.reproduce.work import reconstruct
from kdmri_edge.data.datasets import find_parts
from kdmri_edge.distillation.recipe import recipe_value
from kdmri_edge.errors import BenchError
from kdmri_edge.models.checkpoint import (
    MAXIMA,
    load_checkpoint,
    load_reconstructor,
    read_checkpoint_meta,
    save_checkpoint,
)
from kdmri_edge.models.protocol import NetworkSpec
from kdmri_edge.models.shipped import INDEX, INDEX_FORMAT, WEIGHTS
from kdmri_edge.models.specs import preset_of, spec_from_dict
from kdmri_edge.physics.masks import Mask
from kdmri_edge.utils.console import say
from kdmri_edge.utils.files import atomic_path, sha256_file, write_json
from kdmri_edge.utils.provenance import provenance

__all__ = ["calibrated", "entry", "preset_name", "ship", "write_index"]

_PLACE = re.compile(r"[a-z0-9][a-z0-9-]*")


def preset_name(spec: NetworkSpec) -> str:
    """Return the preset that an architecture is, whatever its dilation.

    Raises:
        BenchError: It is none.
    """
    if name := preset_of(spec):
        return name
    raise BenchError("The network is no preset.", "Ship networks of a named architecture.")


def entry(checkpoint: Path, data: Path, split: str, file: str) -> tuple[str, dict[str, Any]]:
    """Describe and measure a checkpoint.

    Args:
        checkpoint: The weights.
        data: Folder of the volumes.
        split: Split whose test subjects are measured.
        file: Path of the copy within the weights folder.

    Returns:
        The preset's name and the index entry.

    Raises:
        KdmriError: See `read_checkpoint_meta`, `find_parts` and `load_cases`.
    """
    meta = read_checkpoint_meta(checkpoint)
    spec, mask = spec_from_dict(meta["spec"]), Mask.from_dict(meta["mask"])
    training = meta["training"]
    test = find_parts(data, split=split).test
    tested = load_cases(test, mask=mask, matrix=meta["matrix"], spec=spec, prepared=True)
    cases = tested.cases
    trained = {item["sha256"] for item in training["data"]}
    if trained & {case.sha256 for case in cases}:
        raise BenchError("A test volume was trained on.", "Give another --split.")
    rows = [
        {**row, "sha256": case.sha256}
        for row, case in zip(volume_rows(cases, reconstruct(checkpoint, cases)), cases, strict=True)
    ]
    zero = volume_rows(cases, [case.zero_filled for case in cases])
    return preset_name(spec), {
        "file": file,
        "sha256": sha256_file(checkpoint),
        "role": meta["role"],
        "spec": spec.to_dict(),
        "parameters": spec.parameters,
        "mask": mask.name,
        "masks": recipe_value(training["recipe"], "batches.masks", "own"),
        "nominal_acceleration": mask.nominal_acceleration,
        "effective_acceleration": mask.effective_acceleration,
        "matrix": meta["matrix"],
        "recipe": training["recipe"]["name"],
        "steps": training["steps"],
        "seed": training["recipe"]["seed"],
        "trained_on": sorted({str(item["subject"]) for item in training["data"]}),
        "trained_on_sha256": sorted(trained),
        "attribution": training["attribution"],
        "revision": training["provenance"]["git"]["revision"],
        "figures": {
            "split": split,
            "statement": tested.statement,
            "measured_with": "PyTorch, CPU, float32, whole volumes",
            "mean": {name: value["mean"] for name, value in summary(rows).items()},
            "zero_filled": {name: value["mean"] for name, value in summary(zero).items()},
            "volumes": rows,
        },
    }


def calibrated(checkpoint: Path, data: Path, split: str, folder: Path) -> Path:
    """Return a copy of a checkpoint that carries activation maxima, made anew.

    Args:
        checkpoint: The weights.
        data: Folder of the volumes.
        split: Split whose training subjects say what the convolutions read.
        folder: Where a copy goes; its name is the checkpoint's SHA-256.

    Raises:
        KdmriError: See `load_checkpoint`, `find_parts` and `load_cases`.
    """
    from kdmri_edge.distillation.batches import TrainingSlices
    from kdmri_edge.quantisation.tuning import training_maxima

    held = load_checkpoint(checkpoint)
    network = load_reconstructor(checkpoint)
    files = find_parts(data, split=split).train
    cases = load_cases(
        files, mask=held.mask, matrix=held.matrix, spec=held.spec, prepared=True
    ).cases
    slices = TrainingSlices.from_cases(cases)
    maxima = training_maxima(network.model, network.operator, slices)
    copy = folder / f"{sha256_file(checkpoint)}.safetensors"
    save_checkpoint(copy, replace(held, training={**held.training, MAXIMA: maxima}))
    return copy


def ship(
    checkpoints: list[Path], place: str, data: Path, split: str, root: Path = WEIGHTS
) -> list[str]:
    """Copy checkpoints into the package, calibrated for int8, and write the index anew.

    Args:
        checkpoints: One per preset.
        place: What comes after the @, e.g. "brain-4x".
        data: Folder of the volumes.
        split: Split whose test subjects are measured.
        root: The package's folder of weights.

    Returns:
        The references.

    Raises:
        BenchError: The place is no plain name, two networks have one name, or see `entry`. The
            package is then as it was.
    """
    if not _PLACE.fullmatch(place):
        raise BenchError(f"{place!r} is no place.", "Use small letters, digits and hyphens.")
    index = root / INDEX
    networks: dict[str, Any] = {}
    if index.is_file():
        networks = json.loads(index.read_text(encoding="utf-8"))["networks"]
    origin = provenance()  # before the first copy, which would itself make the checkout dirty
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for given in checkpoints:
            checkpoint = calibrated(given, data, split, Path(scratch))
            name = preset_name(spec_from_dict(read_checkpoint_meta(checkpoint)["spec"]))
            reference = f"{name}@{place}"
            if reference in found:
                raise BenchError(f"Two networks would be {reference}.", "Ship one of each preset.")
            _, described = entry(checkpoint, data, split, f"{place}/{name}.safetensors")
            described["figures"]["provenance"] = origin
            found[reference] = checkpoint, described
        # all are measured before the first is copied: a refused one must not spoil the others
        for reference, (checkpoint, described) in found.items():
            with atomic_path(root / described["file"]) as temporary:
                shutil.copyfile(checkpoint, temporary)
            # copies that were tuned for int8 belong to the weights that are replaced
            for old in networks.get(reference, {}).get("tuned", {}).values():
                (root / old["file"]).unlink(missing_ok=True)
            networks[reference] = described
    write_index(root, networks)
    return list(found)


def write_index(root: Path, networks: Mapping[str, Any]) -> None:
    """Write the index of a folder of weights, ordered by place."""
    ordered = dict(sorted(networks.items(), key=lambda item: item[0].split("@")[::-1]))
    write_json(root / INDEX, {"format": INDEX_FORMAT, "networks": ordered})


@click.command(cls=Script)
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--as", "place", required=True, help='Place of the reference, e.g. "brain-4x".')
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of volumes.")
@click.option("--split", required=True, help="Split whose test subjects are measured.")
def main(checkpoints: tuple[Path, ...], place: str, data: Path, split: str) -> None:
    """Measure CHECKPOINTS and put them into the package."""
    names = ship(list(checkpoints), place, data, split)
    click.echo("\n".join(names))
    for name in names:  # one of former weights does not count any more
        say(f"Next: kdmri-edge calibrate {name} --data {data} --split {split}")


if __name__ == "__main__":
    main()
