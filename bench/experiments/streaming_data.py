"""Training on more data than memory holds: `python -m experiments.streaming_data`.

Synthetic files in the layout of fastMRI's multi-coil sets (a phantom with phase and noise, seen by
birdcage coils) train a SENSE network, with its slices in memory and read from files. Each training
is a process of its own, which reads its own peak; a smaller part of the data each time gives the
curve of memory against number of volumes. Nothing is found in the cache folder: preparing is part
of every process. One more training has files of full size.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import click
import h5py
import numpy as np

from experiments.script import Script, record
from kdmri_bench.measuring.device import resident
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.simulation import coil_maps, draw_noise, smooth_phase
from kdmri_edge.errors import BenchError
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.provenance import provenance

__all__ = ["FULL", "SMALL", "Kind", "main", "markdown", "measure", "trained", "write_volume"]

SCHEMA: Final = 1
_NETWORK: Final = "dccnn-d3c5-sense"
_COUNTS: Final = (8, 24, 60)
_STEPS: Final = 40
_WARM: Final = 10
"""Steps before the clock runs: the first ones allocate memory."""
_MEMORY: Final = 64 * 2**20
"""What a training that reads from files keeps in memory of its slices, in bytes."""
_ENDLESS: Final = 2**50
"""A limit that no data set reaches: slices are held in memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """Files of one size.

    Attributes:
        coils: Receive coils.
        slices: Slices of each file.
        matrix: Pixels along both axes.
    """

    coils: int
    slices: int
    matrix: int

    @property
    def bytes(self) -> int:
        """Of a file's k-space, complex64."""
        return self.coils * self.slices * self.matrix**2 * 8


SMALL: Final = Kind(coils=16, slices=3, matrix=192)
"""Files of the curve: sixty of them are prepared in a minute."""
FULL: Final = Kind(coils=16, slices=20, matrix=320)
"""As large as files of fastMRI's brain set without the oversampling of their readout; sixty of
them have 16 GB of k-space, with it 31 GB."""
_FULL_COUNT: Final = 3


def write_volume(path: Path, kind: Kind, seed: int) -> None:
    """Write a file of fully sampled k-space, [slices, coils, readout, phase encode]."""
    size = kind.matrix
    image = phantom_volume(seed, slices=kind.slices, matrix=size).image
    phase = np.exp(1j * smooth_phase(size, size, seed=seed)).astype(np.complex64)
    maps = coil_maps(kind.coils, size, size, seed=seed)
    random = np.random.default_rng(seed)
    level = np.float32(0.01 * image.max())
    with h5py.File(path, "w") as file:
        shape = (kind.slices, kind.coils, size, size)
        stored = file.create_dataset("kspace", shape, np.complex64)
        rss = file.create_dataset("reconstruction_rss", (kind.slices, size, size), np.float32)
        for n, one in enumerate(image):
            seen = one * phase * maps
            seen = seen + level * draw_noise(random, seen.shape)
            centred = np.fft.fftshift(image_to_kspace(seen), axes=(-2, -1))
            stored[n] = centred.swapaxes(-1, -2)
            rss[n] = np.sqrt((np.abs(seen) ** 2).sum(0)).T
        file.attrs["patient_id"] = f"patient{seed:03}"
        file.attrs["acquisition"] = "AXT2"


