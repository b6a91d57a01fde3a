"""Tables of what can be chosen by name, which installed packages may add to (torch-free).

Networks, targets, backends, formats, mask families, losses and metrics are rows of one such table
each. The built-in rows stand in the module that the table belongs to. A package adds a row by an
entry point of the table's group, whose name is the row's:

    [project.entry-points."kdmri_edge.targets"]
    my-target = "my_package.target:TARGET"

An entry point is loaded only when its row is asked for, or all rows are. The names are known
without that, so that help texts and choices load nothing. Modules that hold rows should import
nothing heavy: rows name functions by import strings, "module:function".
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from kdmri_edge.errors import KdmriError
from kdmri_edge.utils.suggest import nearest

__all__ = ["Registry"]

Row = TypeVar("Row")


class Registry(Mapping[str, Row], Generic[Row]):
    """Rows by name: the built-in ones in their order, then those of installed packages by name.

    A missing name is a `KeyError`, as of any mapping; `named` says it to a user.

    Args:
        group: Name of the entry points' group.
        row: Class of the rows.
        what: What a row is called in messages, e.g. "export target".
        rows: The built-in rows by name.
        error: Raised for an unknown name, and for an entry point that is broken or clashes.
        claims: What else of a row no other row may have, such as the suffixes of its files.
    """

    def __init__(
        self,
        group: str,
        row: type[Row],
        what: str,
        rows: Mapping[str, Row],
        *,
        error: type[KdmriError],
        claims: Callable[[Row], Iterable[str]] = lambda row: (),
    ) -> None:
        self.group, self.what, self.error = group, what, error
        self._class, self._claims = row, claims
        self._rows = dict(rows)
        self._built_in = frozenset(rows)
        self._points: dict[str, importlib.metadata.EntryPoint] | None = None

    def __getitem__(self, name: str) -> Row:
        if name not in self._rows:
            self._rows[name] = self._load(self._installed()[name])
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._built_in_first()
        yield from sorted(self._installed())

    def __len__(self) -> int:
        return len(self._built_in) + len(self._installed())

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in self._installed()

    def named(self, name: str) -> Row:
        """Return a row.

        Raises:
            KdmriError: Of the registry's class: there is no row of that name (the nearest is
                suggested), or the package that brings it is broken.
        """
        if name in self:
            return self[name]
        raise self.error(
            f"There is no {self.what} {name!r}; did you mean {nearest(name, self)!r}?",
            f"There are {', '.join(self)}.",
        )

    def origin(self, name: str) -> str | None:
        """Return the package that brings a row, "name version"; None for a built-in one."""
        return None if name in self._built_in else _distribution(self._installed()[name])

    def _built_in_first(self) -> Iterator[str]:
        return (name for name in self._rows if name in self._built_in)

    def _installed(self) -> dict[str, importlib.metadata.EntryPoint]:
        """Return the entry points of the group by name, found out once.

        Raises:
            KdmriError: Two of them, or one and a built-in row, have the same name.
        """
        if self._points is None:
            found: dict[str, importlib.metadata.EntryPoint] = {}
            for point in importlib.metadata.entry_points(group=self.group):
                other = found.get(point.name)
                if other is not None or point.name in self._built_in:
                    owner = "kdmri-edge itself" if other is None else _distribution(other)
                    raise self.error(
                        f"The package {_distribution(point)} brings the {self.what}"
                        f" {point.name!r}, which {owner} has too.",
                        "Uninstall one of them, or ask its authors for another name.",
                    )
                found[point.name] = point
            self._points = found
        return self._points

    def _load(self, point: importlib.metadata.EntryPoint) -> Row:
        """Load an entry point.

        Raises:
            KdmriError: It cannot be loaded, or is no row of this table.
        """
        remedy = "Update that package, or uninstall it."
        source = f"The {self.what} {point.name!r} of the package {_distribution(point)}"
        try:
            row = point.load()
        # whatever another's module raises when it is imported
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {error}"
            raise self.error(f"{source} cannot be loaded ({reason}).", remedy) from error
        if not isinstance(row, self._class):
            raise self.error(
                f"{source} is of class {type(row).__name__}, not {self._class.__name__}.", remedy
            )
        own = getattr(row, "name", point.name)
        if own != point.name:
            raise self.error(f"{source} calls itself {own!r}.", remedy)
        taken = {claim: name for name, other in self._rows.items() for claim in self._claims(other)}
        for claim in self._claims(row):
            if claim in taken:
                raise self.error(f"{source} claims {claim!r}, which {taken[claim]!r} has.", remedy)
        return row


def _distribution(point: importlib.metadata.EntryPoint) -> str:
    """Return name and version of the package that an entry point belongs to."""
    owner = point.dist
    return "that is not named" if owner is None else f"{owner.name} {owner.version}"
