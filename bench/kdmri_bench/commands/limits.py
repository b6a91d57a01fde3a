"""The limits of a variant as options of a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from kdmri_bench.results.select import Limits

__all__ = ["limit_options", "read_limits"]

F = TypeVar("F", bound=Callable[..., Any])


def limit_options(command: F) -> F:
    """Give a command --max-latency, --max-memory and --max-loss."""
    for option in reversed((
        click.option(
            "--max-latency", metavar="TIME",
            help="Of one slice from k-space to image, kept by nine of ten (p90), e.g. 20ms.",
        ),
        click.option(
            "--max-memory", metavar="SIZE", help="Peak of the process, e.g. 300MB or 256MiB."
        ),
        click.option(
            "--max-loss", metavar="DB",
            help="Largest loss in PSNR to the teacher, e.g. 0.1dB: the upper end of its 95 %"
            " interval.",
        ),
    )):  # fmt: skip
        command = option(command)
    return command


def read_limits(
    max_latency: str | None, max_memory: str | None, max_loss: str | None
) -> Limits | None:
    """Return the limits that were given, the others left open; None without any.

    Raises:
        BenchError: No number with a unit, or one that nothing can keep.
    """
    from kdmri_bench.results.select import Limits, parse

    given = [
        parse(text, option) if text is not None else None
        for text, option in (
            (max_latency, "max-latency"),
            (max_memory, "max-memory"),
            (max_loss, "max-loss"),
        )
    ]
    if all(value is None for value in given):
        return None
    return Limits(latency_ms=given[0], memory_bytes=given[1], loss_db=given[2])
