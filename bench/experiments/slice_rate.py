"""How many slices a second are reconstructed, now and before: `python -m experiments.slice_rate`.

Slices of 16 coils are reconstructed from memory, as `run` and `serve` do it, by this revision and
by an older one in turns, each in a process of its own: so that their ratio holds on a noisy
machine. Both must give the same images. One network combines the coils itself (SENSE), the other
one is given the combined image.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from experiments import slice_rate_worker
from experiments.script import Script, record
from experiments.served import NETWORK, coil_scan, make_bundle
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.simulation import coil_maps, complex_noise, smooth_phase
from kdmri_edge.errors import BenchError
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.bundle import open_bundle
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.provenance import provenance

__all__ = ["BEFORE", "CLOSE", "main", "markdown", "measure"]

SCHEMA: Final = 1
BEFORE: Final = "3299a62"
"""The last revision that estimated sensitivities at every pixel from the beginning."""
CLOSE: Final = 1e-3
"""Of an image's maximum: how far images of both revisions may be apart."""
_SENSE: Final = "dccnn-d3c5-sense@measured-4x"
_BASE: Final = 2  # different slices, which are repeated
_NOISE: Final = 0.01  # of the brightest pixel, in each coil
_TREE: Final = Path(__file__).resolve().parents[2]
_ROOTS: Final = ("", "export", "bench")


def _sense_scan(mask: Mask, matrix: int, coils: int) -> NDArray[np.complex64]:
    """Return k-space of a phantom with phase and noise, [S, C, H, W]."""
    images = phantom_volume(5, slices=_BASE, matrix=matrix).image
    images = images / images.max() * np.exp(1j * smooth_phase(matrix, matrix, seed=5))
    kspace = image_to_kspace(images[:, None] * coil_maps(coils, matrix, matrix, seed=5))
    kspace = kspace + _NOISE * complex_noise(kspace.shape, seed=6)
    return (kspace * mask.grid).astype(np.complex64)


def _unpacked(revision: str, place: Path) -> Path:
    """Put a revision's files into a folder.

    Raises:
        BenchError: This is no checkout, or has no such revision.
    """
    command = ["git", "archive", "--format=tar", revision, "--", "kdmri_edge", "export", "bench"]
    done = subprocess.run(command, cwd=_TREE, capture_output=True, check=False)
    if done.returncode:
        raise BenchError(
            f"There is no revision {revision!r} here ({done.stderr.decode().strip()[:200]}).",
            "Run it in a full checkout, and name another one with --before.",
        )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(place, filter="data")
    return place


