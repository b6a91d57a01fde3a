"""Which machines a run was trained on: it may have been resumed elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdmri_edge.errors import RunError
from kdmri_edge.files import read_json, write_json

__all__ = ["all_machines", "devices", "note_machine"]


def _what(ran: Mapping[str, Any]) -> tuple[Any, ...]:
    return ran.get("device"), ran.get("precision")


def all_machines(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what ran, as `engine.describe` says it, of a run.json: first where it was begun."""
    return [dict(meta["ran_on"]), *map(dict, meta.get("resumed_on", []))]


def devices(files: Iterable[Path]) -> list[str]:
    """Return the devices and precisions that runs were trained on, each once.

    Args:
        files: Their run.json.

    Raises:
        RunError: One cannot be read.
    """
    found = {
        f"{ran['device']} ({ran['precision']})": None
        for file in sorted(files)
        for ran in all_machines(dict(read_json(file, RunError)))
    }
    return list(found)


def note_machine(file: Path, ran: Mapping[str, Any]) -> None:
    """Write into a run.json what the run goes on on, where that is another device or precision.

    Args:
        file: The run.json.
        ran: What `engine.describe` says now.

    Raises:
        RunError: It cannot be read.
    """
    meta = dict(read_json(file, RunError))
    known = all_machines(meta)
    if _what(ran) not in map(_what, known):
        write_json(file, {**meta, "resumed_on": [*known[1:], dict(ran)]})
