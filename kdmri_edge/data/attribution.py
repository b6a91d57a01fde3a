"""How the owner of a data folder wants to be named."""

from __future__ import annotations

from pathlib import Path

__all__ = ["attribution_of"]

_NAMES = ("ATTRIBUTION.txt", "LICENSE.txt", "LICENSE", "LICENSE.md", "LICENCE", "LICENCE.txt")
_LONGEST = 2000


def attribution_of(folder: Path) -> str | None:
    """Return the text of the folder's licence file (its first 2,000 characters), None if absent.

    Weights carry it in their metadata, since many licences ask that derived works name the source.
    """
    for name in _NAMES:
        file = folder / name
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace").strip()
            return text[:_LONGEST] or None
    return None
