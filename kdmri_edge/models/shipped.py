"""Trained networks inside the package, by reference: `dccnn-d3c5@brain-4x` (torch-free).

A reference is PRESET@PLACE. `weights/index.json` says of each what it is, which volumes it was
trained on, whom to attribute, and how well it does on which test volumes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kdmri_edge.errors import CheckpointError, ModelError
from kdmri_edge.utils.files import sha256_file
from kdmri_edge.utils.suggest import nearest

__all__ = [
    "INDEX",
    "INDEX_FORMAT",
    "WEIGHTS",
    "ShippedNetwork",
    "is_reference",
    "resolve",
    "resolve_weights",
    "served",
    "shipped_networks",
]

WEIGHTS: Final = Path(__file__).resolve().parent.parent / "weights"
INDEX: Final = "index.json"
INDEX_FORMAT: Final = 1
_REFERENCE: Final = re.compile(r"[\w.-]+@[\w.-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShippedNetwork:
    """A network in the package.

    Attributes:
        reference: PRESET@PLACE.
        path: Its checkpoint (safetensors).
        entry: What the index says: file, sha256, role, spec, parameters, mask and accelerations
            (of its figures), masks ("lines" if it was trained for any line mask, else "own"; own
            where it is left out), matrix, recipe, steps, seed, data, attribution, revision,
            figures, and `tuned`: the copies beside it that were tuned for int8, by the kind of
            their integers.
    """

    reference: str
    path: Path
    entry: Mapping[str, Any]


def served(entry: Mapping[str, Any]) -> str:
    """Return what a table puts before the mask of a network's figures: whether others will do."""
    return "any lines; here " if entry.get("masks") == "lines" else ""


def is_reference(text: str) -> bool:
    """Tell whether a text is meant as PRESET@PLACE rather than as a path."""
    # folders may have an @ in their names: what has a separator or a suffix of ours is a path
    named = _REFERENCE.fullmatch(text) is not None and not text.endswith(".safetensors")
    return named and not Path(text).exists()


def shipped_networks(root: Path = WEIGHTS) -> dict[str, ShippedNetwork]:
    """Return the networks of the package by reference.

    Raises:
        CheckpointError: The index is damaged or of a newer format.
    """
    file = root / INDEX
    if not file.is_file():
        return {}
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        if index["format"] > INDEX_FORMAT:
            raise CheckpointError(f"{file} is of a newer format.", "Update kdmri-edge.")
        return {
            reference: _network(reference, root, entry)
            for reference, entry in index["networks"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}).", "Install kdmri-edge again."
        ) from error


def _network(reference: str, root: Path, entry: Mapping[str, Any]) -> ShippedNetwork:
    entry["sha256"]  # without it nothing could be compared: the index is damaged
    return ShippedNetwork(reference=reference, path=root / entry["file"], entry=entry)


def resolve_weights(network: Path) -> Path:
    """Return the file of a network of the package, and any other path as it is.

    Raises:
        ModelError: See `resolve`.
        CheckpointError: See `resolve`.
    """
    return resolve(str(network)) if is_reference(str(network)) else network


def resolve(reference: str, root: Path = WEIGHTS) -> Path:
    """Return the checkpoint of a shipped network, after comparing its hash and its copies'.

    Raises:
        ModelError: There is no such network; the message names the nearest.
        CheckpointError: The file is missing or altered, or the index is damaged.
    """
    known = shipped_networks(root)
    if reference not in known:
        if not known:
            raise ModelError(f"No network {reference!r} is shipped.", "Give a checkpoint's path.")
        raise ModelError(
            f"No network {reference!r} is shipped; did you mean {nearest(reference, known)!r}?",
            f"Shipped are {', '.join(known)}.",
        )
    network = known[reference]
    # copies that were tuned for int8 are found by their names (`runs.tuned_for`)
    files = [network.entry, *network.entry.get("tuned", {}).values()]
    if not all(_intact(root, entry) for entry in files):
        raise CheckpointError(
            f"The weights of {reference} are missing or altered.", "Install kdmri-edge again."
        )
    return network.path


def _intact(root: Path, entry: Mapping[str, Any]) -> bool:
    file = root / entry["file"]
    return file.is_file() and bool(sha256_file(file) == entry["sha256"])
