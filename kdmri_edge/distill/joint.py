"""A teacher that learns together with its student.

Student-friendly training (Gayathri et al., "SFT-KD-Recon", MIDL 2023): besides the teacher's own
chain of cascades there are chains that begin with some of the teacher's cascades and end with the
student's. Each of them is taught by the image and by the teacher, and all of them teach the
teacher, so that what its cascades hand on is what a student's cascade can go on from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdmri_edge.distill.losses import distance
from kdmri_edge.distill.recipe import DistillRecipe
from kdmri_edge.distill.stages import Batch, Criterion
from kdmri_edge.models.dccnn import DCCNN
from kdmri_edge.models.features import Features

__all__ = ["Joint", "joint_criterion"]


class Joint(nn.Module):
    """Teacher and student in one network, whose output is the teacher's.

    Args:
        teacher: Of as many cascades as the student.
        student: Its student.
    """

    def __init__(self, teacher: DCCNN, student: DCCNN) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student

    def features(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Features:
        """Return the teacher's output, and as stages the outputs of the mixed chains.

        The first of these is the student's own, the last one has its last cascade alone.
        """
        taught = self.teacher.features(x_u, operator, maps)
        starts = [x_u, *taught.stages[:-1]]
        ends = [
            self.student.features_from(number, x, x_u, operator, maps).output
            for number, x in enumerate(starts)
        ]
        return Features(taught.output, ends, taught.attention)

    def forward(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Tensor:
        """Reconstruct with the teacher."""
        return self.teacher.features(x_u, operator, maps).output


def joint_criterion(recipe: DistillRecipe) -> Criterion:
    """Return the loss of joint training: the teacher's, and the mean of the mixed chains'."""

    def loss(features: Features, batch: Batch) -> Tensor:
        own = distance(recipe.loss, features.output, batch.target)
        chains = [
            recipe.alpha * distance(recipe.loss, end, batch.target)
            + (1 - recipe.alpha) * distance(recipe.loss, end, features.output)
            for end in features.stages
        ]
        return own + torch.stack(chains).mean()

    return loss
