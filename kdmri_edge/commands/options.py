"""Options that name a row of one of this project's tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from kdmri_edge.errors import ExportError
from kdmri_edge.utils.suggest import nearest

__all__ = ["NamedChoice"]


class NamedChoice(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on
    """A choice whose unknown values are one sentence with the nearest name, exit code 1.

    Args:
        names: What there is.
        what: What that is called, e.g. "export target".
    """

    def __init__(self, names: Iterable[str], what: str) -> None:
        super().__init__(list(names))
        self.what = what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return a known name.

        Raises:
            ExportError: There is none of that name.
        """
        names = [str(name) for name in self.choices]
        if value in names:
            return str(value)
        raise ExportError(
            f"There is no {self.what} {value!r}; did you mean {nearest(str(value), names)!r}?",
            f"There are {', '.join(names)}.",
        )
