"""Whether a request can be trained by the processes that are to share it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from kdmri_edge.distill.batches import batch_size, strips_allowed
from kdmri_edge.distill.recipe import Quantise
from kdmri_edge.distill.settings import Settings
from kdmri_edge.errors import RecipeError

__all__ = ["check_shares"]


def check_shares(settings: Settings, processes: int) -> None:
    """Refuse what cannot be trained as it is asked for: it would silently be something else.

    Args:
        settings: The request.
        processes: How many will share each batch.

    Raises:
        RecipeError: Batches that the processes cannot share evenly.
    """
    recipe, strips = settings.recipe, strips_allowed(settings.mask, settings.student_spec)
    shards = max(recipe.shards, processes)
    if shards % processes:
        raise RecipeError(
            f"{recipe.shards} shards cannot be shared evenly by {processes} processes.",
            f"Use --set shards={recipe.shards * processes}, or fewer processes.",
        )
    kinds = {"strips": False} if strips else {}
    if recipe.whole_slices > 0 or not strips or recipe.quantise is not Quantise.NONE:
        kinds["whole slices"] = True
    for kind, whole in kinds.items():
        batch = batch_size(recipe, settings.matrix, whole=whole)
        if batch % shards:
            raise RecipeError(
                f"A step on {batch} {kind} cannot be shared evenly by {processes} processes"
                f" in {shards} shard(s).",
                f"Use --set batch={_fitting(settings, kinds.values(), shards)}"
                + (", or fewer processes." if processes > 1 else ", or fewer shards."),
            )


def _fitting(settings: Settings, kinds: Collection[bool], shards: int) -> int:
    """Return the smallest multiple of the batch whose steps of all kinds can be shared."""
    recipe = settings.recipe
    batches = (recipe.batch * n for n in range(1, shards * settings.matrix + 1))
    return next(
        batch
        for batch in batches
        if not any(
            batch_size(replace(recipe, batch=batch), settings.matrix, whole=whole) % shards
            for whole in kinds
        )
    )
