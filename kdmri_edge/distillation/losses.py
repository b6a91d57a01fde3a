"""Losses of distillation, with the frozen or learning teacher that they are measured against.

Student-friendly training (Gayathri et al., "SFT-KD-Recon", MIDL 2023): besides the teacher's own
chain of cascades there are chains that begin with some of the teacher's cascades and end with the
student's. Each of them imitates the image and the teacher, and all of them train the
teacher too, so that what its cascades hand on is what a student's cascade can go on from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from kdmri_edge.distillation.recipe import LOSSES, DistillRecipe, Imitation, Transfer
from kdmri_edge.distillation.stages import Batch, Criterion, Inputs
from kdmri_edge.distillation.taps import Listener, Tap
from kdmri_edge.models.blocks import channels_last, padded
from kdmri_edge.models.network import Features, Network
from kdmri_edge.utils.extras import load_attribute

__all__ = [
    "DistillationLoss",
    "Joint",
    "attention_map",
    "attention_transfer",
    "contrast_error",
    "distance",
    "feature_transfer",
    "imitation",
    "in_units_of",
    "joint_criterion",
    "on_common_ground",
    "paired",
    "reconstruction",
    "relation_transfer",
    "root_mean_square",
    "similarity",
]

_T = TypeVar("_T")

# How much 1 - SSIM counts beside the mean absolute difference, which is about a hundredth as large.
_SSIM_WEIGHT = 0.02


# Of images of unit maximum: far below what rounding costs, so that the root has a gradient at zero.
_LEAST_SQUARE = 1e-12


def distance(loss: str, image: Tensor, target: Tensor) -> Tensor:
    """Return how far two images [B, C, H, W] are apart, computed in float32.

    Args:
        loss: A name of `LOSSES`.
        image: What is trained.
        target: What it is measured against.
    """
    measure: Callable[[Tensor, Tensor], Tensor] = load_attribute(LOSSES[loss].distance)
    return measure(image.float(), target.float())


def absolute_difference(image: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of two images [B, C, H, W]."""
    return F.l1_loss(image, target)


