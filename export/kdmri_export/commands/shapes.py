"""The option `--shape NAME=1x2x320x320`, of commands that take graphs of any origin."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

__all__ = ["shape_option"]


class _Shape(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Return name and sizes."""
        if isinstance(value, tuple):
            return value
        name, _, sizes = str(value).rpartition("=")
        if not name or not re.fullmatch(r"\d{1,9}([x,]\d{1,9})*", sizes):
            self.fail(f"{value!r} is no NAME=SIZES such as image=1x2x320x320.", param, ctx)
        return name, tuple(int(size) for size in re.split("[x,]", sizes))


def shape_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the option.

    Args:
        what: Why it is given.
    """
    return click.option(
        "--shape",
        "shapes",
        type=_Shape(),
        multiple=True,
        metavar="NAME=SIZES",
        help=f"Sizes of an input, e.g. image=1x2x320x320, {what}; may be repeated.",
    )
