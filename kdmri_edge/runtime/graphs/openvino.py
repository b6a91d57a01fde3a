"""Constants of an OpenVINO graph: an .xml file, whose weights lie in the .bin file beside it."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import BundleError

__all__ = ["constants", "weights_of"]


def weights_of(graph: Path) -> Path:
    """Return where the weights of a graph lie."""
    return graph.with_suffix(".bin")


def constants(graph: Path) -> Iterator[NDArray[np.float32]]:
    """Yield the constants of float32.

    Raises:
        BundleError: The file is no graph of OpenVINO, or names weights that are not there.
    """
    text = graph.read_bytes()
    # entities can make gigabytes of a small file, and OpenVINO writes none
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise BundleError(
            f"{graph} defines entities, as no graph of OpenVINO does.", "Export it again."
        )
    try:
        layers = ET.fromstring(text).iter("layer")
        places = [_place(layer) for layer in layers if layer.get("type") == "Const"]
    except (ET.ParseError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{graph} is no graph of OpenVINO ({error}).", "Export it again."
        ) from error
    if not places:
        return
    file = weights_of(graph)
    content = file.read_bytes() if file.is_file() else b""
    for kind, shape, offset, size in places:
        if offset < 0 or size < 0 or offset + size > len(content):
            raise BundleError(f"{graph} names weights that {file} lacks.", "Export it again.")
        if kind == "f32" and size and size == 4 * math.prod(shape):
            yield np.frombuffer(content, "<f4", size // 4, offset).reshape(shape)


def _place(layer: ET.Element) -> tuple[str, tuple[int, ...], int, int]:
    data = layer.find("data")
    if data is None:
        raise ValueError("a constant without data")
    shape = tuple(int(size) for size in data.get("shape", "").split(",") if size.strip())
    if min(shape, default=1) < 0:
        raise ValueError("a constant of a negative size")
    kind, offset, size = data.get("element_type", ""), data.get("offset"), data.get("size")
    return kind, shape, int(offset or -1), int(size or -1)
