"""Losses of distillation. All of them are means per image, so that batch size does not weigh."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kdmri_edge.distill.recipe import Imitation, Loss
from kdmri_edge.models.features import Features

__all__ = [
    "attention_map",
    "attention_transfer",
    "distance",
    "imitation",
    "relation_transfer",
    "similarity",
]


# How much 1 - SSIM counts beside the mean absolute difference, which is about a hundredth as large.
_SSIM_WEIGHT = 0.02


def distance(loss: Loss, image: Tensor, target: Tensor) -> Tensor:
    """Return how far two images [B, C, H, W] are apart, computed in float32."""
    image, target = image.float(), target.float()
    if loss is Loss.MSE:
        return F.mse_loss(image, target)
    absolute = F.l1_loss(image, target)
    if loss is Loss.L1:
        return absolute
    return absolute + _SSIM_WEIGHT * (1 - similarity(image, target))


def similarity(image: Tensor, target: Tensor) -> Tensor:
    """Return the mean SSIM of images [B, C, H, W] of about unit maximum.

    Windows of 7 x 7 pixels of equal weight, inside the image, as the metric has them (Wang et al.,
    TIP 2004), with a data range of 1 and each channel on its own.
    """
    side = 7
    sample = side**2 / (side**2 - 1)  # unbiased, as the metric's

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, side, stride=1)

    a, b = mean(image), mean(target)
    within_a = sample * (mean(image * image) - a * a)
    within_b = sample * (mean(target * target) - b * b)
    both = sample * (mean(image * target) - a * b)
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * a * b + c1) * (2 * both + c2)
    return (ssim / ((a * a + b * b + c1) * (within_a + within_b + c2))).mean()


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


def relation_transfer(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the mean over cascades and images of the distance between relations of feature maps.

    The relation is the matrix of all products of two feature maps, summed over pixels, at unit
    norm per image (flow of solution procedure, Yim et al., CVPR 2017, within one layer).

    Args:
        student: Activations of the tap in each cascade, [B, C, H, W].
        teacher: As many of the teacher's, with as many channels.
    """
    gaps = [
        torch.linalg.vector_norm(_relation(s) - _relation(t.detach()), dim=1).mean()
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(gaps).mean()


def _relation(activations: Tensor) -> Tensor:
    maps = activations.float().flatten(2)
    return F.normalize(torch.matmul(maps, maps.transpose(1, 2)).flatten(1), dim=1)


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
