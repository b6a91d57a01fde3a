"""Images on their way to a file, with what the formats can say about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from kdmri_edge.data.geometry import Affine

__all__ = ["ImageRecord"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageRecord:
    """What a writer is given.

    Attributes:
        image: [S, H, W], float32 or complex64; phase encode is H.
        voxel_mm: Voxel size along (S, H, W) in millimetres, where it is known.
        affine: See `data.geometry`, where it is known.
        derivation: How the images came about, one sentence.
        dicom: The DICOM file or series that they were made from, whose patient and study they
            belong to. Only the DICOM writer looks at it.
        certificates: Of each slice one line of JSON (`runtime.certificate`), or none at all. Only
            the DICOM writer looks at them.
    """

    image: NDArray[Any]
    voxel_mm: tuple[float, float, float] | None = None
    affine: Affine | None = None
    derivation: str = ""
    dicom: Path | None = None
    certificates: tuple[str, ...] = ()
