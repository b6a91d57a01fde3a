"""What a file can send to a server: the readouts of a scan, or images where it holds none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ismrmrd import Acquisition, Image
from ismrmrd.hdf5 import get_hdf5type

from kdmri_edge.data.formats.hdf5.mrd import image_series, is_mrd_stream, mrd_groups
from kdmri_edge.data.formats.hdf5.opening import open_hdf5, values
from kdmri_edge.data.sources import split_dataset
from kdmri_edge.errors import DataError
from kdmri_edge.mrd.format.hdf5 import count_readouts, read_header, read_readouts
from kdmri_edge.utils.reading import check_claim, reading

__all__ = ["Replay", "read_replay"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Replay:
    """What is sent.

    Attributes:
        xml: Header of the scan.
        count: How many messages there are.
        messages: In their order, few of them held.
    """

    xml: str
    count: int
    messages: Iterator[Acquisition | Image]


def read_replay(path: Path) -> Replay:
    """Open a file to be sent.

    Images need the header of their scan beside them, as `kdmri-edge send` and recordings write it.

    Args:
        path: A file, or FILE.h5:GROUP.

    Raises:
        DataError: It holds neither readouts nor images with a header.
    """
    source, named = split_dataset(path)
    if named is None and not is_mrd_stream(source):
        with open_hdf5(source) as file:
            groups = [] if mrd_groups(file) else _groups_of_images(file)
            if len(groups) == 1:
                (group,) = groups
                stored = values(file[group]["xml"]).reshape(-1)
                xml = stored[0].decode("utf-8", "replace") if len(stored) else ""
                count = sum(len(file[group][name]["header"]) for name in image_series(file[group]))
                return Replay(xml=xml, count=count, messages=_images(source, group))
    return Replay(
        xml=read_header(path), count=count_readouts(path), messages=read_readouts(path)
    )  # fmt: skip


def _groups_of_images(file: h5py.File) -> list[str]:
    return [
        str(name) for name, node in file.items()
        if image_series(node) and isinstance(node.get("xml"), h5py.Dataset)
    ]  # fmt: skip


def _images(path: Path, group: str) -> Iterator[Image]:
    """Yield the images of a group, series by series.

    Raises:
        DataError: An image whose pixels do not fit its header.
    """
    with open_hdf5(path) as file:
        for name in image_series(file[group]):
            series = file[group][name]
            for number in range(len(series["header"])):
                with reading(path, "MRD images"):
                    yield _image(series, number, path)


def _image(series: Any, number: int, path: Path) -> Image:
    head = series["header"][number]
    data, text = series["data"], series["attributes"][number]
    shape = (head["channels"], *head["matrix_size"][::-1])
    check_claim(int(np.prod(shape, dtype=object)) * data.dtype.itemsize, f"An image of {path}")
    if shape != data.shape[1:] or get_hdf5type(head["data_type"]) != data.dtype:
        raise DataError(f"An image of {path} has other pixels than its header says.", "Export it"
                        " again.")  # fmt: skip
    image = Image(head.tobytes(), text.decode("utf-8") if isinstance(text, bytes) else str(text))
    image.data[:] = np.asarray(data[number]).view(image.data.dtype).reshape(image.data.shape)
    return image
