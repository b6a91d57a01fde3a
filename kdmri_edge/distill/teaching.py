"""What a student is taught: the losses of its stages, with the teacher that they need."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from lightning_fabric import Fabric
from torch import Tensor

from kdmri_edge.distill.losses import (
    attention_transfer,
    distance,
    imitation,
    relation_transfer,
)
from kdmri_edge.distill.recipe import DistillRecipe, Transfer
from kdmri_edge.distill.stage import channels_last
from kdmri_edge.distill.stages import Batch
from kdmri_edge.models.build import Network
from kdmri_edge.models.features import Features
from kdmri_edge.models.stack import padded

__all__ = ["Teaching"]


class Teaching:
    """A frozen teacher and the losses that are measured against it.

    Args:
        fabric: Devices and precision.
        recipe: Gives the losses.
        teacher: The trained network; it is frozen, in place.
    """

    def __init__(self, fabric: Fabric, recipe: DistillRecipe, teacher: Network) -> None:
        teacher.eval().requires_grad_(False)
        # Not through Fabric's wrapper: it is frozen. It needs the same autocast, layout and device.
        self._teacher = channels_last(teacher)
        fabric.to_device(self._teacher)
        self._fabric, self._recipe = fabric, recipe

    def _features(self, batch: Batch) -> Features:
        on_gpu = self._fabric.device.type == "cuda"
        padding = padded(self._teacher) if on_gpu else nullcontext()
        with torch.no_grad(), self._fabric.autocast(), padding:
            return self._teacher.features(batch.x_u, batch.operator, batch.maps)

    def attention(self, student: Features, batch: Batch) -> Tensor:
        """Return the loss of attention transfer, or of what the recipe transfers in its place."""
        chosen = {Transfer.ATTENTION: attention_transfer, Transfer.RELATION: relation_transfer}
        transfer = chosen[self._recipe.transfer](student.attention, self._features(batch).attention)
        # The second term is zero. It gives the convolutions behind the last tap a gradient, for
        # which distributed training would wait in vain.
        return transfer + 0 * student.output.float().sum()

    def taught(self, student: Features, batch: Batch) -> Tensor:
        """Return the loss of reconstruction and, in the first part of the stage, of imitation."""
        recipe = self._recipe
        reconstruction = distance(recipe.loss, student.output, batch.target)
        if batch.progress >= recipe.imitation_until:
            return reconstruction
        gap = imitation(recipe.imitation, recipe.loss, student, self._features(batch))
        return recipe.alpha * reconstruction + (1 - recipe.alpha) * gap
