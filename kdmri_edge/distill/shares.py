"""Whether a request can be trained by the processes that are to share it."""

from __future__ import annotations

from kdmri_edge.distill.batches import batch_size, strips_allowed
from kdmri_edge.distill.recipe import Masks, Quantise
from kdmri_edge.distill.settings import Settings
from kdmri_edge.errors import RecipeError

__all__ = ["check_shares"]


def check_shares(settings: Settings, processes: int) -> None:
    """Refuse what cannot be trained as it is asked for: it would silently be something else.

    Args:
        settings: The request.
        processes: How many will share each batch.

    Raises:
        RecipeError: Masks that the networks cannot be trained over, or batches that the processes
            cannot share evenly.
    """
    recipe, strips = settings.recipe, strips_allowed(settings.mask, settings.student_spec)
    if recipe.masks is Masks.LINES and not settings.mask.is_lines:
        raise RecipeError(
            "Training over line masks needs a run whose own mask samples lines.",
            "Give such a mask, or --set masks=own.",
        )
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
                f"Use --set batch={recipe.batch * shards}, or fewer processes.",
            )
