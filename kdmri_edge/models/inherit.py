"""A student that starts with its teacher's first and last convolutions."""

from __future__ import annotations

from typing import cast

from torch import nn

from kdmri_edge.errors import ModelError
from kdmri_edge.models.stack import ConvStack

__all__ = ["inherit_ends"]


def inherit_ends(student: nn.Module, teacher: nn.Module) -> None:
    """Copy the first and the last convolution of each of the teacher's cascades, in place.

    The student then reads images, and writes corrections, in the teacher's own features; only what
    lies between has to be learned anew.

    Args:
        student: A network whose stacks are shallower than the teacher's, of the same width.
        teacher: The trained network.

    Raises:
        ModelError: The networks differ in cascades, channels, width or kernel.
    """
    ours = [m for m in student.modules() if isinstance(m, ConvStack)]
    theirs = [m for m in teacher.modules() if isinstance(m, ConvStack)]
    pairs = [
        (cast(nn.Conv2d, own.convs[end]), cast(nn.Conv2d, other.convs[end]))
        for own, other in zip(ours, theirs, strict=False)
        for end in (0, -1)
    ]
    fits = all(own.weight.shape == other.weight.shape for own, other in pairs)
    if len(ours) != len(theirs) or not fits:
        raise ModelError(
            "The student's first and last convolutions have other sizes than the teacher's.",
            "Pair networks of equal width, or use --set inherit=false.",
        )
    for own, other in pairs:
        own.load_state_dict(other.state_dict())
