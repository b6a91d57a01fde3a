"""Graphs whose images have any height and width.

Convolutions do not care about the matrix; what does is made outside the graph, for each scan, and
given to it: the operator of data consistency, and DFT matrices where its form takes some.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor

from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.physics.fourier import dft_pair
from kdmri_edge.physics.operators import Form
from kdmri_edge.runtime.scope import SMALLEST_SIDE
from kdmri_export.passes.data_consistency import Lowering

__all__ = ["TRANSFORMS", "Sides", "example_transforms", "other_matrices", "take_transforms"]

TRANSFORMS: Final = ("dft_height", "dft_width")
"""Names of the inputs that take DFT matrices [2, n, n], cosine and sine, along H and along W."""

# Of a matrix of 240: 192 x 192, and 256 x 208 or the odd width beside it.
_SQUARE: Final = 0.8
_RECTANGLE: Final = (16 / 15, 13 / 15)


def example_transforms(reconstructor: Reconstructor, images: Tensor) -> dict[str, Tensor]:
    """Return the DFT matrices that a graph of any matrix takes beside the operator, by name."""
    if reconstructor.form is not Form.DFT or not reconstructor.spec.has_data_consistency:
        return {}
    axes = 1 if reconstructor.mask.is_lines else 2
    sizes = images.shape[2 : 2 + axes]
    return {
        name: torch.from_numpy(dft_pair(int(size)).copy())
        for name, size in zip(TRANSFORMS, sizes, strict=False)
    }


def take_transforms(network: Reconstructor, lowering: Lowering, names: list[str]) -> None:
    """Let a network take DFT matrices as arguments behind the operator, in place.

    Args:
        network: A copy that is traced, and nothing else.
        lowering: Is told of them in each call.
        names: Of `TRANSFORMS`, those that it takes.
    """
    original = network.forward
    plain = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in ("x_u", "operator", *names, *(["maps"] if network.spec.coils else []))
    ]
    signature = inspect.Signature(plain)

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        given = signature.bind(*args, **kwargs).arguments
        lowering.transforms = [given.pop(name) for name in names]
        made: Tensor = original(**given)
        return made

    forward.__signature__ = signature  # type: ignore[attr-defined]
    vars(network)["forward"] = forward


class Sides:
    """The free axes of a graph, as `torch.export` names them.

    Args:
        multiple: Of which height and width are.
    """

    def __init__(self, multiple: int) -> None:
        smallest = -(-SMALLEST_SIDE // multiple)
        mark = "" if multiple == 1 else "_"
        self._multiple = multiple
        self._height = torch.export.Dim(f"{mark}height", min=smallest)
        self._width = torch.export.Dim(f"{mark}width", min=smallest)

    def height(self, times: int = 1) -> Any:
        """Return H, or a multiple of it."""
        return self._times(self._height, times)

    def width(self) -> Any:
        """Return W."""
        return self._times(self._width, 1)

    def _times(self, side: Any, times: int) -> Any:
        factor = self._multiple * times
        return side if factor == 1 else factor * side


def other_matrices(side: int, multiple: int) -> Iterator[tuple[int, int]]:
    """Yield the matrices that a graph is checked at beside its own: a square, and a rectangle.

    Without multiples the rectangle's width is odd: rounding of half a matrix shows there.
    """

    def near(wanted: float) -> int:
        fewest = -(-SMALLEST_SIDE // multiple)
        return max(fewest, round(wanted / multiple)) * multiple

    yield near(_SQUARE * side), near(_SQUARE * side)
    height, width = (near(part * side) for part in _RECTANGLE)
    yield height + multiple if height == width else height, width | 1 if multiple == 1 else width