def trained(asked: str) -> None:
    """Train in this process, and print what it took: what each process of the study calls.

    Args:
        asked: JSON: data, split, out, cache, memory, matrix, steps, acceleration.
    """
    import torch

    from kdmri_edge.distillation import loop
    from kdmri_edge.distillation.engine import Engine
    from kdmri_edge.distillation.request import Request
    from kdmri_edge.distillation.run import distill

    marks: list[tuple[float, float, float]] = []
    real = loop.TrainStep.__call__

    def timed(self: loop.TrainStep, step: int) -> float:
        loss = real(self, step)
        marks.append((time.perf_counter(), time.process_time(), self.waited))
        return loss

    loop.TrainStep.__call__ = timed  # type: ignore[method-assign]
    wanted = json.loads(asked)
    settings = Request(
        data=wanted["data"],
        split=wanted["split"],
        matrix=wanted["matrix"],
        acceleration=wanted["acceleration"],
        teacher=_NETWORK,
        student=_NETWORK,
        baseline=False,
        recipe="imitation",
        assignments=(
            f"teacher_steps={wanted['steps']}",
            f"validate_every={wanted['steps']}",
            "batches.whole_slices=0",
            "batches.size=4",
            "precision=f32",
        ),
    ).settings()
    engine = Engine(data_memory=wanted["memory"], data_cache=Path(wanted["cache"]))
    distill(replace(settings, distilled=False), Path(wanted["out"]), engine=engine)
    clock, processor, waited = np.array(marks[_WARM - 1 :]).T
    print(
        json.dumps(
            {
                "peak": resident().peak,
                "threads": torch.get_num_threads(),
                "step_s": float(np.median(np.diff(clock))),
                "processor_s": float((processor[-1] - processor[0]) / (len(processor) - 1)),
                "waiting": float((waited[-1] - waited[0]) / (clock[-1] - clock[0])),
            }
        )
    )


def _process(wanted: Mapping[str, Any]) -> dict[str, float]:
    """Train in a process of its own.

    Raises:
        BenchError: It fails.
    """
    code = f"from experiments.streaming_data import trained; trained({json.dumps(wanted)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError(f"A training failed: {done.stderr.strip()[-400:]}", "Run it by hand.")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def _row(
    files: Sequence[Path],
    kind: Kind,
    way: str,
    folder: Path,
    *,
    steps: int,
    memory: int,
    acceleration: float,
) -> dict[str, Any]:
    """Train on some files.

    Raises:
        BenchError: Slices were kept where they should not have been.
    """
    data = folder / "data"
    data.mkdir()
    for file in files:
        os.link(file, data / file.name)
    patients = [f"patient{int(file.stem[4:]):03}" for file in files]
    split = folder / "split.toml"
    # nothing is validated: the clock would run meanwhile
    split.write_text(f"train = {json.dumps(patients)}\nvalidation = []\ntest = []\n")
    wanted = {
        "data": str(data),
        "split": str(split),
        "out": str(folder / "run"),
        "cache": str(folder / "cache"),
        "memory": memory if way == "files" else _ENDLESS,
        "matrix": kind.matrix,
        "steps": steps,
        "acceleration": acceleration,
    }
    figures = _process(wanted)
    stored = sum(file.stat().st_size for file in folder.glob("cache/**/*.npy"))
    shutil.rmtree(folder)
    if (stored > 0) != (way == "files"):
        raise BenchError("The slices all fit into memory.", "Give a smaller limit.")
    return {
        "volumes": len(files),
        "kind": asdict(kind),
        "way": way,
        "kspace_bytes": kind.bytes * len(files),
        "stored_bytes": stored,
        **figures,
    }


