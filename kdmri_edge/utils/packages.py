"""Which Python packages are installed here, and what each needs: for lists of what something holds.

Requirements are followed from package to package, as pip does, without asking an index.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdmri_edge.utils.extras import require

__all__ = ["Installed", "Missing", "canonical", "installed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Installed:
    """A Python package.

    Attributes:
        name: As the Python Package Index spells it.
        version: That is installed here, or that is pinned.
        licence: What its metadata says; "not stated" where it says nothing.
        needs: Names of packages that it needs.
    """

    name: str
    version: str
    licence: str
    needs: tuple[str, ...]

    @property
    def ref(self) -> str:
        """Its package URL."""
        return f"pkg:pypi/{self.name}@{self.version}"


class Missing(Exception):  # noqa: N818 - an answer, which callers turn into their own sentence
    """A package that is needed and not installed here.

    Args:
        name: Of the package.
    """

    def __init__(self, name: str) -> None:
        """Keep the name."""
        self.name = name
        super().__init__(name)


def canonical(name: str) -> str:
    """Return a package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(
    roots: Iterable[tuple[str, Iterable[str]]],
    *,
    environment: Mapping[str, str] | None = None,
    requirements: Mapping[str, Sequence[str]] | None = None,
    versions: Mapping[str, str] | None = None,
) -> list[Installed]:
    """Return packages with all that they need in turn, sorted by name.

    Args:
        roots: Names, and the extras that are wanted of each.
        environment: Markers of requirements are evaluated in it; None for this one.
        requirements: What a package needs, where its metadata is not to be asked, by name; such a
            package need not be installed, and is listed only where `versions` has it.
        versions: Versions to list in place of the installed ones, by name.

    Raises:
        Missing: One of them is not installed here, so that its version is not known.
        MissingExtraError: `packaging` is not installed.
    """
    reader: Any = require("packaging.requirements", extra="train")
    known = {canonical(name): lines for name, lines in (requirements or {}).items()}
    pinned = {canonical(name): version for name, version in (versions or {}).items()}
    asked: dict[str, set[str]] = {}
    needs: dict[str, set[str]] = {}
    found: dict[str, Any] = {}
    left = [(canonical(name), set(extras)) for name, extras in roots]
    while left:
        name, extras = left.pop()
        if name in asked and extras <= asked[name]:
            continue
        wanted = asked.setdefault(name, set())
        wanted |= extras
        if name in known:
            lines: Sequence[str] = known[name]
        else:
            try:
                found[name] = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                raise Missing(name) from None
            lines = found[name].requires or []
        of_this = needs.setdefault(name, set())
        for line in lines:
            needed = reader.Requirement(line)
            marker = needed.marker
            if marker is None or any(
                marker.evaluate({**(environment or {}), "extra": extra})
                for extra in ("", *sorted(wanted))
            ):
                other = canonical(needed.name)
                if other != name:
                    of_this.add(other)
                left.append((other, set(needed.extras)))
    made = [
        Installed(
            name=name,
            version=pinned.get(name, one.version),
            licence=_licence(one.metadata),
            needs=tuple(sorted(needs[name])),
        )
        for name, one in found.items()
    ]
    made += [
        Installed(
            name=name, version=pinned[name], licence="not stated", needs=tuple(sorted(needs[name]))
        )
        for name in known
        if name in pinned
    ]
    return sorted(made, key=lambda one: one.name)


def _licence(metadata: Any) -> str:
    """An expression of SPDX where there is one, else the classifier's words."""
    if metadata.get("License-Expression"):
        return str(metadata["License-Expression"])
    words = [
        line.rpartition(" :: ")[2]
        for line in metadata.get_all("Classifier") or ()
        if line.startswith("License :: OSI Approved :: ")
    ]
    first = str(metadata.get("License") or "").strip().splitlines()
    return " and ".join(words) or (first[0][:100] if first else "not stated")
