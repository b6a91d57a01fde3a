"""Whether a request can be trained as it is asked for; looked at before hours of training."""

from __future__ import annotations

from kdmri_edge.distill.masks import ACCELERATIONS, SMALLEST
from kdmri_edge.distill.recipe import Masks, Transfer
from kdmri_edge.distill.settings import Settings
from kdmri_edge.distill.shares import check_shares
from kdmri_edge.errors import RecipeError
from kdmri_edge.models.bridge import check_bridge
from kdmri_edge.models.inherit import check_inherit
from kdmri_edge.models.spec import Kind

__all__ = ["check_settings"]


def check_settings(settings: Settings, processes: int) -> None:
    """Refuse what would fail late, or silently be something else.

    Args:
        settings: The request.
        processes: How many will share each batch.

    Raises:
        RecipeError: Masks that the networks cannot be trained over, a pair of networks of which one
            cannot learn from the other as it is asked to, or batches that the processes cannot
            share evenly.
        ModelError: A student that cannot take over its teacher's convolutions.
    """
    _check_masks(settings)
    if settings.student_place is None and settings.distilled:
        _check_pair(settings)
    check_shares(settings, processes)


def _check_masks(settings: Settings) -> None:
    recipe = settings.recipe
    lines = settings.mask.is_lines and settings.student_spec.kind is Kind.DCCNN
    if recipe.noise > 0 and not lines:
        raise RecipeError(
            f"Noise (noise={recipe.noise:g}) is added to lines that a mask samples, which this run"
            " has none of.",
            "Use --set noise=0, or a network with data consistency (DC-CNN) and a line mask.",
        )
    if recipe.masks is Masks.LINES:
        key, without = "masks=lines", "masks=own"
    elif recipe.other_masks > 0:
        key, without = f"other_masks={recipe.other_masks:g}", "other_masks=0"
    else:
        return
    if settings.student_spec.kind is Kind.VDSR:
        raise RecipeError(
            f"Super-resolution takes no mask, so it cannot be trained over line masks ({key}).",
            f"Use --set {without}.",
        )
    if not settings.mask.is_lines:
        raise RecipeError(
            f"Training over line masks ({key}) needs a run whose own mask samples lines.",
            f"Give such a mask, or --set {without}.",
        )
    if settings.matrix < SMALLEST:
        raise RecipeError(
            f"A matrix of {settings.matrix} is too small for masks of up to"
            f" {ACCELERATIONS[1]:g}x ({key}), which leave it no centre.",
            f"Train at {SMALLEST} or more, or use --set {without}.",
        )


def _check_pair(settings: Settings) -> None:
    recipe, teacher, student = settings.recipe, settings.teacher_spec, settings.student_spec
    relates = recipe.attention_steps and recipe.transfer is Transfer.RELATION
    if relates and teacher.width != student.width:
        raise RecipeError(
            f"The teacher has {teacher.width} feature maps, the student {student.width}; their"
            " relations cannot be compared.",
            "Pair networks of equal width, or use --set transfer=attention.",
        )
    if recipe.bridge:
        check_bridge(student, teacher)
    elif recipe.inherit:
        check_inherit(student, teacher)
    if not recipe.joint_steps:
        return
    remedy = "Use --set joint_steps=0."
    if settings.teacher_place is not None:
        raise RecipeError(
            "A finished teacher cannot be trained jointly with its student.",
            f"{remedy[:-1]}, or let this run train the teacher.",
        )
    if teacher.kind is not Kind.DCCNN or teacher.cascades != student.cascades:
        raise RecipeError(
            "Joint training mixes the cascades of networks with data consistency (DC-CNN), equally"
            " many of both.",
            remedy,
        )
    if recipe.joint_steps > recipe.teacher_steps:
        raise RecipeError(
            f"{recipe.joint_steps} joint steps are more than the teacher's"
            f" {recipe.teacher_steps} in all.",
            f"Use --set joint_steps={recipe.teacher_steps}, or fewer.",
        )
