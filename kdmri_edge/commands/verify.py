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
@click.option(
    "--files-only",
    is_flag=True,
    help="Execute nothing of it: check files, manifest, mask, operator and golden data.",
)
@click.option(
    "--digest",
    metavar="SHA256",
    help="Refuse a bundle whose manifest has another digest, which `export` and `verify` print.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify(
    bundle: Path, backend: str | None, files_only: bool, digest: str | None, as_json: bool
) -> None:
    """Check that a bundle is intact and gives the right image on this machine.

    What lies in it is checked first: every file's SHA-256, that nothing else lies there, the
    manifest's digest, and that mask, operator, graph and golden data belong together. Then the
    golden input runs on every backend and precision that this machine has for it, and is compared
    with PyTorch's golden output; a bundle of any matrix is tried at a second one, too. Of a network
    of this package the image of another input is compared with that of the package's own weights;
    of others the figures are their exporter's claim. Exits with 1 if anything differs, an image
    deviates, or nothing could run it.

    \b
    Examples:
      kdmri-edge verify runs/brain/exports/student-onnx
      kdmri-edge verify bundle --backend openvino --json
      kdmri-edge verify bundle-of-a-stranger --files-only
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.runtime.verify import verify_bundle

    if files_only and backend is not None:
        raise click.UsageError("--files-only runs nothing, so it takes no --backend.")
    found = verify_bundle(bundle, backend=backend, files_only=files_only, digest=digest)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _show(found)
    if not found["passed"]:
        raise click.exceptions.Exit(1)


def _show(found: dict[str, Any]) -> None:
    click.echo(f"{found['files']} files are as they were exported.")
    if found["digest"]:
        click.echo(f"The manifest is as it was exported: {found['digest']}.")
    else:
        click.echo("The manifest has no digest, as in earlier versions: it may have been changed.")
    if found["mask_agrees_with"]:
        click.echo(f"The mask is that of {' and '.join(found['mask_agrees_with'])}.")
    else:
        click.echo("The mask cannot be compared with the graph's.")
    for text in found["code"]:
        click.echo(f"Not to be loaded without --code: {text}")
    origin = found["origin"]
    named = f"By its checkpoint's hash it is {origin['network']}. " if origin["network"] else ""
    click.echo(named + origin["remark"])
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
    if not found["executed"]:
        click.echo("Nothing was executed.")
    click.echo("Passed." if found["passed"] else "Failed.")
