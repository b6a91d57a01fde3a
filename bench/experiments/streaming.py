"""What a scanner's stream costs: `python -m experiments.streaming`.

One MRD file is reconstructed in three ways in one run: read and given to the pipeline from memory,
streamed to a server over loopback as fast as it takes it, and streamed at a pace that the pipeline
keeps up with, which tells the time from a slice's last line to its image. Both streams must give
the images of the first.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from ismrmrd import Acquisition, Image
from numpy.typing import NDArray

from experiments.script import Script, record
from experiments.served import NETWORK, ServerProcess, coil_scan, make_bundle, repeated
from kdmri_edge.errors import BenchError
from kdmri_edge.mrd.client import Reply, send_scan
from kdmri_edge.mrd.format.assembler import Assembler
from kdmri_edge.mrd.format.emit import encoding_of
from kdmri_edge.mrd.format.hdf5 import read_header, read_readouts, write_readouts
from kdmri_edge.mrd.format.header import read_encoding, write_encoding
from kdmri_edge.mrd.format.images import fallback_of
from kdmri_edge.runtime.bundle import open_bundle
from kdmri_edge.runtime.pipeline import Pipeline
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.provenance import provenance

__all__ = ["main", "markdown", "measure"]

SCHEMA: Final = 1
_BASE: Final = 4  # different slices, which the scan repeats
_TOGETHER: Final = 20  # slices whose reading is not counted
_SLACK: Final = 1.5  # a paced scan's time per slice over the pipeline's


def _from_memory(pipeline: Pipeline, file: Path) -> tuple[list[NDArray[Any]], float]:
    """Reconstruct a file; return its images and the seconds that the pipeline alone took."""
    assembler = Assembler(read_encoding(read_header(file)))
    parts = (part for line in read_readouts(file) if (part := assembler.add(line)) is not None)
    images, seconds = [], 0.0
    with ThreadPoolExecutor(pipeline.at_once) as pool:
        while some := list(islice(parts, _TOGETHER)):
            began = time.perf_counter()
            made = list(pool.map(lambda part: pipeline.reconstruct(part.kspace, part.mask), some))
            seconds += time.perf_counter() - began
            for outcome in made:
                if outcome.fallback is not None:
                    raise BenchError(f"A slice was not reconstructed: {outcome.fallback}", "")
                images.append(np.abs(outcome.image))
    return images, seconds


def _difference(images: list[Image], wanted: list[NDArray[Any]]) -> float:
    """Return the largest difference from the file's images, over each image's maximum.

    Raises:
        BenchError: An image is missing, or not the network's.
    """
    if sorted(int(image.slice) for image in images) != list(range(len(wanted))):
        raise BenchError(
            f"{len(images)} images of {len(wanted)} slices came back, or one of them twice.",
            "Run it by hand.",
        )
    for image in images:
        if (reason := fallback_of(image)) is not None:
            raise BenchError(f"The server sent a zero-filled image: {reason}", "")
    worst = 0.0
    for image in images:
        reference = wanted[int(image.slice)]
        gap = np.abs(image.data[0, 0] - reference).max() / reference.max()
        worst = max(worst, float(gap))
    return worst


def measure(
    *,
    slices: int = 100,
    coils: int = 16,
    matrix: int = 256,
    threads: int = 2,
    bundle: Path | None = None,
) -> dict[str, Any]:
    """Measure one scan in memory and over loopback.

    Args:
        slices: Of the scan.
        coils: Receive channels.
        matrix: Side of the slices, without a bundle of one's own.
        threads: CPU threads of the network.
        bundle: What to serve; None exports the untrained student.

    Returns:
        Slices per second in memory and streamed, milliseconds from last line to image, and the
        largest difference between the two ways.

    Raises:
        BenchError: An image is missing or not the network's.
        KdmriError: The network cannot be exported or run.
    """
    with tempfile.TemporaryDirectory() as place, progress("Streaming", 4) as advance:
        source = bundle or make_bundle(Path(place), matrix)
        pipeline = Pipeline(source, threads=threads, sharing=True)
        pipeline.warm_up()
        matrix = pipeline.reads.matrix[0]
        scan = coil_scan(open_bundle(source).mask, matrix, slices=_BASE, coils=coils)
        file = Path(place) / "scan.h5"
        xml = write_encoding(encoding_of(scan), slices=slices)
        lines = write_readouts(file, xml, repeated(scan, slices))
        advance(1)
        wanted, in_memory = _from_memory(pipeline, file)
        advance(1)
        # a scanner has its readouts in memory: reading the file would cost the server's CPUs
        held = list(read_readouts(file))
        with ServerProcess(source, "--threads", str(threads), "--deadline", "60") as server:
            fast, seconds = _streamed(server, xml, held, 0.0)
            advance(1)
            pace = _SLACK * max(in_memory, seconds) / lines
            paced, _ = _streamed(server, xml, held, pace)
            advance(1)
        waits = 1e3 * np.array(list(paced.waits()))
        return {
            "schema": SCHEMA,
            "network": NETWORK if bundle is None else bundle.name,
            "slices": slices,
            "coils": coils,
            "matrix": matrix,
            "lines_per_slice": lines // slices,
            "threads": threads,
            "slices_per_s": {"memory": slices / in_memory, "streamed": slices / seconds},
            "last_line_to_image_ms": {
                "p50": float(np.percentile(waits, 50)),
                "p99": float(np.percentile(waits, 99)),
                "pace_ms_per_slice": 1e3 * pace * lines / slices,
            },
            "largest_difference": max(
                _difference(fast.images, wanted), _difference(paced.images, wanted)
            ),
            "provenance": provenance(0),
        }


def _streamed(
    server: ServerProcess, xml: str, held: Sequence[Acquisition], pace: float
) -> tuple[Reply, float]:
    began = time.perf_counter()
    reply = send_scan(xml, held, port=server.port, pace_s=pace, timeout_s=120)
    return reply, time.perf_counter() - began


def markdown(report: dict[str, Any]) -> str:
    """Return the result as a table with one note."""
    speed, wait = report["slices_per_s"], report["last_line_to_image_ms"]
    size = report["matrix"]
    return "\n".join(
        [
            "| | slices/s | last line to image, p50 | p99 |",
            "|---|---:|---:|---:|",
            f"| from memory | {speed['memory']:.1f} | - | - |",
            f"| streamed over loopback | {speed['streamed']:.1f} | {wait['p50']:.0f} ms |"
            f" {wait['p99']:.0f} ms |",
            "",
            f"{report['slices']} slices of {size} x {size} with {report['coils']} coils,"
            f" {report['lines_per_slice']} lines each, {report['network']},"
            f" {report['threads']} thread(s), client and server on one machine. From memory: the"
            " pipeline alone. Last line to image: seen by the client, at a slice every"
            f" {wait['pace_ms_per_slice']:.0f} ms. Largest difference between streamed and file:"
            f" {report['largest_difference']:.1e} of an image's maximum.",
        ]
    )


@click.command(cls=Script)
@click.option("--slices", default=100, show_default=True, type=click.IntRange(1))
@click.option("--coils", default=16, show_default=True, type=click.IntRange(1, 128))
@click.option("--matrix", default=256, show_default=True, type=click.IntRange(32, 1024))
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
@click.option("--bundle", type=click.Path(path_type=Path), help="Serve this one.")
@click.option("--out", type=click.Path(path_type=Path), help="Write report.json into this folder.")
def main(slices: int, coils: int, matrix: int, threads: int, bundle: Path | None,
         out: Path | None) -> None:  # fmt: skip
    """Measure what streaming a scan to a server costs beside reconstructing its file."""
    report = measure(slices=slices, coils=coils, matrix=matrix, threads=threads, bundle=bundle)
    record(report, out)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
