"""Losses of distillation. All of them are means per image, so that batch size does not weigh."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kdmri_edge.distill.recipe import Imitation, Loss
from kdmri_edge.models.features import Features

__all__ = ["attention_map", "attention_transfer", "distance", "imitation"]


def distance(loss: Loss, image: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute or squared difference of two images, computed in float32."""
    image, target = image.float(), target.float()
    return F.l1_loss(image, target) if loss is Loss.L1 else F.mse_loss(image, target)


def attention_map(activations: Tensor) -> Tensor:
    """Return the spatial attention map of activations, unit norm per image.

    Args:
        activations: [B, C, H, W].

    Returns:
        [B, H * W] float32: sum over channels of squares, divided by its own Euclidean norm
        (Zagoruyko & Komodakis, ICLR 2017, eq. 1-2).
    """
    energy = activations.float().square().sum(1).flatten(1)
    return F.normalize(energy, dim=1)


def attention_transfer(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the mean over cascades and images of the distance between attention maps.

    KD-MRI eq. 3, with maps normalised per image (the published code normalises over the batch).

    Args:
        student: Activations of the tap in each cascade, [B, C_s, H, W].
        teacher: As many of the teacher's, [B, C_t, H, W].
    """
    gaps = [
        torch.linalg.vector_norm(attention_map(s) - attention_map(t.detach()), dim=1).mean()
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(gaps).mean()


def imitation(kind: Imitation, loss: Loss, student: Features, teacher: Features) -> Tensor:
    """Return the distance of the student's images to the teacher's (KD-MRI eq. 5).

    The published code divides it by the number of pixels once more, which makes it inert; here it
    has the scale of the reconstruction loss.
    """
    if kind is Imitation.FINAL:
        return distance(loss, student.output, teacher.output.detach())
    gaps = [
        distance(loss, s, t.detach()) for s, t in zip(student.stages, teacher.stages, strict=True)
    ]
    return torch.stack(gaps).mean()
