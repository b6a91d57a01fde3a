"""What a writer of graphs says of its work."""

from __future__ import annotations

from dataclasses import dataclass

from kdmri_export.transformed import Transformed

__all__ = ["Written"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What became of a network in its graph.

    Attributes:
        convolutions: How many layers are written in another precision than float32; None where the
            writer does not tell.
        transforms: Fourier transforms that became products with DFT matrices; 0 where the network
            has none.
        layers: Which ones they are; None where the writer counts them alone.
    """

    convolutions: int | None
    transforms: int = 0
    layers: Transformed | None = None

    @classmethod
    def of(cls, said: Written | int | None) -> Written:
        """Return what a writer said, which may be the number of layers alone."""
        return said if isinstance(said, Written) else cls(convolutions=said)
