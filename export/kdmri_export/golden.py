"""Golden data: phantom slices that every export has to reproduce."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.cases import make_case
from kdmri_edge.data.phantom import phantom_volume
from kdmri_edge.data.simulate import coil_maps
from kdmri_edge.physics.coils import sense_normal
from kdmri_edge.physics.masks import Mask
from kdmri_edge.scaling import network_input, network_maps, slice_scale

__all__ = ["Golden", "golden", "phantom_maxima", "with_coils"]

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
        maps: Coil sensitivities, complex64 [S, coils, H, W]; None for networks of one image.
    """

    zero_filled: NDArray[Any]
    target: NDArray[Any]
    scale: NDArray[np.float32]
    maps: NDArray[np.complex64] | None = None

    @property
    def network_maps(self) -> NDArray[np.float32] | None:
        """What the network sees of the coils: [S, coils, 2, H, W] float32."""
        return None if self.maps is None else network_maps(self.maps)

    @property
    def network_input(self) -> NDArray[np.float32]:
        """What the network sees: [S, C, H, W] float32, normalised."""
        return network_input(self.zero_filled, self.scale)


def phantom_maxima(reconstructor: Reconstructor, data: Golden) -> dict[str, list[float]]:
    """Return activation maxima of a network whose checkpoint brings none, from golden slices."""
    import torch

    from kdmri_edge.models.calibrate import activation_maxima

    x_u, maps = torch.from_numpy(data.network_input), data.network_maps
    further = () if maps is None else (torch.from_numpy(maps),)
    return activation_maxima(reconstructor.model, [(x_u, reconstructor.operator, *further)])


def with_coils(target: NDArray[np.complex64], mask: Mask, coils: int) -> Golden:
    """Return golden slices of fully sampled images [S, H, W] that simulated coils receive."""
    maps = np.stack(
        [coil_maps(coils, *target.shape[-2:], seed=_SEED + n) for n in range(len(target))]
    )
    x_u = sense_normal(target, maps, mask).astype(np.complex64)
    return Golden(x_u, target, slice_scale(x_u), maps)


def golden(mask: Mask, matrix: int, channels: int, coils: int | None = None) -> Golden:
    """Return golden slices for a mask, square of side `matrix`.

    Args:
        mask: The sampling pattern.
        matrix: Side of the images.
        channels: 1 or 2.
        coils: Simulate so many coils; None for networks of one image.

    Raises:
        MaskError: The mask is of another matrix.
    """
    # The outermost slices of a head are nearly empty and would tell nothing.
    volume = phantom_volume(
        _SEED, slices=_SLICES + 2, matrix=max(matrix, 16), complex_phase=channels == 2
    )
    if coils is not None:
        return with_coils(volume.image[1:-1].astype(np.complex64), mask, coils)
    case = make_case(volume, mask, channels)
    return Golden(case.zero_filled[1:-1], case.target[1:-1], case.scale[1:-1])
