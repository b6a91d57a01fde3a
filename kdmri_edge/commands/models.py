"""`kdmri-edge models`."""

from __future__ import annotations

import json
from typing import Any, Final

import click

__all__ = ["models"]

_WIDTH: Final = 120  # of the widest table


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def models(as_json: bool) -> None:
    """List the architectures, and the trained networks that come with the package.

    They read magnitude images (with data consistency: the real part of the combined image), complex
    images, or the coils with their sensitivities (sense). A trained network is named PRESET@PLACE
    and can stand wherever weights are taken:

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
            "reads": str(spec.reads),
            "parameters": spec.parameters,
            "macs_240": sum(spec.macs(240, 240, coils=COILS).values()),
        }
        for name, spec in PRESETS.items()
    }
    shipped = {
        name: {
            **network.entry,
            "reads": str(spec_from_dict(network.entry["spec"]).reads),
            "anatomy": network.entry["figures"]["split"],
        }
        for name, network in shipped_networks().items()
    }
    if as_json:
        click.echo(json.dumps({"presets": presets, "shipped": shipped}, indent=2))
        return
    _show(presets, shipped)


def _show(presets: dict[str, dict[str, Any]], shipped: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from kdmri_edge.models.shipped import served

    console = Console(soft_wrap=True)
    if not console.is_terminal:  # a pipe has no width that a table would have to keep to
        console = Console(soft_wrap=True, width=_WIDTH)
    table = Table(box=None, title="architectures", title_justify="left")
    for title in ("preset", "reads", "parameters", "GMAC at 240 x 240"):
        table.add_column(title)
    for name, facts in presets.items():
        table.add_row(
            name, facts["reads"], f"{facts['parameters']:,}", f"{facts['macs_240'] / 1e9:.2f}"
        )
    console.print(table)
    table = Table(box=None, title="trained networks", title_justify="left")
    table.add_column("name", no_wrap=True)  # a name that is cut short cannot be copied
    for title in ("anatomy", "reads", "mask", "matrix", "PSNR dB", "gain dB", "SSIM"):
        table.add_column(title)
    for name, entry in shipped.items():
        figures = entry["figures"]
        table.add_row(
            name,
            entry["anatomy"],
            entry["reads"],
            f"{served(entry)}{entry['nominal_acceleration']:.2f}x",
            str(entry["matrix"]),
            f"{figures['mean']['psnr']:.2f}",
            f"{figures['mean']['psnr'] - figures['zero_filled']['psnr']:+.2f}",
            f"{figures['mean']['ssim']:.4f}",
        )
    console.print(table)
