"""Learning rate as a function of the step alone, so that resuming needs no scheduler state."""

from __future__ import annotations

import math

from kdmri_edge.distill.recipe import DistillRecipe, Schedule

__all__ = ["rate"]

# 40, 80 and 120 of 150 epochs, as KD-MRI's published code trains its teacher.
_MILESTONES = (40 / 150, 80 / 150, 120 / 150)


def rate(recipe: DistillRecipe, step: int, steps: int) -> float:
    """Return the learning rate of a step.

    Args:
        recipe: Gives peak, warm-up, course and final fraction.
        step: Step within the stage, from 0.
        steps: Steps of the stage.
    """
    warmup = min(recipe.warmup, steps // 4)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    if recipe.schedule is Schedule.CONSTANT:
        return recipe.learning_rate
    if recipe.schedule is Schedule.STEP:
        return recipe.learning_rate * 0.1 ** sum(step >= steps * part for part in _MILESTONES)
    done = (step - warmup) / max(1, steps - warmup)
    course = 0.5 * (1 + math.cos(math.pi * done))
    return recipe.learning_rate * (recipe.final_rate + (1 - recipe.final_rate) * course)
