"""DC-CNN: cascades of convolutions and data consistency (Schlemper et al., TMI 2018)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from kdmri_edge.errors import ModelError
from kdmri_edge.models.blocks import ConvStack
from kdmri_edge.models.convolutions import Convolution
from kdmri_edge.models.network import Features, Network
from kdmri_edge.models.specs import ModelSpec
from kdmri_edge.physics.consistency import data_consistency, gain, sense_consistency
from kdmri_edge.physics.operators import Form

__all__ = ["DCCNN"]


class DCCNN(Network):
    """Cascades x_{i+1} = DC(x_i + CNN_i(x_i)), from the zero-filled image x_0 = x_u.

    Args:
        spec: The architecture.

    Attributes:
        form: Which form of data consistency is computed; the operator given to `forward` must be
            made for it (`physics.consistency.operator_tensor`, with coils
            `physics.consistency.sense_operator_tensor`).
    """

    spec: ModelSpec

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.form = Form.PROJECTION
        self.gain = gain(spec.noise_weight)
        self.cascades = nn.ModuleList(ConvStack(spec, number) for number in range(spec.cascades))

    def features(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Features:
        """Reconstruct and keep what distillation reads.

        Args:
            x_u: Normalised zero-filled images [B, C, H, W].
            operator: The constant of data consistency for `self.form`.
            maps: Coil sensitivities [B, coils, 2, H, W], of networks with `spec.coils` alone.

        Raises:
            ModelError: Maps are missing, or given to a network that has no use for them.
        """
        if (maps is not None) != self.spec.coils:
            raise ModelError(
                "This network combines coils and needs their sensitivities."
                if self.spec.coils
                else "This network knows of no coils.",
                "Give maps to networks of the kind dccnn-d3c5-sense, and to no others.",
            )
        return self.features_from(0, x_u, x_u, operator, maps)

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
        """
        stages, attention = [], []
        for number in range(first, len(self.cascades)):
            x, tapped = self.cascade(number, x, x_u, operator, maps)
            stages.append(x)
            attention.append(tapped)
        return Features(x, stages, attention)

    def cascade(
        self, number: int, x: Tensor, x_u: Tensor, operator: Tensor, maps: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute one cascade: convolutions, then data consistency.

        Args:
            number: Which, from 0.
            x: Image that the one before it made, [B, C, H, W].
            x_u: Normalised zero-filled images, as for `features`.
            operator: As for `features`.
            maps: As for `features`.

        Returns:
            Its image [B, C, H, W], and the tapped activations [B, width, H, W].
        """
        correction, tapped = self.cascades[number](x)
        if self.spec.residual:
            correction = x + correction
        form = self.form.value
        if maps is None:
            x = data_consistency(correction, x_u, operator, self.gain, form)
        else:
            x = sense_consistency(correction, x_u, maps, operator, self.gain, form)
        return x, tapped

    def forward(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Tensor:
        """Reconstruct: normalised zero-filled images [B, C, H, W] to images of the same shape."""
        return self.features(x_u, operator, maps).output

    def convolutions(self) -> list[Convolution]:
        """Describe its convolutions, by its structure."""
        found = []
        for number, stack in enumerate(self.cascades):
            found += cast(ConvStack, stack).convolutions(f"cascades.{number}")
        return found
