"""Acme's files: magic bytes, three sizes, a voxel size, and float32 pixels."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from kdmri_edge.data import Format, Volume, checked_image, origin_of
from kdmri_edge.errors import DataError

HEADER = struct.Struct("<4s3I3f")
MAGIC = b"ACME"

FORMAT = Format(
    name="Acme images",
    suffixes=(".acme",),
    volume="acme_recon.images:read",
    reads="magnitude images",
)


def read(path: Path) -> Volume:
    """Read one file.

    Raises:
        DataError: It is cut short, or no file of Acme's.
    """
    content = path.read_bytes()
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise DataError(f"{path} is no file of Acme's.", "Write it again on the scanner.")
    _, *numbers = HEADER.unpack_from(content)
    shape, voxel = tuple(map(int, numbers[:3])), tuple(map(float, numbers[3:]))
    pixels = np.frombuffer(content, np.float32, offset=HEADER.size)
    if pixels.size != np.prod(shape):
        raise DataError(f"{path} is cut short.", "Copy it again.")
    return Volume(
        image=checked_image(pixels.reshape(shape), path),
        voxel_mm=(voxel[0], voxel[1], voxel[2]),
        **origin_of(path),
    )
