"""From fully sampled volumes to what a network is trained or tested with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.console import progress
from kdmri_edge.data.cases import Case, make_case
from kdmri_edge.data.simulated_cases import SIMULATION, coil_sets, simulated_case
from kdmri_edge.data.volume import Volume
from kdmri_edge.models.spec import Kind, ModelSpec
from kdmri_edge.physics.masks import Mask

__all__ = ["Undersampling"]


@dataclass(frozen=True)
class Undersampling:
    """How volumes become cases; for complex networks magnitudes are given phase, coils and noise.

    Args:
        spec: The network's architecture.
        mask: Which samples are taken.
        matrix: Pixels along H and W.
        seed: Of what is simulated.
    """

    spec: ModelSpec
    mask: Mask
    matrix: int
    seed: int
    _simulated: list[str] = field(default_factory=list, repr=False, compare=False)

    @cached_property
    def _maps(self) -> NDArray[np.complex64] | None:
        if not self.spec.coils:
            return None
        return coil_sets(self.matrix, self.matrix, seed=self.seed)

    @property
    def simulates(self) -> bool:
        """Whether magnitudes are given a phase."""
        return self.spec.channels == 2 and self.spec.kind is Kind.DCCNN

    @property
    def record(self) -> dict[str, Any]:
        """What was simulated, for runs and checkpoints; empty where nothing was."""
        if not self._simulated:
            return {}
        maps = self._maps
        coils = {} if maps is None else {"coils": maps.shape[1], "sets": len(maps)}
        return {"simulation": {**SIMULATION, **coils}}

    def case(self, volume: Volume) -> Case:
        """Undersample a volume.

        Raises:
            DataError: See `make_case` and `simulated_case`.
            MaskError: The mask is of another matrix, or (with coils) its centre has gaps.
        """
        measured = volume.is_complex and not self.spec.coils
        if self.simulates and not measured:
            self._simulated.append(volume.name)
            return simulated_case(volume, self.mask, seed=self.seed, maps=self._maps)
        magnitude = self.spec.magnitude_input
        return make_case(volume, self.mask, self.spec.channels, magnitude=magnitude)

    def __call__(self, volumes: Sequence[Volume]) -> list[Case]:
        """Undersample volumes, with a progress bar where that takes time."""
        if not self.simulates:
            return [self.case(volume) for volume in volumes]
        cases = []
        with progress("Simulating scans", len(volumes)) as advance:
            for volume in volumes:
                cases.append(self.case(volume))
                advance(1)
        return cases
