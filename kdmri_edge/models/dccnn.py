"""DC-CNN: cascades of convolutions and data consistency (Schlemper et al., TMI 2018)."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdmri_edge.errors import ModelError
from kdmri_edge.models.blocks import ConvStack, columns_apart, columns_joined, smaller
from kdmri_edge.models.layers import Layer, Structure
from kdmri_edge.models.network import Features, Network
from kdmri_edge.models.specs import ModelSpec
from kdmri_edge.physics.consistency import (
    chebyshev_steps,
    data_consistency,
    gain,
    sense_consistency,
)
from kdmri_edge.physics.operators import Form

__all__ = ["DCCNN", "Cascaded"]


class Cascaded(NamedTuple):
    """What a cascade makes.

    Attributes:
        image: [B, C, H, W].
        attention: The tapped activations [B, width, H / f, W / f], f being `spec.shuffle`.
        carried: Feature maps for the next cascade, [B, spec.carried, H / f, W / f]; None where
            there are none.
    """

    image: Tensor
    attention: Tensor
    carried: Tensor | None = None


class DCCNN(Network):
    """Cascades x_{i+1} = DC(x_i + CNN_i(x_i)), from the zero-filled image x_0 = x_u.

    Where the specification says so, cascades hand feature maps m_i on, past data consistency, which
    acts on the image alone, and read the zero-filled image as well:

        c_i, m_{i+1} = CNN_i(x_i, x_u, m_i)        x_{i+1} = DC(x_i + c_i)

    With coils, DC is one step along a gradient, and a few of them leave what changes slowly. Where
    `spec.solver_steps` says so, the image z of the last cascade becomes the solution of

        argmin_x |m F S x - y|^2 + w |x - z|^2,     (S^H P S + w) x = x_u + w z

    (MoDL: Aggarwal et al., TMI 2019, eq. 4) with w = `spec.solver_weight`, approached by Chebyshev
    steps (`physics.consistency.chebyshev_steps`): linear in z, with no scalar products in a graph.

    Args:
        spec: The architecture.

    Attributes:
        form: Which form of data consistency is computed; the operator given to `forward` must be
            made for it (`physics.consistency.operator_tensor`, with coils
            `physics.consistency.sense_operator_tensor`).
        small: Whether images stay at the size of the convolutions from the first cascade to the
            last, and data consistency acts on them there: the same result with fewer copies. For
            graphs of `spec.shuffle` > 1 in the projection form without coils, whose weights read
            and write channels in the order of `blocks.columns_apart`; not for training.
        ordered: Whether the operator that such a network is given has its rows in that order.
    """

    spec: ModelSpec

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.form = Form.PROJECTION
        self.small = self.ordered = False
        self.gain = gain(spec.noise_weight)
        self.solver = chebyshev_steps(spec.solver_steps, spec.solver_weight)
        self.cascades = nn.ModuleList(ConvStack(spec, number) for number in range(spec.cascades))

    def features(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Features:
        """Reconstruct and keep what distillation reads.

        Args:
            x_u: Normalised zero-filled images [B, C, H, W].
            operator: The constant of data consistency for `self.form`.
            maps: Coil sensitivities [B, coils, 2, H, W], of networks with `spec.coils` alone.

        Raises:
            ModelError: Maps are missing, or given to a network that has no use for them; or H or W
                is no multiple of `spec.shuffle`.
        """
        if (maps is not None) != self.spec.coils:
            raise ModelError(
                "This network combines coils and needs their sensitivities."
                if self.spec.coils
                else "This network knows of no coils.",
                "Give maps to networks of the kind dccnn-d3c5-sense, and to no others.",
            )
        if not self.small:
            return self._from(0, x_u, x_u, operator, maps)
        factor = self.spec.shuffle
        given = columns_apart(x_u, factor)
        operator = operator if self.ordered else self.rows_apart(operator)
        made = self._from(0, given, given, operator, maps)
        images = [columns_joined(image, factor) for image in made.cascade_outputs]
        return Features(images[-1], images, made.attention)

    def features_from(
        self, first: int, x: Tensor, x_u: Tensor, operator: Tensor, maps: Tensor | None = None
    ) -> Features:
        """Go on from the image that the cascades before number `first` would have made.

        Args:
            first: Cascades to leave out; with all of them the image itself is the output.
            x: Image [B, C, H, W].
            x_u: Normalised zero-filled images, as for `features`.
            operator: As for `features`.
            maps: As for `features`.

        Raises:
            ModelError: An image is not all that its cascades hand on.
        """
        if self.spec.carried:
            raise ModelError(
                "This network's cascades hand on feature maps beside the image.",
                "Begin with its first cascade.",
            )
        return self._from(first, x, x_u, operator, maps)

    def _from(
        self, first: int, x: Tensor, x_u: Tensor, operator: Tensor, maps: Tensor | None
    ) -> Features:
        images, attention = [], []
        carried: Tensor | None = None
        for number in range(first, len(self.cascades)):
            x, tapped, carried = self.cascade(number, x, x_u, operator, maps, carried)
            images.append(x)
            attention.append(tapped)
        if self.solver and images and maps is not None:
            x = images[-1] = self._solved(x, x_u, operator, maps)
        return Features(x, images, attention)

    def cascade(
        self,
        number: int,
        x: Tensor,
        x_u: Tensor,
        operator: Tensor,
        maps: Tensor | None = None,
        carried: Tensor | None = None,
    ) -> Cascaded:
        """Compute one cascade: convolutions, then data consistency.

        Args:
            number: Which, from 0.
            x: Image that the one before it made, [B, C, H, W].
            x_u: Normalised zero-filled images, as for `features`.
            operator: As for `features`.
            maps: As for `features`.
            carried: Feature maps that the one before it made, if it makes any.
        """
        spec = self.spec
        read = [x] if number == 0 or not spec.shows_zero_filled else [x, x_u]
        if spec.shuffle > 1:
            read = [self._smaller(image) for image in read]
        if carried is not None:
            read.append(carried)
        written, tapped = self.cascades[number](read[0] if len(read) == 1 else torch.cat(read, 1))
        correction, carried = written, None
        if spec.carried and number + 1 < len(self.cascades):
            image = written.shape[1] - spec.carried
            correction, carried = written[:, :image], F.relu(written[:, image:])
        if self.small:
            correction = correction.reshape(x.shape)
        elif spec.shuffle > 1:
            correction = F.pixel_shuffle(correction, spec.shuffle)
        if spec.residual:
            correction = x + correction
        return Cascaded(self.consistent(correction, x_u, operator, maps), tapped, carried)

    def consistent(
        self, x: Tensor, x_u: Tensor, operator: Tensor, maps: Tensor | None = None
    ) -> Tensor:
        """Return an image [B, C, H, W] with the acquired samples; arguments as for `cascade`."""
        form = self.form.value
        made: Tensor = (
            data_consistency(x, x_u, operator, self.gain, form)
            if maps is None
            else sense_consistency(x, x_u, maps, operator, self.gain, form)
        )
        return made

    def _smaller(self, image: Tensor) -> Tensor:
        """Return an image as convolutions read it, [B, C f^2, H / f, W / f]."""
        factor = self.spec.shuffle
        if not self.small:
            return smaller(image, factor)
        height, wide = image.shape[-2:]
        return image.reshape(-1, self.spec.channels * factor**2, height // factor, wide)

    def rows_apart(self, operator: Tensor) -> Tensor:
        """Return the projection [C H, C H] for rows as `blocks.columns_apart` orders them."""
        factor, channels = self.spec.shuffle, self.spec.channels
        high = operator.shape[-1] // (channels * factor)
        both = operator.reshape(channels, high, factor, channels, high, factor)
        return both.permute(0, 2, 1, 3, 5, 4).reshape(operator.shape)

    def _solved(self, z: Tensor, x_u: Tensor, operator: Tensor, maps: Tensor) -> Tensor:
        x, weight = z, self.spec.solver_weight
        for step in self.solver:
            pulled = sense_consistency(x, x_u, maps, operator, step, self.form.value)
            x = pulled - (step * weight) * (x - z)
        return x

    def forward(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Tensor:
        """Reconstruct: normalised zero-filled images [B, C, H, W] to images of the same shape."""
        return self.features(x_u, operator, maps).output

    def structure(self) -> Structure:
        """Describe its layers, without a forward pass."""
        found: list[Layer] = []
        for number, stack in enumerate(self.cascades):
            first, *others = cast(ConvStack, stack).layers(f"cascades.{number}")
            read, _ = self.spec.widths_of(number)[0]
            carried = self.spec.carried if number else 0
            first = replace(
                first, image=read - carried, carried_from=found[-1].name if carried else None
            )
            found += [first, *others]
        return Structure(layers=found)
