"""What an .onnx file says of itself, its tensors and where they lie, without the onnx package.

An .onnx file is a message of protocol buffers (onnx.proto of the ONNX standard). What is not named
here is skipped.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import BundleError

__all__ = ["OnnxTensor", "metadata", "tensors"]

# Message -> number of the field -> what that field is: another message.
_MESSAGES: Final[Mapping[str, Mapping[int, str]]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
    "Entry": {},
}
_METADATA: Final = 14  # of a Model: pairs of a key and its value
_DEEPEST: Final = 64  # graphs within graphs

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DIMS, _TYPE, _NAME, _FLOATS, _RAW, _LOCATION = 1, 2, 8, 4, 9, 14
_FLOAT: Final = 1
_EXTERNAL: Final = 1


class _DamagedError(ValueError):
    """No message of protocol buffers."""


@dataclass(slots=True)
class OnnxTensor:
    """A tensor of a graph.

    Attributes:
        name: Its name, which may be empty.
        dims: Its shape.
        kind: Number of its type in onnx.proto; 1 is float32.
        raw: Its bytes; empty for a tensor in another form.
        external: Whether its values lie in another file.
        entries: What is said of that file: location, offset, length.
    """

    name: str = ""
    dims: list[int] = field(default_factory=list)
    kind: int = 0
    raw: bytes = b""
    external: bool = False
    entries: dict[str, str] = field(default_factory=dict)

    def array(self) -> NDArray[np.float32] | None:
        """Return its values, None for what is not float32 within this file."""
        size = math.prod(self.dims)
        if self.kind != _FLOAT or self.external or not size or len(self.raw) != 4 * size:
            return None
        return np.frombuffer(self.raw, "<f4").reshape(self.dims)


@contextlib.contextmanager
def _whole(graph: Path) -> Iterator[None]:
    """Raise that a file is no .onnx file where it cannot be read as one."""
    try:
        yield
    except (_DamagedError, IndexError, UnicodeDecodeError) as error:
        raise BundleError(f"{graph} is no ONNX graph ({error}).", "Export it again.") from error


def tensors(graph: Path) -> list[OnnxTensor]:
    """Return all tensors of a graph: weights, attributes of nodes, those of functions.

    Raises:
        BundleError: It is no .onnx file.
    """
    with _whole(graph):
        return list(_tensors(memoryview(graph.read_bytes()), "Model", 0))


def metadata(graph: Path) -> dict[str, str]:
    """Return what its writer noted in an .onnx file, by key; runtimes take no notice of it.

    Raises:
        BundleError: It is no .onnx file.
    """
    found = {}
    with _whole(graph):
        for number, value in _fields(memoryview(graph.read_bytes())):
            if number == _METADATA and isinstance(value, memoryview):
                key, text = _pair(value)
                found[key] = text
    return found


def _tensors(message: memoryview, kind: str, depth: int) -> Iterator[OnnxTensor]:
    if depth > _DEEPEST:
        raise _DamagedError("it is nested too deeply")
    if kind == "Tensor":
        yield _tensor(message)
        return
    for number, value in _fields(message):
        inner = _MESSAGES[kind].get(number)
        if inner is not None:
            if not isinstance(value, memoryview):
                raise _DamagedError(f"field {number} of a {kind} is a number")
            yield from _tensors(value, inner, depth + 1)


def _tensor(message: memoryview) -> OnnxTensor:
    found = OnnxTensor()
    for number, value in _fields(message):
        if isinstance(value, memoryview):
            if number == _DIMS:  # packed
                found.dims += _packed(value)
            elif number == _NAME:
                found.name = bytes(value).decode()
            elif number == _RAW:
                found.raw = bytes(value)
            elif number == _FLOATS:
                found.raw += bytes(value)
            elif number == 13:
                key, text = _pair(value)
                found.entries[key] = text
        elif number == _DIMS:
            found.dims.append(value)
        elif number == _TYPE:
            found.kind = value
        elif number == _LOCATION:
            found.external = found.external or value == _EXTERNAL
    found.external = found.external or bool(found.entries)
    return found


def _pair(message: memoryview) -> tuple[str, str]:
    """Return key and value of an entry."""
    held = {n: bytes(text).decode() for n, text in _fields(message) if isinstance(text, memoryview)}
    return held.get(1, ""), held.get(2, "")


def _packed(content: memoryview) -> list[int]:
    values, place = [], 0
    while place < len(content):
        value, place = _varint(content, place)
        values.append(value)
    return values


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the fields of a message, with their numbers."""
    place, end = 0, len(message)
    while place < end:
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, place = _varint(message, place)
            yield number, value
            continue
        if wire == _BYTES:
            size, place = _varint(message, place)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise _DamagedError(f"a field of wire type {wire}")
        if place + size > end:
            raise _DamagedError("a field ends behind its message")
        yield number, message[place : place + size]
        place += size


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise _DamagedError("a number of more than ten bytes")
