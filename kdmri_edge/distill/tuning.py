"""What a run remembers of its copies that are tuned for int8."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kdmri_edge.checkpoint import read_checkpoint_meta
from kdmri_edge.distill.material import Material, joined
from kdmri_edge.distill.recipe import DistillRecipe
from kdmri_edge.errors import RunError

__all__ = ["check_same_tuning", "noted", "origin_of_copy"]

_KEYS: Final = ("quantise", "quantise_steps", "quantise_rate")


def noted(meta: Mapping[str, Any], recipe: DistillRecipe) -> dict[str, Any] | None:
    """Return the contents of run.json with the tuning that is asked for now, None if it has them.

    An interruption then goes on with it by --resume alone.
    """
    asked = recipe.to_dict()
    own = {key: asked[key] for key in _KEYS}
    if all(meta["recipe"].get(key) == value for key, value in own.items()):
        return None
    settings = meta["settings"]
    settings = {**settings, "recipe": {**settings["recipe"], **own}}
    return {**meta, "settings": settings, "recipe": {**meta["recipe"], **own}}


def check_same_tuning(copy: Path, recipe: DistillRecipe) -> None:
    """Refuse to take a copy that is there for one that is tuned otherwise.

    Raises:
        RunError: It was.
    """
    made, asked = read_checkpoint_meta(copy)["training"]["recipe"], recipe.to_dict()
    other = next((key for key in _KEYS if made.get(key) != asked[key]), None)
    if other is not None:
        raise RunError(
            f"{copy} was tuned with another {other} ({made.get(other)}).",
            "Delete that file to tune anew, or leave the option out.",
        )


def origin_of_copy(
    known: Mapping[str, Any], material: Material, recipe: DistillRecipe
) -> dict[str, Any]:
    """Return recipe, data, owners and simulation of a copy: what it was tuned on has reached it.

    Args:
        known: `training` of the student that it stems from.
        material: Data of the run that tunes it.
        recipe: Of that run.
    """
    owners = dict.fromkeys(
        text for text in (known.get("attribution"), material.attribution) if text
    )
    return {
        **material.simulation,
        "recipe": recipe.to_dict(),
        "data": joined(list(known.get("data", [])), material.record["train"]),
        "attribution": "\n\n".join(owners) or None,
    }