def _run(tree: Path, *arguments: str) -> dict[str, Any]:
    """Measure once with the package of a folder.

    Raises:
        BenchError: It ends otherwise than with figures.
    """
    path = os.pathsep.join(str(tree / root) for root in _ROOTS)
    # -P: the program's own folder is of this revision
    done = subprocess.run(
        [sys.executable, "-P", str(slice_rate_worker.__file__), *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"A measurement failed: {done.stderr.strip()[-300:]}", "Run it by hand.")
    made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return made


def measure(
    before: str | None = BEFORE,
    *,
    matrix: int = 256,
    coils: int = 16,
    slices: int = 24,
    rounds: int = 5,
    threads: int = 2,
) -> dict[str, Any]:
    """Measure both revisions in turns.

    Args:
        before: The older revision; None measures this one against itself.
        matrix: Side of the slices.
        coils: Receive channels.
        slices: In each turn.
        rounds: Turns of each revision.
        threads: CPU threads.

    Returns:
        For each network slices per second, processor time, times of one slice alone, and how far
        the images of both revisions are apart.

    Raises:
        BenchError: The images differ, or a revision cannot be run.
        KdmriError: A network cannot be exported.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder, progress("Turns", 4 * rounds) as advance:
        place = Path(folder)
        trees = {"after": _TREE}
        trees["before"] = _TREE if before is None else _unpacked(before, place / "before")
        for network in (_SENSE, NETWORK):
            own = place / network
            own.mkdir()
            sense = network == _SENSE
            bundle = make_bundle(own, matrix, network=network, centre=24 if sense else None)
            mask = open_bundle(bundle).mask
            if sense:
                kspace = _sense_scan(mask, matrix, coils)
            else:
                kspace = coil_scan(mask, matrix, slices=_BASE, coils=coils).kspace
            np.savez(own / "scan.npz", kspace=kspace, samples=mask.samples)
            turns: dict[str, list[dict[str, Any]]] = {"before": [], "after": []}
            for _ in range(rounds):
                for name, made in turns.items():
                    made.append(
                        _run(trees[name], str(bundle), str(own / "scan.npz"),
                             str(own / f"{name}.npy"), str(slices), str(threads))
                    )  # fmt: skip
                    advance(1)
            apart = _apart(np.load(own / "before.npy"), np.load(own / "after.npy"))
            if apart > CLOSE:
                raise BenchError(
                    f"Images of {network} differ by {apart:.1e} of their maximum.",
                    "Find out what has changed.",
                )
            rows.append(_row(network, mask, turns, apart))
    return {
        "schema": SCHEMA,
        "before": before,
        "matrix": matrix,
        "coils": coils,
        "slices": slices,
        "rounds": rounds,
        "threads": threads,
        "rows": rows,
        "provenance": provenance(),
    }


def _apart(before: NDArray[Any], after: NDArray[Any]) -> float:
    axes = tuple(range(1, before.ndim))
    return float((np.abs(after - before).max(axes) / np.abs(before).max(axes)).max())


def _row(
    network: str, mask: Mask, turns: dict[str, list[dict[str, Any]]], apart: float
) -> dict[str, Any]:
    ratios = [
        after["slices_per_s"] / before["slices_per_s"]
        for before, after in zip(turns["before"], turns["after"], strict=True)
    ]
    row: dict[str, Any] = {
        "network": network,
        "lines": int(mask.samples.sum()),
        "ratio": {"median": median(ratios), "smallest": min(ratios), "largest": max(ratios)},
        "apart": apart,
    }
    for name, made in turns.items():
        row[name] = {
            "slices_per_s": median(one["slices_per_s"] for one in made),
            "turns": [one["slices_per_s"] for one in made],
            "cpu_ms_per_slice": median(one["cpu_ms_per_slice"] for one in made),
            "at_once": made[0]["at_once"],
            "alone_ms": {
                stage: median(one["alone_ms"][stage] for one in made)
                for stage in made[0]["alone_ms"]
            },
        }
    return row


def markdown(report: dict[str, Any]) -> str:
    """Return the result as a table with one note."""
    lines = [
        "| network | | slices/s | processor time of a slice | one slice alone | coils | network |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        for name in ("before", "after"):
            one = row[name]
            alone = one["alone_ms"]
            lines.append(
                f"| {row['network']} | {name} | {one['slices_per_s']:.1f} |"
                f" {one['cpu_ms_per_slice']:.0f} ms | {alone['slice']:.0f} ms |"
                f" {alone['coils']:.0f} ms | {alone['network']:.0f} ms |"
            )
    size, first = report["matrix"], report["rows"][0]
    ratios = "; ".join(
        f"{row['network']} {row['ratio']['median']:.1f} times as many"
        f" ({row['ratio']['smallest']:.1f} to {row['ratio']['largest']:.1f}), images"
        f" {row['apart']:.0e} of their maximum apart"
        for row in report["rows"]
    )
    lines += [
        "",
        f"{report['slices']} slices of {size} x {size} with {report['coils']} coils,"
        f" {first['lines']} lines each, from memory, ONNX Runtime, {report['threads']} thread(s);"
        f" median of {report['rounds']} turns, in which revision {report['before']} and this one"
        f" took turns, {first['after']['at_once']} slice(s) at once now. {ratios}. Coils: from"
        " k-space to the network's input (compression, sensitivities, combination).",
    ]
    return "\n".join(lines)


@click.command(cls=Script)
@click.option("--before", default=BEFORE, show_default=True, help="Revision to compare with.")
@click.option("--matrix", default=256, show_default=True, type=click.IntRange(32, 1024))
@click.option("--coils", default=16, show_default=True, type=click.IntRange(1, 128))
@click.option("--slices", default=24, show_default=True, type=click.IntRange(1), help="Per turn.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1, 1000))
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
@click.option("--out", type=click.Path(path_type=Path), help="Write report.json into this folder.")
def main(before: str, matrix: int, coils: int, slices: int, rounds: int, threads: int,
         out: Path | None) -> None:  # fmt: skip
    """Compare how many slices a second two revisions reconstruct, in one run."""
    report = measure(
        before, matrix=matrix, coils=coils, slices=slices, rounds=rounds, threads=threads
    )
    record(report, out)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
