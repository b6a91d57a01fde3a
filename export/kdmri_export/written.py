"""What a writer of graphs says of its work."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Written"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What became of a network in its graph.

    Attributes:
        convolutions: How many are written in another precision than float32; None where the writer
            does not tell.
        transforms: Fourier transforms that became products with DFT matrices; 0 where the network
            has none.
    """

    convolutions: int | None
    transforms: int = 0

    @classmethod
    def of(cls, said: Written | int | None) -> Written:
        """Return what a writer said, which may be the number of convolutions alone."""
        return said if isinstance(said, Written) else cls(convolutions=said)