def squared_difference(image: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared difference of two images [B, C, H, W]."""
    return F.mse_loss(image, target)


def root_mean_square(image: Tensor, target: Tensor) -> Tensor:
    """Return how far images [B, C, H, W] are apart: root of the mean square of each, then mean."""
    squares = (image.float() - target.float()).square().mean((1, 2, 3))
    return (squares + _LEAST_SQUARE).sqrt().mean()


def absolute_difference_and_ssim(image: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference and, weighted, what the SSIM of two images lacks of 1."""
    return F.l1_loss(image, target) + _SSIM_WEIGHT * (1 - similarity(image, target))


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


def contrast_error(image: Tensor, target: Tensor, contrasts: Tensor) -> Tensor:
    """Return the mean error in contrast of the structures of some images, 0 of none.

    Args:
        image: What is trained, [B, C, H, W].
        target: What it is measured against.
        contrasts: `insertion.Inserted.contrasts`, [B, K, H, W].
    """
    error = image.float() - target.float()
    found = torch.einsum("bkhw,bchw->bkc", contrasts, error)
    size = torch.linalg.vector_norm(found, dim=2)
    # Where nothing is inserted the size is 0, of which the norm's gradient is 0 as well.
    there = contrasts.abs().amax((2, 3)) > 0
    mean: Tensor = size.sum() / there.sum().clamp(min=1)
    return mean


def reconstruction(recipe: DistillRecipe, image: Tensor, batch: Batch) -> Tensor:
    """Return the loss of an image [B, C, H, W] against the fully sampled one.

    That is the recipe's distance and, where structures are inserted, their error in contrast.
    """
    loss = distance(recipe.optim.loss, image, batch.target)
    if batch.contrasts is None or not recipe.insertion.contrast_weight:
        return loss
    error = contrast_error(image, batch.target, batch.contrasts)
    return loss + recipe.insertion.contrast_weight * error


def attention_map(activations: Tensor) -> Tensor:
    """Return the spatial attention map of activations, unit norm per image.

    Args:
        activations: [B, C, H, W].

    Returns:
        [B, H * W] float32: sum over channels of squares, divided by its own Euclidean norm
        (Zagoruyko & Komodakis, ICLR 2017, eq. 1-2).
    """
    return F.normalize(_energy(activations).flatten(1), dim=1)


def _energy(activations: Tensor) -> Tensor:
    return activations.float().square().sum(1, keepdim=True)


def _same_grid(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps [B, C, h, w] on one grid: along each axis the larger one is averaged by area."""
    size = min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])

    def on_grid(maps: Tensor) -> Tensor:
        return maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size)

    return on_grid(one), on_grid(other)


def attention_transfer(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the mean over cascades and images of the distance between attention maps.

    KD-MRI eq. 3, with maps normalised per image (the published code normalises over the batch).
    Of maps of two sizes the larger is averaged by area before it is normalised.

    Args:
        student: Activations of the tap in each cascade, [B, C_s, H, W].
        teacher: As many of the teacher's, [B, C_t, H', W'].
    """
    return _gap(
        [_energy(s) for s in student],
        [_energy(t.detach()) for t in teacher],
    )


def _gap(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the mean distance of maps [B, C, h, w] at unit norm per image, on one grid."""
    gaps = []
    for own, other in zip(student, teacher, strict=True):
        s, t = (F.normalize(maps.flatten(1), dim=1) for maps in _same_grid(own, other))
        gaps.append(torch.linalg.vector_norm(s - t, dim=1).mean())
    return torch.stack(gaps).mean()


def feature_transfer(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the mean over taps and images of the distance between feature maps.

    Hints of FitNets (Romero et al., ICLR 2015), but at unit norm per image, so that neither scale
    nor size matters. Of maps of two sizes the larger is averaged by area first.

    Args:
        student: Feature maps of each tap, [B, C, H, W], projected to the teacher's width.
        teacher: As many of the teacher's, with as many channels.
    """
    return _gap([s.float() for s in student], [t.detach().float() for t in teacher])


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


def paired(student: Sequence[_T], teacher: Sequence[_T]) -> tuple[list[_T], list[_T]]:
    """Pair what two networks show cascade by cascade: evenly, and the last with the last.

    Args:
        student: Of each of the student's cascades, at least one.
        teacher: Of each of the teacher's, perhaps of another number.

    Returns:
        As many of both as the fewer are.
    """
    fewer = min(len(student), len(teacher))

    def chosen(every: Sequence[_T]) -> list[_T]:
        # The one whose part of the cascades is nearest, k / fewer, for k = 1 to fewer.
        return [every[(2 * k * len(every) + fewer) // (2 * fewer) - 1] for k in range(1, fewer + 1)]

    return chosen(student), chosen(teacher)


def _magnitude(image: Tensor) -> Tensor:
    """Return the magnitude [B, 1, H, W] of complex images [B, 2, H, W]; others as they are."""
    if image.shape[1] == 1:
        return image
    magnitude: Tensor = torch.linalg.vector_norm(image.float(), dim=1, keepdim=True)
    return magnitude


def on_common_ground(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return images as both networks can give them: magnitudes where one has one channel."""
    if one.shape[1] == other.shape[1]:
        return one, other
    return _magnitude(one), _magnitude(other)


def in_units_of(target: Tensor, features: Features, theirs: Tensor) -> Features:
    """Return the images that a teacher shows in the student's units.

    Each network's input is divided by the largest value of its own zero-filled image. Both targets
    show the same image, which gives the factor; in the least-squares sense, so that noise of a
    simulation does not move it.

    Args:
        target: The student's targets [B, C, H, W].
        features: What the teacher shows of the same slices.
        theirs: The teacher's targets.
    """
    own, other = _magnitude(target.float()), _magnitude(theirs.float())
    energy = other.square().sum((1, 2, 3), keepdim=True)
    factor = (own * other).sum((1, 2, 3), keepdim=True) / energy
    factor = torch.where(energy > 0, factor, torch.ones_like(factor))  # of a strip beside the head
    images = [image * factor for image in features.cascade_outputs]
    return features._replace(output=features.output * factor, cascade_outputs=images)


def imitation(kind: Imitation, loss: str, student: Features, teacher: Features) -> Tensor:
    """Return the distance of the student's images to the teacher's (KD-MRI eq. 5).

    The published code divides it by the number of pixels once more, which makes it inert; here it
    has the scale of the reconstruction loss. See `paired` and `on_common_ground` for networks that
    differ in cascades or channels.
    """
    if kind is Imitation.FINAL:
        return distance(loss, *on_common_ground(student.output, teacher.output.detach()))
    gaps = [
        distance(loss, *on_common_ground(s, t.detach()))
        for s, t in zip(*paired(student.cascade_outputs, teacher.cascade_outputs), strict=True)
    ]
    return torch.stack(gaps).mean()


class Joint(nn.Module):
    """Teacher and student in one network, whose output is the teacher's.

    Args:
        teacher: Of as many cascades as the student; both have `features_from`.
        student: Its student.
    """

    def __init__(self, teacher: Network, student: Network) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student

    def features(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Features:
        """Return the teacher's output, and as stages the outputs of the mixed chains.

        The first of these is the student's own, the last one has its last cascade alone.
        """
        shown = self.teacher.features(x_u, operator, maps)
        starts = [x_u, *shown.cascade_outputs[:-1]]
        ends = [
            self.student.features_from(number, x, x_u, operator, maps).output
            for number, x in enumerate(starts)
        ]
        return Features(shown.output, ends, shown.attention)

    def forward(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Tensor:
        """Reconstruct with the teacher."""
        return self.teacher.features(x_u, operator, maps).output


def joint_criterion(recipe: DistillRecipe) -> Criterion:
    """Return the loss of joint training: the teacher's, and the mean of the mixed chains'."""

    def loss(features: Features, batch: Batch) -> Tensor:
        own = reconstruction(recipe, features.output, batch)
        chains = [
            recipe.distillation.alpha * reconstruction(recipe, end, batch)
            + (1 - recipe.distillation.alpha) * distance(recipe.optim.loss, end, features.output)
            for end in features.cascade_outputs
        ]
        return own + torch.stack(chains).mean()

    return loss


_TRANSFERS = {
    Transfer.ATTENTION: attention_transfer,
    Transfer.RELATION: relation_transfer,
    Transfer.FEATURES: feature_transfer,
}


class DistillationLoss:
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
        taps = [Tap.parse(name) for name in recipe.distillation.taps.values()]
        self._listener = Listener(teacher, taps, "teacher") if taps else None

    def _features(self, batch: Batch) -> Features:
        given: Inputs = batch if batch.teacher is None else batch.teacher
        # Padded convolutions are not called as modules, so that nobody would hear them.
        pads = self._fabric.device.type == "cuda" and self._listener is None
        padding = padded(self._teacher) if pads else nullcontext()
        listening = nullcontext() if self._listener is None else self._listener.listening()
        with torch.no_grad(), self._fabric.autocast(), padding, listening:
            shown = self._teacher.features(given.x_u, given.operator, given.maps)
        if self._listener is not None:
            shown = shown._replace(taps=self._listener.maps(given.x_u))
        if batch.teacher is not None:
            shown = in_units_of(batch.target, shown, given.target)
        return shown

    def _transfer(self, student: Features, teacher: Features) -> Tensor:
        """Return the distance of the tapped activations, the recipe's own or the networks'."""
        measure = _TRANSFERS[self._recipe.distillation.transfer]
        if self._listener is not None:
            return measure(student.taps, teacher.taps)
        return measure(*paired(student.attention, teacher.attention))

    def attention(self, student: Features, batch: Batch) -> Tensor:
        """Return the loss of attention transfer, or of what the recipe transfers in its place."""
        transfer = self._transfer(student, self._features(batch))
        # The second term is zero. It gives the convolutions behind the last tap a gradient, for
        # which distributed training would wait in vain.
        return transfer + 0 * student.output.float().sum()

    def imitation(self, student: Features, batch: Batch) -> Tensor:
        """Return the loss of reconstruction and, in the first part of the stage, of imitation."""
        recipe = self._recipe
        own = reconstruction(recipe, student.output, batch)
        if batch.progress >= recipe.distillation.imitation_until:
            for tap in student.taps:  # see above: of projections, which have done their work
                own = own + 0 * tap.float().sum()
            return own
        teacher = self._features(batch)
        gap = imitation(recipe.distillation.imitation, recipe.optim.loss, student, teacher)
        loss = recipe.distillation.alpha * own + (1 - recipe.distillation.alpha) * gap
        if self._listener is not None:
            loss = loss + recipe.distillation.taps_weight * self._transfer(student, teacher)
        return loss
