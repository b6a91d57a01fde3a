"""How many lines coil sensitivities need: `python -m experiments.calibration SCAN`.

Of a fully sampled slice of many coils the central lines are taken as reference lines are, and a
network that combines coils is given the sensitivities that follow from them, beside lines of the
image that are always the same. Both directions of k-space are phase encoding in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from experiments.script import Script, record
from kdmri_edge.data.formats.registry import read_scan
from kdmri_edge.errors import BenchError
from kdmri_edge.models.shipped import shipped_networks
from kdmri_edge.physics.combining import root_sum_of_squares
from kdmri_edge.physics.espirit import CALIBRATION, espirit_maps
from kdmri_edge.physics.fourier import kspace_to_image
from kdmri_edge.runtime.pipeline import Pipeline
from kdmri_edge.utils.provenance import provenance

__all__ = ["LINES", "main", "markdown", "measure"]

SCHEMA: Final = 1
LINES: Final = (32, 24, 20, 16, 12)
_NETWORK: Final = "dccnn-d3c5-sense@measured-4x"
_OBJECT: Final = 0.1  # of the maximum: pixels of the object


def _maps(kspace: NDArray[np.complex64], lines: int) -> NDArray[np.complex64]:
    height, width = kspace.shape[-2:]
    rows = (np.arange(lines) - lines // 2) % height
    columns = (np.arange(CALIBRATION) - CALIBRATION // 2) % width
    return espirit_maps(kspace[:, rows[:, None], columns], height, width)


def measure(scan: Path, lines: Sequence[int] = LINES) -> dict[str, Any]:
    """Measure with fewer and fewer lines.

    Args:
        scan: A fully sampled slice of several coils, of the network's matrix.
        lines: How many are taken.

    Returns:
        For each direction and number of lines: relative errors over the object, of the coils'
        images explained by the sensitivities, and of the network's image to the root sum of
        squares of all lines.

    Raises:
        BenchError: The scan is not fully sampled.
        KdmriError: See `read_scan` and `Pipeline.image`.
    """
    given = read_scan(scan)
    if not given.mask.samples.all():
        raise BenchError(f"{scan} is undersampled.", "Give a scan of all lines.")
    network = shipped_networks()[_NETWORK].path
    rows = []
    with Pipeline(network, backend="torch", threads=1) as pipeline:
        mask = pipeline.reads.mask
        for direction in ("as measured", "turned"):
            kspace = given.kspace[0]
            if direction == "turned":
                kspace = np.ascontiguousarray(kspace.transpose(0, 2, 1))
            images = kspace_to_image(kspace)
            whole = root_sum_of_squares(images)
            inside = whole > _OBJECT * whole.max()
            sampled = (kspace * mask.grid).astype(np.complex64)

            def error(
                found: NDArray[Any], wanted: NDArray[Any], inside: NDArray[np.bool_] = inside
            ) -> float:
                off = np.linalg.norm((found - wanted)[..., inside])
                return float(off / np.linalg.norm(wanted[..., inside]))

            for count in lines:
                maps = _maps(kspace, count)
                explained = maps * (maps.conj() * images).sum(0)
                image = np.abs(pipeline.image(sampled, mask, maps=maps))
                zero_filled = np.abs((maps.conj() * kspace_to_image(sampled)).sum(0))
                rows.append(
                    {
                        "direction": direction,
                        "lines": count,
                        "maps": error(explained, images),
                        "image": error(image, whole),
                        "zero_filled": error(zero_filled, whole),
                    }
                )
    return {
        "schema": SCHEMA, "network": _NETWORK, "coils": given.coils, "matrix": list(given.matrix),
        "scan": given.sha256, "image_lines": int(mask.samples.sum()), "rows": rows,
        "provenance": provenance(),
    }  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    """Return the table as GitHub Markdown."""
    directions = list(dict.fromkeys(row["direction"] for row in report["rows"]))
    found = {(row["direction"], row["lines"]): row for row in report["rows"]}
    heads = [f"{what}, {where}" for where in directions for what in ("coils' images", "image")]
    lines = [f"| lines | {' | '.join(heads)} |", f"|---:|{'---:|' * len(heads)}"]
    for count in dict.fromkeys(row["lines"] for row in report["rows"]):
        cells = [f"{found[where, count][key]:.4f}" for where in directions
                 for key in ("maps", "image")]  # fmt: skip
        lines.append(f"| {count} | {' | '.join(cells)} |")
    height, width = report["matrix"]
    lines += [
        "",
        f"Relative errors over the object, of a measured slice of {report['coils']} coils at"
        f" {height} x {width}: of the coils' images explained by the sensitivities, and of the"
        f" image of {report['network']} from {report['image_lines']} lines to the root sum of"
        " squares of all lines; phase encoding as measured, and along the other direction.",
    ]
    return "\n".join(lines)


@click.command(cls=Script)
@click.argument("scan", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Write report.json into this folder.")
def main(scan: Path, out: Path | None) -> None:
    """Measure how many calibration lines coil sensitivities need.

    SCAN is a file, with its axes where it does not tell them (scan.h5:kspace:chw).
    """
    report = measure(scan)
    record(report, out)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
