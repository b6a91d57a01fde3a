"""What the commands under `python -m kdmri_bench.NAME` share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from kdmri_edge.commands.command import Command
from kdmri_edge.errors import KdmriError
from kdmri_edge.utils.files import check_writable, write_json

__all__ = ["Script", "by_optimizer", "record"]


class Script(Command):
    """A command that tells a user's mistake in one sentence and ends with its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            out = ctx.params.get("out")
            if isinstance(out, Path):  # found out now, not after an hour of measuring
                check_writable(out)
            return super().invoke(ctx)
        except KdmriError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)


def record(report: Mapping[str, Any], out: Path | None) -> None:
    """Write a report into a folder, which is made; without one do nothing.

    Raises:
        OutputError: The folder cannot be written to.
    """
    if out is not None:
        write_json(out / "report.json", report)


def by_optimizer(name: str) -> str:
    """Return what follows a number of steps in a table: with which optimizer, where not Adam."""
    return "" if name == "adam" else f" with {name.title()}"
