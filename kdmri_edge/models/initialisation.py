"""A student's first weights from its teacher: its outer convolutions, one fitted between.

The student takes over the teacher's outer convolutions of each cascade. The one between them is
fitted by least squares, so that from what the first ones make it makes, as nearly as one
convolution can, what the last ones are used to read. Nothing is trained: the fit is in closed form,
after the layer-wise reconstruction of channel pruning (He et al., "Channel pruning for accelerating
very deep neural networks", ICCV 2017), but across several layers with their nonlinearities.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdmri_edge.errors import ModelError
from kdmri_edge.models.blocks import ConvStack
from kdmri_edge.models.dccnn import DCCNN
from kdmri_edge.models.network import Network
from kdmri_edge.models.protocol import NetworkSpec
from kdmri_edge.models.specs import ModelSpec

__all__ = ["bridge", "check_bridge", "check_inherit", "inherit_ends", "same_outside", "stacks"]


def stacks(network: nn.Module) -> list[ConvStack]:
    """Return a network's stacks of convolutions, one for each cascade."""
    return [m for m in network.modules() if isinstance(m, ConvStack)]


def same_outside(student: NetworkSpec, teacher: NetworkSpec) -> bool:
    """Return whether two networks are made of stacks whose outer convolutions have equal sizes."""
    names = (
        "kind", "cascades", "width", "kernel", "channels", "carried", "shows_zero_filled",
        "shuffle",
    )  # fmt: skip
    return (
        isinstance(student, ModelSpec)
        and isinstance(teacher, ModelSpec)
        and all(getattr(student, name) == getattr(teacher, name) for name in names)
    )


def check_inherit(student: NetworkSpec, teacher: NetworkSpec) -> None:
    """Refuse a pair of which one cannot take over the other's convolutions.

    Raises:
        ModelError: The networks differ in cascades, channels, width or kernel.
    """
    if not same_outside(student, teacher):
        raise ModelError(
            "The student's first and last convolutions have other sizes than the teacher's.",
            "Pair networks of equal width, or use --set distillation.inherit=false.",
        )


def inherit_ends(student: Network, teacher: Network) -> None:
    """Copy the first and the last convolution of each of the teacher's cascades, in place.

    The student then reads images, and writes corrections, in the teacher's own features; only what
    lies between has to be learned anew.

    Args:
        student: A network of the teacher's width.
        teacher: The trained network.

    Raises:
        ModelError: See `check_inherit`.
    """
    check_inherit(student.spec, teacher.spec)
    for own, other in zip(stacks(student), stacks(teacher), strict=True):
        for end in (0, -1):
            own.convs[end].load_state_dict(other.convs[end].state_dict())


# Ridge, as a fraction of the mean square of what the convolution reads.
_RIDGE = 1e-6
# Times that goals below the next ReLU are taken anew.
_ROUNDS = 10
# Pixels of each image that the fit looks at.
_PIXELS = 4096


def bridge(
    student: Network,
    teacher: Network,
    x_u: Tensor,
    operator: Tensor,
    maps: Tensor | None = None,
    *,
    seed: int = 0,
) -> None:
    """Give a student its first weights, in place: copies, and one fitted convolution a cascade.

    Each cascade is fitted on what the student's own earlier ones hand it, so that it makes up for
    some of what these fall short of.

    Args:
        student: A network whose stacks are shallower than the teacher's, of the same width, on the
            teacher's device.
        teacher: The trained network.
        x_u: Normalised zero-filled images to fit on, [B, C, H, W] float32.
        operator: Constant of data consistency of their mask, for the networks' form.
        maps: Coil sensitivities [B, coils, 2, H, W], of networks that combine coils.
        seed: Of the pixels that are looked at.

    Raises:
        ModelError: See `check_bridge`.
    """
    check_bridge(student.spec, teacher.spec)
    random = np.random.default_rng(seed)
    x = x_u
    with torch.no_grad():
        for number, (ours, theirs) in enumerate(zip(stacks(student), stacks(teacher), strict=True)):
            _fit(ours, theirs, x, random)
            if number + 1 < student.spec.cascades:
                x = cast(DCCNN, student).cascade(number, x, x_u, operator, maps).image


