"""The limits of a variant as options of a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kdmri_edge.errors import BenchError

if TYPE_CHECKING:
    from kdmri_bench.results.select import Limits

__all__ = ["limit_options", "read_limits"]

F = TypeVar("F", bound=Callable[..., Any])


class _Limit(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.2 on
    """A number with its unit; what is none is a wrong use of the option, exit code 2."""

    def __init__(self, option: str, metavar: str) -> None:
        self.name, self._option = metavar, option

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return it in ms, bytes or dB."""
        from kdmri_bench.results.select import parse

        if isinstance(value, float):  # click converts some values twice
            return value
        try:
            return parse(str(value), self._option)
        except BenchError as error:
            self.fail(f"{error.what} {error.remedy}", param, ctx)


def limit_options(command: F) -> F:
    """Give a command --max-latency, --max-memory and --max-loss."""
    for option in reversed((
        click.option(
            "--max-latency", type=_Limit("max-latency", "TIME"), metavar="TIME",
            help="Of one slice from k-space to image, kept by nine of ten (p90), e.g. 20ms.",
        ),
        click.option(
            "--max-memory", type=_Limit("max-memory", "SIZE"), metavar="SIZE",
            help="Peak of the process, e.g. 300MB or 256MiB.",
        ),
        click.option(
            "--max-loss", type=_Limit("max-loss", "DB"), metavar="DB",
            help="Largest loss in PSNR to the teacher, e.g. 0.1dB: the upper end of its 95 %"
            " interval.",
        ),
    )):  # fmt: skip
        command = option(command)
    return command


def read_limits(
    max_latency: float | None, max_memory: float | None, max_loss: float | None
) -> Limits | None:
    """Return the limits that were given, the others left open; None without any.

    Raises:
        BenchError: One that nothing can keep.
    """
    from kdmri_bench.results.select import Limits

    if max_latency is None and max_memory is None and max_loss is None:
        return None
    return Limits(latency_ms=max_latency, memory_bytes=max_memory, loss_db=max_loss)
