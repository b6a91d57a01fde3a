"""The module of a network: what training, export and runtimes call, with defaults for any module.

A family's `build` may return any `torch.nn.Module` with one of these methods, which takes as many
arguments as its specification asks for (the operator with data consistency, the maps with coils):

    forward(self, x_u)                     images [B, C, H, W] to images of the same shape
    forward(self, x_u, operator)
    forward(self, x_u, operator, maps)

Networks of k-space get that as `x_u`, [B, coils, 2, H, W], and as the operator their mask, [H, 1]
or [H, W] with 1 where it samples; they give magnitude images [B, 1, H, W].

`as_network` gives it the rest, by which it can be distilled by imitation of the teacher's image,
exported and measured. A module that derives from `Network` may have more: features of its cascades,
and a description of its layers that needs no forward pass.
"""

from __future__ import annotations

import inspect
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from kdmri_edge.errors import ModelError
from kdmri_edge.models.layers import Layer, Structure, traced_structure
from kdmri_edge.models.protocol import InputKind, NetworkSpec, holds_mask
from kdmri_edge.physics.consistency import operator_tensor, sense_operator_tensor
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import Form

__all__ = ["Features", "Network", "as_network", "blank_inputs", "network_operator"]

# Arguments that a network is called with: x_u, operator, maps.
_GIVEN = 3
# Side of the images by which a network's layers are found out; divisible for poolings.
_SIDE = 64
_COILS = 2


class Features(NamedTuple):
    """Output and inner results of one forward pass.

    Attributes:
        output: Reconstruction [B, C, H, W].
        cascade_outputs: Image after each cascade, [B, C, H, W]; the last one is the output.
        attention: Activations of the attention tap in each cascade, [B, width, H, W].
        taps: Outputs of the modules that a recipe names, [B, width, h, w] each; added by who asks
            for them (`distillation.taps`), never by the network.
    """

    output: Tensor
    cascade_outputs: list[Tensor]
    attention: list[Tensor]
    taps: tuple[Tensor, ...] = ()


class Network(nn.Module):
    """A reconstruction network.

    Attributes:
        spec: Its architecture.
        form: Which form of data consistency is computed; the operator given to `forward` is made
            for it (`network_operator`).
        transposed: Whether its modules work on images whose axes H and W are swapped.
    """

    spec: NetworkSpec
    form: Form
    transposed: ClassVar[bool] = False

    def features(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Features:
        """Reconstruct and keep what distillation reads: the image alone, unless overridden.

        Args:
            x_u: Normalised zero-filled images [B, C, H, W], or k-space [B, coils, 2, H, W].
            operator: The constant of data consistency for `self.form`.
            maps: Coil sensitivities [B, coils, 2, H, W], of networks with `spec.coils` alone.
        """
        image: Tensor = self(x_u, operator, maps)
        return Features(image, [image], [])

    def features_from(
        self, first: int, x: Tensor, x_u: Tensor, operator: Tensor, maps: Tensor | None = None
    ) -> Features:
        """Go on from the image that the cascades before number `first` would have made.

        Only networks whose specification says `has_features_from` can.

        Args:
            first: Cascades to leave out; with all of them the image itself is the output.
            x: Image [B, C, H, W].
            x_u: Normalised zero-filled images, as for `features`.
            operator: As for `features`.
            maps: As for `features`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no cascades to go on from")

    def layers(self) -> list[Layer]:
        """Describe its layers that hold weights."""
        return self.structure().layers

    def structure(self) -> Structure:
        """Describe what holds weights in it, by a small forward pass unless overridden."""
        return self.structure_at(_SIDE, _SIDE)

    def structure_at(self, height: int, width: int) -> Structure:
        """Describe what holds weights in it by a forward pass on images of height x width."""
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        given = blank_inputs(self.spec, self.form, height, width)
        return traced_structure(self, *(None if one is None else one.to(device) for one in given))


def blank_inputs(
    spec: NetworkSpec, form: Form, height: int, width: int, *, coils: int = _COILS
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return inputs of a network without signal: x_u, operator and, with coils, their maps.

    The mask samples every line; for networks of k-space, some of which look for the edge of its
    centre, every line around zero frequency.
    """
    samples = torch.ones(height, dtype=torch.bool)
    shape: tuple[int, ...] = (spec.channels, height, width)
    if spec.reads is InputKind.KSPACE:
        samples[height // 4 + 1 : height - height // 4] = False
        shape = (coils, 2, height, width)
    mask = Mask(samples=samples.numpy(), name="centre")
    maps = torch.zeros(1, coils, 2, height, width) if spec.coils else None
    return torch.zeros(1, *shape), network_operator(spec, mask, form), maps


def network_operator(
    spec: NetworkSpec, mask: Mask, form: Form, *, any_mask: bool = False
) -> Tensor:
    """Return the constant of a network's data consistency, with coils or without.

    Networks of k-space, and others that hold their mask, have their own data consistency, and are
    given the mask: [H, 1], or [H, W] of single samples.

    Args:
        spec: The network's architecture.
        mask: The sampling pattern.
        form: Form of data consistency.
        any_mask: Whether the operator's shape has to be that of all masks (for networks with
            coils, whose operator is otherwise as small as the mask lets it be).
    """
    if holds_mask(spec):
        return operator_tensor(mask, Form.DFT, spec.channels)
    if spec.coils:
        return sense_operator_tensor(mask, form, any_mask=any_mask)
    return operator_tensor(mask, form, spec.channels)


def as_network(module: nn.Module, spec: NetworkSpec) -> Network:
    """Make any module a network, in place; the names of its weights stay.

    Args:
        module: What a family's `build` returned.
        spec: Its architecture.

    Raises:
        ModelError: It is no module, or its `forward` does not take what the specification says.
    """
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"The family {spec.kind!r} builds {type(module).__name__}, no torch.nn.Module.",
            "Update the package that brings it.",
        )
    if not isinstance(module, Network) or _positional(type(module)) < _GIVEN:
        _extend(module, spec)
    network = cast(Network, module)
    network.spec = spec
    if not hasattr(network, "form"):
        network.form = Form.PROJECTION
    return network


def _extend(module: nn.Module, spec: NetworkSpec) -> None:
    """Give a module the methods of `Network` that it lacks, by a class derived from its own."""
    own = type(module)
    wanted = 3 if spec.coils else 1 + spec.has_data_consistency
    taken = _positional(own)
    if taken < wanted:
        names = ("x_u", "operator", "maps")[:wanted]
        raise ModelError(
            f"forward of {own.__name__} takes {taken} of its {wanted} arguments.",
            f"Write it as forward(self, {', '.join(names)}).",
        )

    def forward(
        self: nn.Module, x_u: Tensor, operator: Tensor | None = None, maps: Tensor | None = None
    ) -> Tensor:
        return cast(Tensor, own.forward(self, *(x_u, operator, maps)[:taken]))

    module.__class__ = type(own.__name__, (own, Network), {"forward": forward})


def _positional(own: type[nn.Module]) -> int:
    """Count the arguments that a class's `forward` takes by position, three at most."""
    kinds = [p.kind for p in inspect.signature(own.forward).parameters.values()][1:]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return _GIVEN
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return min(_GIVEN, sum(kind in by_position for kind in kinds))
