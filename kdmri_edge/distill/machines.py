"""Which machines a run was trained on: it may have been resumed elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["all_machines", "resumed_on"]


def _what(ran: Mapping[str, Any]) -> tuple[Any, ...]:
    return ran.get("device"), ran.get("precision")


def all_machines(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what ran, as `engine.describe` says it, of a run.json: first where it was begun."""
    return [dict(meta["ran_on"]), *map(dict, meta.get("resumed_on", []))]


def resumed_on(meta: Mapping[str, Any], ran: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of run.json with what it goes on on now.

    Args:
        meta: The contents so far.
        ran: What `engine.describe` says now.
    """
    known = all_machines(meta)
    if _what(ran) in map(_what, known):
        return dict(meta)
    return {**meta, "resumed_on": [*known[1:], dict(ran)]}
