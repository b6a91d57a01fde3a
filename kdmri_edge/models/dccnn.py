"""DC-CNN: cascades of convolutions and data consistency (Schlemper et al., TMI 2018)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from kdmri_edge.models.features import Features
from kdmri_edge.models.spec import ModelSpec
from kdmri_edge.models.stack import ConvStack
from kdmri_edge.physics.consistency import data_consistency, gain
from kdmri_edge.physics.forms import Form

__all__ = ["DCCNN", "Consistency"]

# (x, x_u, operator, gain, form) -> x'
Consistency = Callable[[Tensor, Tensor, Tensor, float, str], Tensor]


def _registered(x: Tensor, x_u: Tensor, operator: Tensor, gain: float, form: str) -> Tensor:
    """Call the custom op; a plain function, since the op itself cannot be copied with a module."""
    result: Tensor = data_consistency(x, x_u, operator, gain, form)
    return result


class DCCNN(nn.Module):
    """Cascades x_{i+1} = DC(x_i + CNN_i(x_i)), from the zero-filled image x_0 = x_u.

    Args:
        spec: The architecture.

    Attributes:
        form: Which form of data consistency is computed; the operator given to `forward` must be
            made for it (`physics.consistency.operator_tensor`).
        consistency: The data-consistency operator; exporters put a lowering of it here.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.form = Form.PROJECTION
        self.gain = gain(spec.noise_weight)
        self.consistency: Consistency = _registered
        self.cascades = nn.ModuleList(ConvStack(spec) for _ in range(spec.cascades))

    def features(self, x_u: Tensor, operator: Tensor) -> Features:
        """Reconstruct and keep what distillation reads.

        Args:
            x_u: Normalised zero-filled images [B, C, H, W].
            operator: The constant of data consistency for `self.form`.
        """
        x = x_u
        stages, attention = [], []
        for cascade in self.cascades:
            correction, tapped = cascade(x)
            if self.spec.residual:
                correction = x + correction
            x = self.consistency(correction, x_u, operator, self.gain, self.form.value)
            stages.append(x)
            attention.append(tapped)
        return Features(x, stages, attention)

    def forward(self, x_u: Tensor, operator: Tensor) -> Tensor:
        """Reconstruct: normalised zero-filled images [B, C, H, W] to images of the same shape."""
        return self.features(x_u, operator).output
