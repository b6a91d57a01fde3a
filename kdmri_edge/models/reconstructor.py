"""A network bound to one mask: what is run, exported and measured."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from kdmri_edge.models.network import Network, network_operator
from kdmri_edge.models.protocol import NetworkSpec
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import Form, choose_form

__all__ = ["Reconstructor"]


class Reconstructor(nn.Module):
    """Reconstruct normalised zero-filled images with a fixed mask.

    Args:
        model: The network; its `form` is set.
        mask: The sampling pattern.
        form: Form of data consistency; None picks the fastest one that the mask allows.
        maxima: What `quantisation.calibration.activation_maxima` found, for int8 exports.
        ranges: Largest magnitude that each convolution reads, of a network that was trained with
            rounding (`quantisation.fake_quantisation`); int8 exports then round just as that
            training did.
        any_mask: Whether the operator's shape has to be that of all masks (for networks with
            coils, whose operator is otherwise as small as the mask lets it be).

    Raises:
        MaskError: The form does not suit the mask.
    """

    operator: Tensor

    def __init__(
        self,
        model: Network,
        mask: Mask,
        form: Form | None = None,
        maxima: Mapping[str, list[float]] | None = None,
        *,
        ranges: Mapping[str, float] | None = None,
        any_mask: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.mask = mask
        self.maxima = dict(maxima or {})
        self.ranges = dict(ranges or {})
        self.form = choose_form(mask, form or "auto")
        model.form = self.form
        operator = network_operator(model.spec, mask, self.form, any_mask=any_mask)
        self.register_buffer("operator", operator, persistent=False)

    @property
    def spec(self) -> NetworkSpec:
        """The network's architecture."""
        return self.model.spec

    def forward(
        self, x_u: Tensor, operator: Tensor | None = None, maps: Tensor | None = None
    ) -> Tensor:
        """Map normalised zero-filled images [B, C, H, W] to reconstructions of that shape.

        Args:
            x_u: Zero-filled images.
            operator: Constant of data consistency of another mask; None takes the network's own.
            maps: Coil sensitivities [B, coils, 2, H, W], of networks with coils alone.
        """
        output: Tensor = self.model(x_u, self.operator if operator is None else operator, maps)
        return output
