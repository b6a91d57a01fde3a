"""`kdmri-edge evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import file_options, json_option
from kdmri_edge.utils.console import print_result

if TYPE_CHECKING:
    from kdmri_edge.data.evaluation import Evaluation

__all__ = ["evaluate"]


@click.command(cls=Command)
@click.argument("targets", type=click.Path(path_type=Path))
@click.argument("reconstructions", type=click.Path(path_type=Path))
@click.option(
    "--challenge",
    type=click.Choice(["singlecoil", "multicoil"]),
    help="Compare with reconstruction_esc, or with reconstruction_rss [as the k-space of each file"
    " has one coil or several].",
)
@click.option("--acquisition", help="Take only volumes of this kind, e.g. AXT2.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the result to this file.")
@file_options
@json_option()
def evaluate(
    targets: Path,
    reconstructions: Path,
    challenge: str | None,
    acquisition: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compare reconstructions with fastMRI's references, as its public evaluation does.

    TARGETS is a folder of fastMRI's training or validation files, whose reconstruction_rss (or
    _esc) is compared with; where a file has none, it is computed of its fully sampled k-space.
    RECONSTRUCTIONS is a folder of files of the same names with a dataset `reconstruction`, which
    `kdmri-edge run --layout fastmri` writes. Both may be one file. PSNR, SSIM and NMSE are those of
    a volume within the central square, the reference's maximum as data range; what is printed is
    each volume's, and their mean with the standard deviation (n - 1).

    \b
    Examples:
      kdmri-edge run bundle multicoil_val/ -o submission --layout fastmri
      kdmri-edge evaluate multicoil_val/ submission --out figures.json
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.data.evaluation import evaluate as compare
    from kdmri_edge.utils.files import check_file_writable, write_json

    if out is not None:
        check_file_writable(out)
    found = compare(targets, reconstructions, challenge=challenge, acquisition=acquisition)
    if out is not None:
        write_json(out, found.to_dict())
    print_result(json.dumps(found.to_dict(), indent=2) if as_json else _table(found))


_COLUMNS = (("psnr", "PSNR dB", ".2f"), ("ssim", "SSIM", ".4f"), ("nmse", "NMSE", ".5f"))


def _table(found: Evaluation) -> str:
    rows = [["volume", "slices", "compared with", *(title for _, title, _ in _COLUMNS)]]
    for volume in found.volumes:
        figures = [format(volume.metrics[name], how) for name, _, how in _COLUMNS]
        rows.append([volume.name, str(volume.slices), volume.reference, *figures])
    mean = [format(found.mean[name], how) for name, _, how in _COLUMNS]
    rows.append([f"mean of {len(found.volumes)}", "", "", *mean])
    if len(found.volumes) > 1:
        std = [format(found.std[name] or 0.0, how) for name, _, how in _COLUMNS]
        rows.append(["standard deviation", "", "", *std])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n in (0, 2) else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
