"""`kdmri-edge models`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import json_option
from kdmri_edge.utils.console import print_result, table_console

if TYPE_CHECKING:
    from rich.console import Console

    from kdmri_edge.models.protocol import NetworkSpec

__all__ = ["models"]


@click.command(cls=Command)
@click.argument("network", required=False)
@click.option(
    "--matrix",
    type=click.IntRange(min=16),
    help="Of NETWORK: side of the image that its modules are shown for [the checkpoint's, else"
    " 240].",
)
@click.option(
    "--convention",
    metavar="NAME",
    help="What forward of a NETWORK that is code takes, where its signature does not tell.",
)
@json_option()
def models(network: str | None, matrix: int | None, convention: str | None, as_json: bool) -> None:
    """List the architectures, and the trained networks that come with the package.

    With NETWORK (an architecture, a checkpoint, a trained network, or code as FILE.py:factory),
    list its modules instead, with what each returns: the names that distillation.taps of a recipe
    pairs.

    They read magnitude images (with data consistency: the real part of the combined image) or
    complex ones. A network of several coils combines them itself, by their sensitivities; for one
    of one coil `run` and `serve` combine them. A trained network is named PRESET@PLACE and can
    stand wherever weights are taken:

    \b
      kdmri-edge export dccnn-edge@brain-4x --target onnx
      kdmri-edge bench dccnn-d5c5@brain-4x dccnn-edge@brain-4x --data DIR
      kdmri-edge distill --teacher dccnn-d5c5@brain-4x --data DIR --mask FILE
      kdmri-edge models 'unet.py:UNet?width=16' --matrix 256
    """  # noqa: D301 - click wants the backspace itself
    if network is not None:
        _show_modules(network, matrix, convention, as_json=as_json)
        return
    if matrix is not None or convention is not None:
        raise click.UsageError("--matrix and --convention are for one NETWORK; name it.")
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
        print_result(json.dumps({"presets": presets, "shipped": shipped}, indent=2))
        return
    _show(presets, shipped)


def _show_modules(
    network: str, matrix: int | None, convention: str | None, *, as_json: bool
) -> None:
    from kdmri_edge.utils.extras import require

    require("torch", extra="train")
    from kdmri_edge.distillation.taps import network_outputs

    found = network_outputs(network, matrix=matrix, convention=convention)
    if as_json:
        rows = [{**one._asdict(), "shape": one.shape and list(one.shape)} for one in found]
        print_result(json.dumps({"modules": rows}, indent=2))
        return
    from rich.table import Table

    table = Table(box=None, title=f"modules of {network}", title_justify="left")
    table.add_column("name", no_wrap=True)
    for title in ("class", "calls", "feature maps", "of"):
        table.add_column(title)
    for one in found:
        shape = (
            ("-", "-") if one.shape is None else (str(one.shape[0]), "{1} x {2}".format(*one.shape))
        )
        table.add_row(one.name, one.kind, str(one.calls), *shape)
    _console().print(table)


def _input(spec: NetworkSpec) -> dict[str, str]:
    """Say which scans a network is for: its images, and how many coils it combines itself."""
    from kdmri_edge.models.protocol import reads_coils

    return {
        "reads": str(spec.reads),
        "images": "magnitude" if spec.channels == 1 else "complex",
        "coils": "several" if reads_coils(spec) else "one",
    }


def _mask(entry: Mapping[str, Any]) -> str:
    """Say which sampling a trained network is for."""
    if entry.get("masks") == "lines":
        return "any lines"
    # super-resolution takes the centre of k-space, whose size says more than its acceleration
    centre = str(entry["mask"]).startswith("centre-")
    return str(entry["mask"]) if centre else f"{entry['nominal_acceleration']:g}x"


def _console() -> Console:
    # Whoever reads a file or a pipe copies names out of it: there no cell is broken.
    return table_console(width=None if sys.stdout.isatty() else 200)


def _show(presets: dict[str, dict[str, Any]], shipped: dict[str, dict[str, Any]]) -> None:
    from rich.table import Table

    console = _console()
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
