"""Images in MRD's HDF5 files: one series of slices, with their place in the patient."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import h5py
import ismrmrd
import numpy as np
from ismrmrd import Image, ImageHeader, Meta
from numpy.typing import NDArray

from kdmri_edge.data.geometry import voxel_size
from kdmri_edge.data.picture import Picture
from kdmri_edge.data.readers import origin_of
from kdmri_edge.data.volume import Volume, checked_image
from kdmri_edge.errors import DataError
from kdmri_edge.mrd.geometry import affine_of, place_slice, slice_order
from kdmri_edge.mrd.hdf5 import write_images
from kdmri_edge.mrd.header import Encoding

__all__ = ["SERIES", "read_images", "write_picture"]

SERIES: Final = re.compile(r"images?_\d+")
"""Names of the groups that hold a series of images."""


def write_picture(path: Path, picture: Picture) -> None:
    """Write images [S, H, W], magnitude or complex, as the series /dataset/image_1.

    Raises:
        OutputError: The place cannot be written to.
    """
    write_images(path, _images(picture))


def _images(picture: Picture) -> Iterator[Image]:
    pixels = np.asarray(picture.image)
    height, width = pixels.shape[-2:]
    voxel = picture.voxel_mm if picture.affine is None else voxel_size(picture.affine)
    thick, down, across = voxel or (0.0, 0.0, 0.0)
    kind = ismrmrd.IMTYPE_COMPLEX if np.iscomplexobj(pixels) else ismrmrd.IMTYPE_MAGNITUDE
    for number, slice_pixels in enumerate(pixels):
        image = Image.from_array(
            np.ascontiguousarray(slice_pixels),
            field_of_view=(width * across, height * down, thick),
            image_type=kind,
            image_index=number + 1,
            image_series_index=1,
        )
        head = image.getHead()
        head.slice = number
        if picture.affine is not None:
            place_slice(head, picture.affine, number, (height, width))
        image.setHead(head)
        image.meta = {
            "DataRole": "Image",
            "ImageProcessingHistory": ["KDMRI-EDGE"],
            "ImageRowDir": [f"{v:.9f}" for v in head.read_dir],
            "ImageColumnDir": [f"{v:.9f}" for v in head.phase_dir],
            **({"ImageComment": picture.derivation} if picture.derivation else {}),
        }
        yield image


def read_images(path: Path) -> Volume:
    """Read the one series of images of a file, as any server of the protocol may have written it.

    Slices are put in the order of their positions. Whole numbers are brought back to their unit by
    RescaleSlope and RescaleIntercept. Several contrasts, cardiac phases, repetitions or sets follow
    one another along S, without an affine.

    Returns:
        float32 magnitude or complex64 volume.

    Raises:
        DataError: Unreadable, several series, several channels, three-dimensional, or no image.
    """
    try:
        with h5py.File(path, "r") as file:
            series = [
                node
                for group in file.values() if isinstance(group, h5py.Group)
                for name, node in group.items() if SERIES.fullmatch(name)
            ]  # fmt: skip
            if len(series) != 1:
                raise DataError(
                    f"{path} holds {len(series)} series of images.", "Give a file of one series."
                )
            data = _numbers(np.asarray(series[0]["data"]))
            heads = [ImageHeader.from_buffer_copy(h.tobytes()) for h in series[0]["header"]]
            metas = [Meta.deserialize(_text(text)) for text in series[0]["attributes"]]
    # what a damaged file makes the two packages raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, SyntaxError) as error:
        raise DataError(
            f"{path} cannot be read as MRD images ({type(error).__name__}).",
            "The file is damaged or cut short: copy it again.",
        ) from None
    if data.ndim != 5 or data.shape[1:3] != (1, 1) or not len(data) == len(heads) == len(metas):
        raise DataError(
            f"The images of {path} have shape {list(data.shape)}.",
            "This reads images of one channel and one slice each, [images, 1, 1, rows, columns].",
        )
    pixels = np.stack([_unit(p[0, 0], meta) for p, meta in zip(data, metas, strict=True)])
    stacks = {(h.set, h.contrast, h.phase, h.repetition) for h in heads}
    if len(stacks) == 1:
        order = slice_order(heads, [int(h.slice) for h in heads])
    else:
        keys = [(h.set, h.contrast, h.phase, h.repetition, h.slice) for h in heads]
        order = sorted(range(len(heads)), key=keys.__getitem__)
    heads, pixels = [heads[i] for i in order], pixels[order]
    height, width = pixels.shape[1:]
    fov = tuple(float(v) for v in heads[0].field_of_view)
    return Volume(
        image=checked_image(pixels, path),
        **origin_of(path),
        voxel_mm=(fov[2], fov[1] / height, fov[0] / width) if min(fov) > 0 else None,
        affine=_affine(heads, (height, width)) if len(stacks) == 1 else None,
    )


def _affine(heads: list[Any], matrix: tuple[int, int]) -> NDArray[np.float64] | None:
    height, width = matrix
    fov = tuple(float(v) for v in heads[0].field_of_view)
    if min(fov) <= 0:
        return None
    whole = Encoding(lines=height, samples=width, width=width, rows=height,
                     fov_mm=(fov[0], fov[1], fov[2]), centre=0, first=0, last=0)  # fmt: skip
    return affine_of(heads, whole, matrix)


def _text(stored: Any) -> str:
    return stored.decode() if isinstance(stored, bytes) else str(stored)


def _numbers(stored: NDArray[Any]) -> NDArray[Any]:
    """Complex numbers are pairs called real and imag, which h5py does not take for complex."""
    if stored.dtype.names == ("real", "imag"):
        return np.asarray(stored["real"] + 1j * stored["imag"])
    return stored


def _unit(pixels: NDArray[Any], meta: Any) -> NDArray[Any]:
    slope, intercept = (float(meta.get(f"Rescale{key}", usual))
                        for key, usual in (("Slope", 1.0), ("Intercept", 0.0)))  # fmt: skip
    if (slope, intercept) == (1.0, 0.0):
        return pixels
    return pixels.astype(np.float64) * slope + intercept
