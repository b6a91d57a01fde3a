"""Suggesting what a user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest"]


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.0) -> str | None:
    """Return the known name that is most like `name`, None if none is like it enough.

    Args:
        name: What was typed.
        known: What exists.
        likeness: Least similarity, from 0 (anything) to 1 (equal).
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return found[0] if found else None
