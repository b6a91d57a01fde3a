"""Figures in fastMRI's convention: against the files' own references, within their central square.

Whole volumes are compared with the root sum of squares of their coils (of one coil, with its
magnitude), cropped as fastMRI's public evaluation does (`kdmri_edge.data.evaluation`). Everything
else of a benchmark, worst slices and pictures too, goes by the target that networks are taught.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.case import Case
from kdmri_edge.data.datasets import find_volumes
from kdmri_edge.data.evaluation import cropped_metrics
from kdmri_edge.data.formats.hdf5.fastmri_images import as_stored, read_reference
from kdmri_edge.data.formats.registry import may_be_fastmri
from kdmri_edge.errors import BenchError, DataError
from kdmri_edge.metrics import nmse, volume_metrics

__all__ = ["STATEMENT", "ReferencedCase", "measures", "with_references"]

STATEMENT: Final = (
    "Figures in fastMRI's convention: whole volumes against their root sum of squares, within its"
    " central square."
)

_LARGEST_DIFFERENCE: Final = 0.1
"""NMSE of a fully sampled image to its reference: coils' noise outside the object is below, images
that are resampled or turned are far above."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReferencedCase(Case):
    """A case whose figures are computed in fastMRI's convention.

    Attributes:
        reference: float32 [S, rows, columns], as `read_reference` gives it.
    """

    reference: NDArray[np.float32]

    def part(self, slices: slice) -> ReferencedCase:
        """Return a case of some of the slices."""
        # `super()` does not work in dataclasses with slots; the class stays this one
        part = cast("ReferencedCase", Case.part(self, slices))
        return replace(part, reference=self.reference[slices])


def measures(case: Case, output: NDArray[Any]) -> dict[str, float]:
    """Return all measures of an output [S, H, W] of a case.

    Raises:
        DataError: See `metrics.volume_metrics`.
    """
    if not isinstance(case, ReferencedCase):
        return volume_metrics(case.target, output)
    rows, columns = case.reference.shape[1:]
    return cropped_metrics(case.reference, as_stored(output, (rows, columns)))


def with_references(cases: Sequence[Case], data: Path) -> tuple[ReferencedCase, ...]:
    """Give cases the references of their files.

    Args:
        cases: Made of files of a folder, or of one file; whole volumes in the files' own pixels.
        data: That folder or file.

    Raises:
        BenchError: A file is none of fastMRI's or has no reference, or a case is not in its pixels.
    """
    files = {file.name: file.path for file in find_volumes(data)}
    found = []
    for case in cases:
        path = files.get(case.name)
        if path is None:
            raise BenchError(f"{data} holds no volume {case.name}.", "Give a folder of files.")
        if not may_be_fastmri(path):  # read as HDF5, a good file of another format looks damaged
            raise BenchError(
                f"{case.name} has no figures in fastMRI's convention: {path} is no file of"
                " fastMRI's.",
                "Leave --evaluation out for other files.",
            )
        try:
            reference = read_reference(path).image
            whole = as_stored(case.target, (reference.shape[1], reference.shape[2]))
            apart = nmse(reference, whole)
        except DataError as error:
            raise BenchError(
                f"{case.name} has no figures in fastMRI's convention: {error.what}", error.remedy
            ) from error
        if not apart <= _LARGEST_DIFFERENCE:
            raise BenchError(
                f"The fully sampled image of {case.name} is not that of its reference (NMSE"
                f" {apart:.2g}).",
                "Its pixels are the file's own only where the networks' matrix is the longer side"
                " of its k-space. For files of any size use `kdmri-edge run --layout fastmri` and"
                " `kdmri-edge evaluate`.",
            )
        own = {field.name: getattr(case, field.name) for field in fields(case)}
        found.append(ReferencedCase(**own, reference=reference))
    return tuple(found)
