"""Golden data: phantom slices that every export has to reproduce."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.cases import make_case
from kdmri_edge.data.phantom import phantom_volume
from kdmri_edge.physics.masks import Mask
from kdmri_edge.scaling import network_input

__all__ = ["Golden", "golden", "phantom_maxima"]

if TYPE_CHECKING:
    from kdmri_edge.reconstructor import Reconstructor

# Any seed serves; one far from training's keeps the phantom apart from what a network has seen.
_SEED = 20200706
_SLICES = 3


@dataclass(frozen=True)
class Golden:
    """Phantom slices under a mask.

    Attributes:
        zero_filled: [S, H, W], in the phantom's own unit; complex64 for two channels.
        target: Fully sampled images, same shape.
        scale: float32 [S].
    """

    zero_filled: NDArray[Any]
    target: NDArray[Any]
    scale: NDArray[np.float32]

    @property
    def network_input(self) -> NDArray[np.float32]:
        """What the network sees: [S, C, H, W] float32, normalised."""
        return network_input(self.zero_filled, self.scale)


def phantom_maxima(reconstructor: Reconstructor, data: Golden) -> dict[str, list[float]]:
    """Return activation maxima of a network whose checkpoint brings none, from golden slices."""
    import torch

    from kdmri_edge.models.calibrate import activation_maxima

    x_u = torch.from_numpy(data.network_input)
    return activation_maxima(reconstructor.model, [(x_u, reconstructor.operator)])


def golden(mask: Mask, matrix: int, channels: int) -> Golden:
    """Return golden slices for a mask, square of side `matrix`.

    Raises:
        MaskError: The mask is of another matrix.
    """
    # The outermost slices of a head are nearly empty and would tell nothing.
    volume = phantom_volume(
        _SEED, slices=_SLICES + 2, matrix=max(matrix, 16), complex_phase=channels == 2
    )
    case = make_case(volume, mask, channels)
    return Golden(case.zero_filled[1:-1], case.target[1:-1], case.scale[1:-1])
