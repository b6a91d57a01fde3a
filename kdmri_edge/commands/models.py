"""`kdmri-edge models`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kdmri_edge.models.protocol import NetworkSpec

__all__ = ["models"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def models(as_json: bool) -> None:
    """List the architectures, and the trained networks that come with the package.

    They read magnitude images (with data consistency: the real part of the combined image) or
    complex ones. A network of several coils combines them itself, by their sensitivities; for one
    of one coil `run` and `serve` combine them. A trained network is named PRESET@PLACE and can
    stand wherever weights are taken:

    \b
      kdmri-edge export dccnn-d3c5@brain-4x --target onnx
      kdmri-edge bench dccnn-d5c5@brain-4x dccnn-d3c5@brain-4x --data DIR
      kdmri-edge distill --teacher dccnn-d5c5@brain-4x --data DIR --mask FILE
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.models.shipped import shipped_networks
    from kdmri_edge.models.specs import PRESETS, spec_from_dict
    from kdmri_edge.physics.coils import COILS

    presets = {
        name: {
            "parameters": spec.parameters,
            "macs_240": sum(spec.macs(240, 240, coils=COILS).values()),
            **_input(spec),
        }
        for name, spec in PRESETS.items()
    }
    shipped = {
        name: {
            **network.entry,
            "anatomy": network.anatomy,
            **_input(spec_from_dict(network.entry["spec"])),
        }
        for name, network in shipped_networks().items()
    }
    if as_json:
        click.echo(json.dumps({"presets": presets, "shipped": shipped}, indent=2))
        return
    _show(presets, shipped)


def _input(spec: NetworkSpec) -> dict[str, str]:
    """Say which scans a network is for: its images, and how many coils it combines itself."""
    return {
        "reads": str(spec.reads),
        "images": "magnitude" if spec.channels == 1 else "complex",
        "coils": "several" if spec.coils else "one",
    }


def _mask(entry: Mapping[str, Any]) -> str:
    """Say which sampling a trained network is for."""
    if entry.get("masks") == "lines":
        return "any lines"
    # super-resolution takes the centre of k-space, whose size says more than its acceleration
    centre = str(entry["mask"]).startswith("centre-")
    return str(entry["mask"]) if centre else f"{entry['nominal_acceleration']:g}x"


def _show(presets: dict[str, dict[str, Any]], shipped: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    # Whoever reads a file or a pipe copies names out of it: there no cell is broken.
    console = Console(width=None if sys.stdout.isatty() else 200)
    table = Table(box=None, title="architectures", title_justify="left")
    for title in ("preset", "images", "coils", "parameters", "GMAC at 240 x 240"):
        table.add_column(title)
    for name, facts in presets.items():
        table.add_row(
            name,
            facts["images"],
            facts["coils"],
            f"{facts['parameters']:,}",
            f"{facts['macs_240'] / 1e9:.2f}",
        )
    console.print(table)
    table = Table(box=None, title="trained networks", title_justify="left")
    table.add_column("name", no_wrap=True)  # a name that is cut short cannot be copied
    for title in (
        "anatomy", "images", "coils", "mask", "matrix", "PSNR dB", "gain dB", "SSIM"
    ):  # fmt: skip
        table.add_column(title)
    for name, entry in shipped.items():
        figures = entry["figures"]
        table.add_row(
            name,
            entry["anatomy"],
            entry["images"],
            entry["coils"],
            _mask(entry),
            str(entry["matrix"]),
            f"{figures['mean']['psnr']:.2f}",
            f"{figures['mean']['psnr'] - figures['zero_filled']['psnr']:+.2f}",
            f"{figures['mean']['ssim']:.4f}",
        )
    console.print(table)
