"""Writing reconstructions by the suffix of their file; the formats are in `data.formats`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from kdmri_edge.data.formats import FORMATS
from kdmri_edge.data.geometry import Affine
from kdmri_edge.data.picture import Picture
from kdmri_edge.data.readers import known_suffix
from kdmri_edge.errors import OutputError
from kdmri_edge.extras import load_attribute

__all__ = ["WRITERS", "write_image", "write_picture", "writer_suffix"]

Writer = Callable[[Path, Picture], None]

WRITERS: Final[dict[str, str]] = {
    suffix: row.writer for row in FORMATS if row.writer for suffix in row.suffixes
}
"""Suffix (lower case, with the dot) -> "module:function" of a `Writer`, which writes atomically."""


def writer_suffix(path: Path) -> str | None:
    """Return the key of `WRITERS` for a file's name, None when there is none."""
    return known_suffix(path, WRITERS)


def write_picture(path: Path, picture: Picture) -> None:
    """Write images in the format that the name asks for, atomically.

    Args:
        path: Destination; an earlier file is replaced.
        picture: The images, and what is known of them.

    Raises:
        OutputError: A suffix that no writer knows, images that the format cannot hold, or the
            place cannot be written to.
        MissingExtraError: The format needs a library that is not installed.
    """
    suffix = writer_suffix(path)
    if suffix is None:
        raise OutputError(
            f"{path} has a suffix that no writer knows.", f"Supported are {', '.join(WRITERS)}."
        )
    writer: Writer = load_attribute(WRITERS[suffix])
    writer(path, picture)


def write_image(
    path: Path,
    image: NDArray[Any],
    voxel_mm: tuple[float, float, float] | None = None,
    affine: Affine | None = None,
) -> None:
    """Write images [S, H, W] of which nothing more is known; see `write_picture`."""
    write_picture(path, Picture(image=image, voxel_mm=voxel_mm, affine=affine))