def check_bridge(student: NetworkSpec, teacher: NetworkSpec) -> None:
    """Refuse networks that cannot be bridged.

    Raises:
        ModelError: They differ in cascades or in the sizes of their outer convolutions, the student
            is not the shallower one, or it dilates another convolution than the middle one.
    """
    if (
        not isinstance(student, ModelSpec)
        or not isinstance(teacher, ModelSpec)
        or not same_outside(student, teacher)
        or student.carried
        or student.shows_zero_filled
        or not 3 <= student.convs < teacher.convs
    ):
        raise ModelError(
            "A student that is bridged needs as many cascades as its teacher, of the same width,"
            " fewer convolutions in each, and none that read more than the image.",
            "Pair such networks, or use --set distillation.bridge=false.",
        )
    middle = student.convs // 2
    last = student.convs - middle - 1
    for number in range(student.cascades):
        own, other = student.dilation_of(number), teacher.dilation_of(number)
        if own[:middle] != other[:middle] or own[-last:] != other[-last:]:
            raise ModelError(
                f"Only the middle convolution of a student that is bridged may be dilated, not"
                f" {list(own)}.",
                "Change --set distillation.dilation, or use --set distillation.bridge=false.",
            )


def _convs(stack: ConvStack) -> list[nn.Conv2d]:
    return [cast(nn.Conv2d, conv) for conv in stack.convs]


def _copied(ours: ConvStack, theirs: ConvStack) -> list[tuple[nn.Conv2d, nn.Conv2d]]:
    """Return pairs of outer convolutions, all of the student's but the middle one."""
    own, other = _convs(ours), _convs(theirs)
    middle = len(own) // 2
    last = len(own) - middle - 1
    return list(zip([*own[:middle], *own[-last:]], [*other[:middle], *other[-last:]], strict=False))


def _fit(ours: ConvStack, theirs: ConvStack, x: Tensor, random: np.random.Generator) -> None:
    """Copy the outer convolutions of a stack and fit the middle one on images [B, C, H, W]."""
    for mine, given in _copied(ours, theirs):
        mine.load_state_dict(given.state_dict())
    own, other = _convs(ours), _convs(theirs)
    middle = len(own) // 2
    conv, replaced = own[middle], other[middle : len(other) - (len(own) - middle - 1)]
    read, wanted = [], []
    for number in range(len(x)):  # one by one: the columns of a slice are hundreds of its size
        image = x[number : number + 1]
        for before in other[:middle]:
            image = F.relu(before(image))
        columns = F.unfold(
            image,
            conv.kernel_size,
            padding=cast(tuple[int, int], conv.padding),
            dilation=conv.dilation,
        )[0]
        for inner in replaced[:-1]:
            image = F.relu(inner(image))
        image = replaced[-1](image)
        count = columns.shape[1]
        chosen = torch.from_numpy(random.permutation(count)[:_PIXELS]).to(columns.device)
        read.append(columns[:, chosen])
        wanted.append(image.flatten(2)[0][:, chosen])
    weight, bias = _least_squares(torch.cat(read, 1), torch.cat(wanted, 1))
    conv.weight.copy_(weight.view(conv.weight.shape))
    cast(Tensor, conv.bias).copy_(bias)


def _least_squares(read: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights [O, R] and bias [O] that make `wanted` [O, N] of `read` [R, N], up to a ReLU.

    Where the wanted value is negative the ReLU behind it makes zero of it, and any negative value
    will do. There the goal is what the solution so far makes, at most zero.
    """
    rows = torch.cat([read, torch.ones_like(read[:1])])
    wide = rows.double()  # or rounding would exceed the ridge
    gram = wide @ wide.T
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    factor = torch.linalg.cholesky(gram)
    goal = wanted
    for _ in range(_ROUNDS):
        solution = torch.cholesky_solve((rows @ goal.T).double(), factor).T.float()
        goal = torch.where(wanted > 0, wanted, (solution @ rows).clamp(max=0))
    return solution[:, :-1], solution[:, -1]
