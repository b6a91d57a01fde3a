"""From nothing to the first image: `python -m experiments.cold_start`.

Each sample is a process of its own that runs `kdmri-edge run` on one slice, from the interpreter's
start to the written image; runtimes take turns. PyTorch, and what else only training and exporting
need, cannot be imported in the processes that are to do without. The network is the student,
untrained: weights do not change time or memory.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from experiments.script import Script, record
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.errors import BenchError
from kdmri_edge.models.checkpoint import Checkpoint, save_checkpoint
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.masks import variable_density_lines
from kdmri_edge.physics.operators import zero_filled
from kdmri_edge.runtime.backends.registry import BACKENDS
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.provenance import provenance

__all__ = ["main", "markdown", "measure"]

SCHEMA: Final = 1
_MATRIX: Final = 256
_NETWORK: Final = "dccnn-d3c5"
_BLOCKED: Final = ("torch", "lightning_fabric", "onnx", "onnxscript", "safetensors")
# backend -> target of its bundle; PyTorch runs the checkpoint itself
_TARGETS: Final = {"onnxruntime": "onnx", "openvino": "openvino", "pytorch": None}


def _program(arguments: list[str], blocked: tuple[str, ...]) -> list[str]:
    # The process reads its own peak: what the parent can see counts the parent's pages at the fork.
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}));"
        f" sys.argv = {['kdmri-edge', *arguments]!r};"
        " from kdmri_edge.cli import main; main.main(standalone_mode=False);"
        " from kdmri_bench.measuring.device import resident; print(resident().peak)"
    )
    return [sys.executable, "-c", code]


def _sample(command: list[str]) -> tuple[float, float]:
    """Run a process; return its seconds and its peak resident set in MiB."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise BenchError(f"A process failed: {done.stderr.strip()[-300:]}", "Run it by hand.")
    return seconds, int(done.stdout.split()[-1]) / 2**20


def _commands(folder: Path, threads: int, matrix: int) -> dict[str, list[str]]:
    """Export the network and return the command of each backend."""
    import torch

    from kdmri_edge.models.build import build_model
    from kdmri_export.export import export_model
    from kdmri_export.recipe import ExportRecipe

    mask = variable_density_lines(matrix, 4.0, seed=0)
    torch.manual_seed(0)
    checkpoint = folder / "student.safetensors"
    state = build_model(preset(_NETWORK)).state_dict()
    save_checkpoint(
        checkpoint,
        Checkpoint(
            spec=preset(_NETWORK),
            mask=mask,
            matrix=matrix,
            role="student",
            training={},
            state=state,
        ),
    )
    image = phantom_volume(0, slices=3, matrix=matrix).image[1:2]
    np.save(folder / "slice.npy", zero_filled(image.astype(np.complex64), mask))
    commands = {}
    for name, target in _TARGETS.items():
        source = checkpoint
        if target is not None:
            source = export_model(checkpoint, ExportRecipe(target=target), folder / target).path
        arguments = ["run", source, folder / "slice.npy", "-o", folder / f"{name}.npy"]
        words = [*map(str, arguments), "--threads", str(threads)]
        commands[name] = _program(words, _BLOCKED if target is not None else ())
    return commands


def measure(*, samples: int, threads: int, matrix: int = _MATRIX) -> dict[str, Any]:
    """Measure cold start and peak memory of every backend.

    Args:
        samples: Processes per backend, after one that is not counted.
        threads: CPU threads of each.
        matrix: Side of the slice in pixels.

    Returns:
        Per backend: seconds (median, smallest, largest) from the process's start to its end with
        the image written, and the peak resident set in MiB (largest); with the provenance.

    Raises:
        BenchError: A process failed.
        KdmriError: The network cannot be exported.
    """
    with tempfile.TemporaryDirectory() as place:
        commands = _commands(Path(place), threads, matrix)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        with progress("Starting processes", (samples + 1) * len(commands)) as advance:
            for number in range(samples + 1):
                for name, command in commands.items():
                    sample = _sample(command)
                    if number:  # the first one fills the disk's cache
                        found[name].append(sample)
                    advance(1)
    rows = [
        {
            "backend": name,
            "seconds": {
                "median": statistics.median(s for s, _ in values),
                "smallest": min(s for s, _ in values),
                "largest": max(s for s, _ in values),
            },
            "peak_mib": max(m for _, m in values),
            "without": list(_BLOCKED) if _TARGETS[name] is not None else [],
        }
        for name, values in found.items()
    ]
    return {
        "schema": SCHEMA,
        "network": _NETWORK,
        "matrix": matrix,
        "samples": samples,
        "threads": threads,
        "rows": rows,
        "provenance": provenance(0),
    }


def markdown(report: dict[str, Any]) -> str:
    """Return the table as GitHub Markdown."""
    lines = ["| runtime | process start to written image | peak memory |", "|---|---:|---:|"]
    for row in report["rows"]:
        seconds = row["seconds"]
        title = "PyTorch" if row["backend"] == "pytorch" else BACKENDS[row["backend"]].title
        spread = f"({seconds['smallest']:.2f} to {seconds['largest']:.2f})"
        cells = (title, f"{seconds['median']:.2f} s {spread}", f"{row['peak_mib']:.0f} MiB")
        lines.append(f"| {' | '.join(cells)} |")
    size = report["matrix"]
    lines += [
        "",
        f"`kdmri-edge run` on one slice of {size} x {size}, {report['network']},"
        f" {report['threads']} threads: median (smallest to largest) of {report['samples']}"
        " processes that took turns; peak resident set of the whole process. PyTorch was not"
        " importable for the others.",
    ]
    return "\n".join(lines)


@click.command(cls=Script)
@click.option("--samples", default=10, show_default=True, type=click.IntRange(1, 1000))
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
@click.option("--out", type=click.Path(path_type=Path), help="Write report.json into this folder.")
def main(samples: int, threads: int, out: Path | None) -> None:
    """Measure time and memory from a process's start to its first image."""
    report = measure(samples=samples, threads=threads)
    record(report, out)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