def measure(
    counts: Sequence[int] = _COUNTS,
    *,
    small: Kind = SMALL,
    full: Kind = FULL,
    full_count: int = _FULL_COUNT,
    steps: int = _STEPS,
    memory: int = _MEMORY,
    acceleration: float = 4.0,
) -> dict[str, Any]:
    """Train on more and more volumes, from memory and from files.

    Args:
        counts: Numbers of volumes.
        small: Their size.
        full: Size of the files of one more training, from files.
        full_count: Their number; 0 leaves that training out.
        steps: Steps of each training.
        memory: What slices that are read from files may take of it, in bytes.
        acceleration: Of the mask that files are undersampled with.

    Raises:
        BenchError: A training fails.
    """
    rows = []
    common: dict[str, Any] = {"memory": memory, "acceleration": acceleration}
    with (
        tempfile.TemporaryDirectory(prefix="kdmri-streaming-") as scratch,
        progress("Trainings", 2 * len(counts) + bool(full_count)) as advance,
    ):
        place = Path(scratch)
        with progress("Writing files", max(counts)) as wrote:
            files = [place / f"file{n}.h5" for n in range(max(counts))]
            for n, file in enumerate(files):
                write_volume(file, small, n)
                wrote(1)
        for count in counts:
            for way in ("memory", "files"):
                folder = place / f"{way}-{count}"
                folder.mkdir()
                rows.append(_row(files[:count], small, way, folder, steps=steps, **common))
                advance(1)
        if full_count:
            large = [place / f"file{1000 + n}.h5" for n in range(full_count)]
            for n, file in enumerate(large):
                write_volume(file, full, 1000 + n)
            folder = place / "full"
            folder.mkdir()
            rows.append(_row(large, full, "files", folder, steps=2 * _WARM, **common))
            advance(1)
    return {
        "schema": SCHEMA,
        "network": _NETWORK,
        "steps": steps,
        "memory": memory,
        "asked_bytes": FULL.bytes * 60,
        "rows": rows,
        "provenance": provenance(),
    }


def markdown(report: Mapping[str, Any]) -> str:
    """Return the table as GitHub Markdown."""
    lines = [
        "| volumes | k-space MiB | slices | peak resident MiB | s a step | processor s a step |"
        " waiting for data | slices on disk MiB |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        kind = row["kind"]
        lines.append(
            f"| {row['volumes']} of {kind['coils']} coils, {kind['slices']} slices,"
            f" {kind['matrix']} x {kind['matrix']} | {row['kspace_bytes'] / 2**20:.0f} |"
            f" {'in memory' if row['way'] == 'memory' else 'from files'} |"
            f" {row['peak'] / 2**20:.0f} | {row['step_s']:.3f} | {row['processor_s']:.3f} |"
            f" {row['waiting']:.1%} |"
            f" {row['stored_bytes'] / 2**20:.0f} |"
        )
    sizes = [row["kind"] for row in report["rows"]]
    small = [row for row in report["rows"] if row["kind"] == sizes[0]]
    pairs = {
        count: {row["way"]: row for row in small if row["volumes"] == count}
        for count in sorted({row["volumes"] for row in small})
    }
    ratios = [pair["files"]["step_s"] / pair["memory"]["step_s"] for pair in pairs.values()]
    threads = small[0]["threads"]
    streamed = [row["peak"] for row in small if row["way"] == "files"]
    held = [row["peak"] for row in small if row["way"] == "memory"]
    part = report["asked_bytes"] / max(row["kspace_bytes"] for row in small)
    lines += [
        "",
        f"{report['network']}, {report['steps']} steps, threads: {threads}; s a step is the median"
        f" of the steps after the first {_WARM}, processor s their mean over all threads. Slices"
        f" that are read from files may take {report['memory'] / 2**20:.0f} MiB of memory. From"
        f" {min(pairs)} to {max(pairs)} volumes the peak grows by"
        f" {(max(held) - min(held)) / 2**20:.0f} MiB in memory and by"
        f" {(max(streamed) - min(streamed)) / 2**20:.0f} MiB from files. With equal volumes a step"
        f" from files takes {np.mean(ratios):.2f} times as long as one from memory on average"
        f" ({', '.join(f'{ratio:.2f}' for ratio in ratios)}). {max(pairs)} files of full size (16"
        f" coils, 20 slices, 320 x 320) have {part:.1f} times as much k-space as {max(pairs)} of"
        f" these, and with fastMRI's readout, sampled twice as densely, {2 * part:.1f} times. Each"
        " process prepares its slices itself. The phantom is procedural.",
    ]
    return "\n".join(lines)


@click.command(cls=Script)
@click.option("--out", type=click.Path(path_type=Path), help="Write report.json into this folder.")
def main(out: Path | None) -> None:
    """Measure memory and speed of a training from memory and from files."""
    report = measure()
    record(report, out)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
