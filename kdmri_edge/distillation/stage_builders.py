"""The stages of a distillation, from its settings."""

from __future__ import annotations

from kdmri_edge.distillation.losses import DistillationLoss, joint_criterion, reconstruction
from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.stages import Criterion, Stage

__all__ = ["joint_stage", "plain_stage", "student_stages", "teacher_stage"]


def _reconstruction(settings: Settings) -> Criterion:
    return lambda features, batch: reconstruction(settings.recipe, features.output, batch)


def joint_stage(settings: Settings) -> Stage:
    """Return the stage in which teacher and student learn together."""
    return Stage(
        name="joint",
        title=f"teacher {settings.teacher}, jointly with its student",
        steps=settings.recipe.joint_steps,
        criterion=joint_criterion(settings.recipe),
    )


def teacher_stage(settings: Settings) -> Stage:
    """Return the stage of the teacher alone: its steps but for those of the joint stage."""
    recipe = settings.recipe
    return Stage(
        name="teacher",
        first=recipe.joint_steps,
        title=f"teacher {settings.teacher}",
        steps=recipe.teacher_steps - recipe.joint_steps,
        criterion=_reconstruction(settings),
        ema=recipe.optim.ema,
    )


def plain_stage(settings: Settings) -> Stage:
    """Return the stage of the plain student, as many steps as the distilled one has in all."""
    return Stage(
        name="plain",
        title=f"plain student {settings.student}",
        steps=settings.recipe.student_steps,
        criterion=_reconstruction(settings),
        ema=settings.recipe.optim.ema,
    )


def student_stages(settings: Settings, loss: DistillationLoss) -> list[Stage]:
    """Return the distilled student's own stages, in order: transfer, then imitation."""
    recipe, title = settings.recipe, f"student {settings.student}"
    attention = Stage(
        name="attention",
        first=recipe.joint_steps,
        title=f"{title}: {recipe.distillation.transfer}",
        steps=recipe.attention_steps,
        criterion=loss.attention,
        taught=True,
    )
    imitation = Stage(
        name="imitation",
        first=recipe.joint_steps + recipe.attention_steps,
        title=f"{title}: imitation",
        steps=recipe.imitation_steps,
        criterion=loss.imitation,
        switch=recipe.distillation.imitation_until,
        other_masks=recipe.batches.other_masks,
        noise=recipe.batches.noise,
        taught=True,
        ema=recipe.optim.ema,
    )
    return [stage for stage in (attention, imitation) if stage.steps]
