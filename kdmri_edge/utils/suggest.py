"""Suggesting what a user may have meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["nearest"]


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.0) -> str | None:
    """Return the known name that is most like `name`, None if none is like it enough.

    Args:
        name: What was typed.
        known: What exists.
        likeness: Least similarity, from 0 (anything) to 1 (equal).
    """
    names = list(known)
    short = [one for one in names if name.lower() in _abbreviations(one)]
    if short:
        return short[0]
    found = difflib.get_close_matches(name, names, n=1, cutoff=likeness)
    return found[0] if found else None


def _abbreviations(name: str) -> set[str]:
    """Return how a name of several words is cut short: "lr" and "learning" for "learning_rate"."""
    words = re.split(r"[_-]", name)
    if len(words) < 2:
        return set()
    return {"".join(word[:1] for word in words), words[0]}
