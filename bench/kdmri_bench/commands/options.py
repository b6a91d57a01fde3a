"""Options that commands of measurement share: on which volumes, and with how many threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["contrast_option", "limit_slices_option", "names", "subjects_option", "threads_option"]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

contrast_option = click.option("--contrast", help="Measure on this contrast only, e.g. FLAIR.")

subjects_option = click.option(
    "--subjects", help="Measure on exactly these subjects, comma-separated, whatever the split."
)


def limit_slices_option(default: str) -> Decorator:
    """Make `--limit-slices`.

    Args:
        default: What is measured without it, in words.
    """
    return click.option(
        "--limit-slices",
        type=click.IntRange(min=1),
        help=f"Measure on the central N slices of each volume.  [{default}]",
    )


def threads_option(default: str) -> Decorator:
    """Make `--threads`.

    Args:
        default: How many there are without it, in words.
    """
    return click.option(
        "--threads", type=click.IntRange(min=1), help=f"CPU threads.  [default: {default}]"
    )


def names(option: str, text: str | None) -> list[str]:
    """Split a comma-separated option; one that names nothing does not mean all.

    Args:
        option: What it is called, for the message.
        text: What was given; None where it was not.

    Raises:
        click.UsageError: It names nothing.
    """
    found = [name.strip() for name in (text or "").split(",") if name.strip()]
    if text is not None and not found:
        raise click.UsageError(f"{option} names nothing: leave it out, to take all.")
    return found
