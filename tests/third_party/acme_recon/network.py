"""What kdmri-edge has to know of Acme's networks; PyTorch is imported when one is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kdmri_edge.models import InputKind, NetworkFamily, SpecDefaults, consistency_macs


@dataclass(frozen=True, kw_only=True)
class ResidualSpec(SpecDefaults):
    """Residual blocks of two convolutions, then data consistency."""

    width: int
    blocks: int
    kind: str = "acme-residual"
    reads: InputKind = InputKind.MAGNITUDE
    has_data_consistency: bool = True

    @property
    def receptive_radius(self) -> int:
        """Every convolution of 3 x 3 reaches one pixel farther."""
        return 2 * (1 + self.blocks)

    @property
    def parameters(self) -> int:
        """The first and the last convolution, and two a block, with their biases."""
        width, channels = self.width, self.channels
        ends = 2 * 9 * channels * width + width + channels
        return ends + self.blocks * 2 * (9 * width * width + width)

    def macs(
        self,
        height: int,
        width: int,
        *,
        lines: bool = True,
        sampled: int | None = None,
        coils: int = 1,
    ) -> dict[str, int]:
        """Count them for one image."""
        weights = 18 * self.channels * self.width + self.blocks * 18 * self.width**2
        return {
            "convolutions": weights * height * width,
            "data_consistency": consistency_macs(height, width, self.channels, lines=lines),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` takes."""
        return {**asdict(self), "reads": str(self.reads)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ResidualSpec:
        """Make a specification of what `to_dict` gave."""
        return cls(**{**value, "reads": InputKind(value["reads"])})


FAMILY = NetworkFamily(
    name="acme-residual",
    from_dict=ResidualSpec.from_dict,
    build="acme_recon.module:Residual",
    presets={
        "acme-residual-large": ResidualSpec(width=8, blocks=2),
        "acme-residual-small": ResidualSpec(width=4, blocks=1),
    },
    recipe="imitation",
)
