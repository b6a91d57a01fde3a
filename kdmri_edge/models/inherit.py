"""A student that starts with its teacher's first and last convolutions."""

from __future__ import annotations

from torch import nn

from kdmri_edge.errors import ModelError
from kdmri_edge.models.build import Network
from kdmri_edge.models.spec import ModelSpec
from kdmri_edge.models.stack import ConvStack

__all__ = ["check_inherit", "inherit_ends", "same_outside", "stacks"]


def stacks(network: nn.Module) -> list[ConvStack]:
    """Return a network's stacks of convolutions, one for each cascade."""
    return [m for m in network.modules() if isinstance(m, ConvStack)]


def same_outside(student: ModelSpec, teacher: ModelSpec) -> bool:
    """Return whether the outer convolutions of two networks have the same sizes."""
    names = ("kind", "cascades", "width", "kernel", "channels")
    return all(getattr(student, name) == getattr(teacher, name) for name in names)


def check_inherit(student: ModelSpec, teacher: ModelSpec) -> None:
    """Refuse a pair of which one cannot take over the other's convolutions.

    Raises:
        ModelError: The networks differ in cascades, channels, width or kernel.
    """
    if not same_outside(student, teacher):
        raise ModelError(
            "The student's first and last convolutions have other sizes than the teacher's.",
            "Pair networks of equal width, or use --set inherit=false.",
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
