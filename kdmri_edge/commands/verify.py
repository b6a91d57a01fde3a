"""`kdmri-edge verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from kdmri_edge.commands.options import RowChoice
from kdmri_edge.runtime.backends.registry import BACKENDS
from kdmri_edge.runtime.targets import as_users_write

__all__ = ["verify"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--backend",
    type=RowChoice("kdmri_edge.runtime.backends.registry:BACKENDS"),
    help="Run this one only [all].",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify(bundle: Path, backend: str | None, as_json: bool) -> None:
    """Check that a bundle is intact and gives the right image on this machine.

    The SHA-256 of every file is compared with the manifest; then the golden input runs on every
    backend and precision that this machine has for it, and is compared with PyTorch's golden
    output; a bundle of any matrix is tried at a second one, too. Exits with 1 if a file was
    changed, an image deviates, or nothing could run it.

    \b
    Examples:
      kdmri-edge verify runs/brain/exports/student-onnx
      kdmri-edge verify bundle --backend openvino --json
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.runtime.verify import verify_bundle

    found = verify_bundle(bundle, backend=backend)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _show(found)
    if not found["passed"]:
        raise click.exceptions.Exit(1)


def _show(found: dict[str, Any]) -> None:
    click.echo(f"{found['files']} files are as they were exported.")
    for row in found["rows"]:
        where = BACKENDS[row["backend"]].title
        if row["status"] == "absent":
            wanted = f" in {as_users_write(row['precision'])}" if row["precision"] else ""
            click.echo(f"{where}: not run{wanted}. {row['reason']}")
            continue
        limit, session = row["tolerance"]["max_error"], row["session"]
        click.echo(
            f"{where} {session['version']}, {as_users_write(session['precision_executed'])}:"
            f" {row['status']},"
            f" max error {row['max_error']:.1e} (limit {limit:.0e}), NRMSE {row['nrmse']:.1e}"
        )
    click.echo("Passed." if found["passed"] else "Failed.")
