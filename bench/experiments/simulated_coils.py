"""Multi-coil k-space of brain volumes: `python -m experiments.simulated_coils`.

What `distill` simulates by itself for networks that combine coils knows the coils' sensitivities
exactly. A scanner does not tell them: they are estimated from the centre of k-space, with errors,
and are zero outside the object. Real coils also stand closer to the head than a circle around the
field of view, and encode more. Networks that met neither lose to SENSE itself on a measured slice,
which they beat by decibels on simulated ones. So k-space is written to files here, as scanners
write theirs, and `distill` reads it as measured k-space (`data.case.measured_case`): coils at
random distances, little noise, sensitivities estimated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
import numpy as np

from experiments.script import Script
from kdmri_bench.planning.testdata import load_cases
from kdmri_edge.data.case import Case
from kdmri_edge.data.datasets import attribution_of, find_parts
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.simulation import RADIUS, coil_maps, draw_noise
from kdmri_edge.models.checkpoint import read_checkpoint_meta
from kdmri_edge.models.shipped import resolve
from kdmri_edge.models.specs import spec_from_dict
from kdmri_edge.mrd.format.hdf5 import write_scan
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.files import atomic_path

__all__ = ["received", "write"]

_COILS: Final = 16
_CLOSEST: Final = 1.0
_LEAST_NOISE, _MOST_NOISE = 0.001, 0.01  # standard deviation, of the volume's maximum
_LEAST_ENERGY: Final = 0.1  # of the strongest slice's: what a slice must have to be taken


def received(case: Case, every: int) -> Scan:
    """Return what coils receive of a volume's every n-th slice, fully sampled.

    Args:
        case: Its complex images, with simulated phase.
        every: n.
    """
    energy = (np.abs(case.target) ** 2).mean((-2, -1))
    slices = np.flatnonzero(energy > _LEAST_ENERGY * energy.max())[::every]
    height, width = case.target.shape[-2:]
    peak = np.abs(case.target).max()
    kspace = np.empty((len(slices), _COILS, height, width), np.complex64)
    for place, n in enumerate(slices):
        random = np.random.default_rng([int(case.sha256[:8] or "0", 16), int(n)])
        radius, level = random.uniform(_CLOSEST, RADIUS), random.uniform(_LEAST_NOISE, _MOST_NOISE)
        seed = int(random.integers(1 << 30))
        maps = coil_maps(_COILS, height, width, seed=seed, radius=radius)
        seen = maps * (case.target[n] / peak)
        kspace[place] = image_to_kspace(seen + np.float32(level) * draw_noise(random, seen.shape))
    return Scan(
        kspace=kspace,
        mask=Mask(samples=np.ones(height, np.bool_), name="whole"),
        name=case.name,
        subject=case.subject,
        contrast=case.contrast,
    )


def write(data: Path, split: str, network: str, every: int, out: Path) -> list[Path]:
    """Write an MRD file of each training and validation volume, and a split of the subjects.

    Args:
        data: Folder of magnitude volumes.
        split: Which of their subjects train and validate.
        network: A network of the package that combines coils, whose matrix is taken.
        every: Take every n-th slice; of validation volumes every 2n-th.
        out: Folder for the files, a split.toml, and the data's attribution.

    Raises:
        KdmriError: See `find_parts` and `load_cases`.
    """
    meta = read_checkpoint_meta(resolve(network))
    spec, mask = spec_from_dict(meta["spec"]), Mask.from_dict(meta["mask"])
    parts = find_parts(data, split=split)
    out.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    subjects: dict[str, set[str]] = {}
    with progress("Volumes", len(parts.train) + len(parts.validation)) as advance:
        for part, step in (("train", every), ("validation", 2 * every)):
            for volume in getattr(parts, part):
                (case,) = load_cases(
                    [volume], mask=mask, matrix=meta["matrix"], spec=spec, prepared=True
                ).cases
                files.append(out / f"{case.name}.h5")
                with atomic_path(files[-1]) as temporary:
                    write_scan(temporary, received(case, step))
                subjects.setdefault(part, set()).add(case.subject)
                advance(1)
    lines = [f"{part} = {sorted(names)!r}" for part, names in subjects.items()]
    (out / "split.toml").write_text("\n".join([*lines, "test = []", ""]), encoding="utf-8")
    if (attribution := attribution_of(data)) is not None:
        (out / "ATTRIBUTION.txt").write_text(attribution, encoding="utf-8")
    return files


@click.command(cls=Script)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of volumes.")
@click.option("--split", required=True, help="Split whose subjects are taken.")
@click.option("--network", default="dccnn-d5c5-sense@measured-4x", show_default=True)
@click.option("--every", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
def main(data: Path, split: str, network: str, every: int, out: Path) -> None:
    """Write fully sampled multi-coil k-space of volumes, for `distill --data OUT`."""
    click.echo("\n".join(str(file) for file in write(data, split, network, every, out)))


if __name__ == "__main__":
    main()
