"""Five protocols and one server of several bundles: `python -m experiments.protocols`.

Scans of the phantom are streamed one after another: by a client of one's own, or by another one of
the protocol with --client. Each image is compared with what the pipeline makes of the same scan in
memory, and with the image of all lines: the network's for the scan's bundle, else the root sum of
squares.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import h5py
import numpy as np
from ismrmrd import Dataset, Image
from numpy.typing import NDArray

from experiments.script import Script, record
from experiments.served import ServerProcess
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.simulation import coil_maps, complex_noise, smooth_phase
from kdmri_edge.errors import BenchError
from kdmri_edge.mrd.client import send_scan
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.hdf5 import write_scan
from kdmri_edge.mrd.format.header import write_encoding
from kdmri_edge.mrd.format.images import BEYOND, BUNDLE, BUNDLE_REASON, fallback_of
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask, variable_density_lines
from kdmri_edge.physics.reference import ReferenceLines
from kdmri_edge.runtime.bundle import open_bundle
from kdmri_edge.runtime.pipeline import Pipeline, zero_filled_magnitude
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.provenance import provenance
from kdmri_export.jobs import export

__all__ = ["BUNDLES", "Protocol", "markdown", "measure", "protocols"]

SCHEMA: Final = 1
BUNDLES: Final = {
    "brain-4x": ("dccnn-d3c5@brain-4x", None),
    "any-matrix": ("dccnn-d3c5@brain-any-mask", "any"),
    "coils": ("dccnn-d3c5-sense@measured-4x", "any"),
}
"""Bundles of the server: a network of the package, and whether its export takes any matrix."""
_SLICES: Final = 2
_COILS: Final = 8
_NOISE: Final = 0.02  # of the brightest pixel, in each coil
_OBJECT: Final = 0.05  # of an image's maximum: below it there is air


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Protocol:
    """One scan of the examination.

    Attributes:
        name: In words.
        scan: What is streamed.
        whole: The same with all lines.
        bundle: What should serve it; None where none can.
    """

    name: str
    scan: Scan
    whole: Scan
    bundle: str | None


def _whole(matrix: int, coils: int, *, seed: int, gamma: float = 1.0) -> Scan:
    """A phantom with all lines; `gamma` is another contrast of the same head."""
    images = phantom_volume(7, slices=_SLICES, matrix=matrix).image
    images = images.max() * (images / images.max()) ** gamma
    maps = np.ones((1, matrix, matrix), np.complex64)
    if coils > 1:
        maps = coil_maps(coils, matrix, matrix, seed=7)
        images = images * np.exp(1j * smooth_phase(matrix, matrix, seed=seed))
    kspace = image_to_kspace(images[:, None] * maps)
    if coils > 1:
        noise = complex_noise(kspace.shape, seed=seed)
        kspace = kspace + _NOISE * float(np.abs(images).max()) * noise
    everything = Mask(samples=np.ones(matrix, np.bool_), name="all")
    return Scan(
        kspace=kspace.astype(np.complex64), mask=everything, name="phantom", subject="phantom"
    )


def _sampled(whole: Scan, mask: Mask, reference: Scan | None = None, lines: int = 32) -> Scan:
    apart = None
    if reference is not None:
        rows = np.arange(-(lines // 2), lines - lines // 2) % whole.matrix[0]
        apart = tuple(
            ReferenceLines(rows=rows, lines=np.ascontiguousarray(kspace[:, rows]))
            for kspace in reference.kspace
        )
    kspace = (whole.kspace * mask.grid).astype(np.complex64)
    return dataclasses.replace(whole, kspace=kspace, mask=mask, reference=apart)


def protocols(folder: Path) -> list[Protocol]:
    """Return the examination, for the bundles in a folder.

    Raises:
        BundleError: A bundle is missing.
    """
    one, many = _whole(240, 1, seed=0), _whole(256, _COILS, seed=1)
    own = open_bundle(folder / "brain-4x").mask
    centre = variable_density_lines(256, 4.0, centre_lines=24, seed=3)
    few = variable_density_lines(256, 3.0, centre_lines=10, seed=4)
    even = Mask(samples=np.arange(256) % 2 == 1, name="every second line")
    other = _whole(256, _COILS, seed=2, gamma=0.5)  # another contrast, phase and noise
    return [
        Protocol(name="one coil", scan=_sampled(one, own), whole=one, bundle="brain-4x"),
        Protocol(name="eight coils", scan=_sampled(many, centre), whole=many, bundle="coils"),
        Protocol(name="fully sampled", scan=many, whole=many, bundle="coils"),
        Protocol(
            name="separate reference lines", scan=_sampled(many, few, other), whole=many,
            bundle="coils",
        ),
        Protocol(name="no calibration", scan=_sampled(many, even), whole=many, bundle=None),
    ]  # fmt: skip


def measure(folder: Path, client: Path | None = None, *, threads: int = 1) -> dict[str, Any]:
    """Stream the examination to one server, and compare what comes back.

    Args:
        folder: The bundles, see `BUNDLES`.
        client: Program of another client: it is given an MRD file, and options as those of
            `client.py` of python-ismrmrd-server.
        threads: CPU threads.

    Returns:
        The report, a row for each protocol.

    Raises:
        BenchError: Images are missing, or not those that the pipeline makes of the same scan.
    """
    given = protocols(folder)
    rows = []
    with (
        tempfile.TemporaryDirectory() as place,
        ServerProcess(folder, "--threads", str(threads), "--deadline", "60") as server,
        progress("Protocols", len(given)) as advance,
    ):
        for protocol in given:
            images = _sent(protocol.scan, server.port, client, Path(place))
            rows.append(_row(protocol, folder, images, threads))
            advance(1)
        memory = server.resident()
        loaded = [str(event["bundle"]) for event in server.events() if event["event"] == "loaded"]
    return {
        "schema": SCHEMA,
        "bundles": {name: reference for name, (reference, _) in BUNDLES.items()},
        "client": "ours" if client is None else client.name,
        "rows": rows,
        "loaded": loaded,
        "resident_bytes": memory,
        "provenance": provenance(),
    }


def _sent(scan: Scan, port: int, client: Path | None, place: Path) -> list[Image]:
    if client is None:
        xml = write_encoding(encoding_of(scan, 2), slices=len(scan.kspace))
        reply = send_scan(xml, readouts(scan, 2), port=port, timeout_s=120)
        if reply.errors:
            raise BenchError(f"The server ended a scan: {reply.errors[0]}", "Run it by hand.")
        return reply.images
    source, result = place / "scan.h5", place / "images.h5"
    result.unlink(missing_ok=True)
    write_scan(source, scan, oversampling=2)
    command = [sys.executable, str(client), str(source), "-a", "127.0.0.1", "-p", str(port),
               "-o", str(result), "-G", "images", "-c", "kdmri-edge"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode or not result.is_file():
        raise BenchError(f"The client failed: {done.stderr[-300:]}", "Run it by hand.")
    with h5py.File(result, "r") as file:
        series = [name for name in file["images"] if name.startswith("image")]
    with Dataset(str(result), "images", create_if_needed=False) as dataset:
        return [
            dataset.read_image(name, number)
            for name in series
            for number in range(dataset.number_of_images(name))
        ]


def _row(protocol: Protocol, folder: Path, images: list[Image], threads: int) -> dict[str, Any]:
    slices = protocol.scan.kspace
    if sorted(int(image.slice) for image in images) != list(range(len(slices))):
        raise BenchError(
            f"{len(images)} images of {len(slices)} slices came back.", "Run it by hand."
        )
    got = {int(image.slice): np.asarray(image.data[0, 0]) for image in images}
    zero = [zero_filled_magnitude(kspace) for kspace in slices]
    whole = [zero_filled_magnitude(kspace) for kspace in protocol.whole.kspace]
    right, target = zero, whole
    if protocol.bundle is not None:
        with Pipeline(folder / protocol.bundle, threads=threads) as pipeline:
            right = list(np.abs(pipeline.images(pipeline.prepare(protocol.scan))))
            if pipeline.session.takes_masks:
                target = list(np.abs(pipeline.images(pipeline.prepare(protocol.whole))))
    (served,) = {str(image.meta[BUNDLE]) for image in images}
    (reason,) = {str(image.meta[BUNDLE_REASON]) for image in images}
    apart = max(
        float(np.abs(got[number] - image).max() / image.max()) for number, image in enumerate(right)
    )
    if apart > 1e-3 or served != (protocol.bundle or "none"):
        raise BenchError(
            f"The images of {protocol.name!r} are those of {served}, {apart:.1e} of the maximum"
            " from what they should be.",
            "Run it by hand.",
        )
    return {
        "protocol": protocol.name,
        "matrix": list(protocol.scan.matrix),
        "coils": protocol.scan.coils,
        "lines": int(protocol.scan.mask.samples.sum()),
        "reference_lines": 0
        if protocol.scan.reference is None or protocol.scan.reference[0] is None
        else len(protocol.scan.reference[0].rows),
        "served": served,
        "reason": reason,
        "flagged": sum(fallback_of(image) is not None for image in images),
        "beyond_training": str(images[0].meta.get(BEYOND, "")),
        "images": len(images),
        "from_memory": apart,
        "error": _error([got[number] for number in sorted(got)], target),
        "zero_filled_error": _error(
            zero, [zero_filled_magnitude(k) for k in protocol.whole.kspace]
        ),
    }


def _error(images: list[NDArray[Any]], targets: list[NDArray[Any]]) -> float:
    """Relative error of pixels of the object, over all slices."""
    wrong = whole = 0.0
    for image, target in zip(images, targets, strict=True):
        inside = target > _OBJECT * target.max()
        wrong += float(((image - target)[inside] ** 2).sum())
        whole += float((target[inside] ** 2).sum())
    return float(np.sqrt(wrong / whole))


def markdown(report: Mapping[str, Any]) -> str:
    """Return the table of a report."""
    lines = [
        "| protocol | matrix | coils | lines | reference lines | served by | error | zero-filled |",
        "|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for row in report["rows"]:
        served = row["served"] if not row["flagged"] else "none (flagged)"
        lines.append(
            f"| {row['protocol']} | {row['matrix'][0]} x {row['matrix'][1]} | {row['coils']} |"
            f" {row['lines']} | {row['reference_lines'] or '-'} | {served} | {row['error']:.3f} |"
            f" {row['zero_filled_error']:.3f} |"
        )
    bundles = ", ".join(f"{name} ({what})" for name, what in report["bundles"].items())
    images = sum(row["images"] for row in report["rows"])
    by = "by our own client" if report["client"] == "ours" else f"by {report['client']}"
    worst = max(row["from_memory"] for row in report["rows"])
    return (
        "\n".join(lines)
        + f"\n\nOne server of {len(report['bundles'])} bundles: {bundles}. {images} images of the"
        f" phantom, streamed {by}; each is the pipeline's own to {worst:.0e} of its maximum."
        " Errors are relative, in pixels of the object, to the image of all lines."
    )


@click.command(cls=Script)
@click.option("--client", type=click.Path(path_type=Path), metavar="client.py",
              help="Another client of the protocol, as python-ismrmrd-server's.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for report.json.")
def main(client: Path | None, threads: int, out: Path | None) -> None:
    """Stream an examination of five protocols to one server of several bundles."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, (reference, matrix) in BUNDLES.items():
            export(reference, target="onnx", matrix=matrix, out=folder / name)
        report = measure(folder, client, threads=threads)
    click.echo(markdown(report))
    record(report, out)


if __name__ == "__main__":
    main()
