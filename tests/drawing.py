"""A step's batch as training gets it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdmri_edge.distillation.batches import TrainingSlices, drawn, tensors
from kdmri_edge.distillation.recipe import DistillRecipe


def draw(slices: TrainingSlices, recipe: DistillRecipe, **step: Any) -> tuple[Tensor, ...]:
    """Return a process's share of a step's batch, see `drawn`."""
    return tensors(drawn(slices, recipe, **step))
