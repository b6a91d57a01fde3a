"""Bytes in, messages out: an incremental parser of MRD streams without sockets.

Sizes that a message claims are compared with limits as soon as its fixed part has arrived, before
anything is allocated for it; what is held is never more than what has really been fed. Messages of
kinds that nobody takes are not held at all.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import prod
from typing import Final

from ismrmrd import Acquisition, Image, Waveform
from ismrmrd.acquisition import AcquisitionHeader
from ismrmrd.image import ImageHeader, get_dtype_from_data_type
from ismrmrd.waveform import WaveformHeader

from kdmri_edge.errors import StreamError
from kdmri_edge.mrd.format.messages import (
    CONFIG_FILE_BYTES,
    Close,
    ConfigFile,
    ConfigText,
    HeaderText,
    Id,
    Message,
    Skipped,
    Text,
)

__all__ = ["Limits", "Order", "Parser"]

_MIB: Final = 2**20
_ACQUISITION: Final = ctypes.sizeof(AcquisitionHeader)
_IMAGE: Final = ctypes.sizeof(ImageHeader)
_WAVEFORM: Final = ctypes.sizeof(WaveformHeader)
_ATTRIBUTES: Final = 4 * _MIB  # of an image: whole DICOM headers are a tenth of that
_AGAIN: Final = "Check the client, or raise the limit if the scan is real."
_TEXTS: Final = {
    Id.CONFIG_TEXT: ConfigText,
    Id.HEADER: HeaderText,
    Id.TEXT: Text,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The largest message of each kind that is accepted, in bytes.

    Attributes:
        text: Configurations and texts.
        header: The scan's XML header.
        acquisition: One readout of all coils: 64 MiB are 128 coils of 65,535 samples.
        image: One image with its attributes.
        waveform: One waveform.
    """

    text: int = _MIB
    header: int = 16 * _MIB
    acquisition: int = 64 * _MIB
    image: int = 256 * _MIB
    waveform: int = 16 * _MIB

    def of(self, identifier: Id) -> int:
        """Return the limit of a kind of message."""
        match identifier:
            case Id.HEADER:
                return self.header
            case Id.ACQUISITION:
                return self.acquisition
            case Id.IMAGE:
                return self.image
            case Id.WAVEFORM:
                return self.waveform
        return max(self.text, CONFIG_FILE_BYTES)


class Parser:
    """Takes a stream apart.

    Args:
        limits: What is too large.
        skips: Kinds of which only it is said that they came (`Skipped`).

    Attributes:
        skips: The same; may be set anew between two messages.
    """

    def __init__(self, limits: Limits | None = None, *, skips: Collection[Id] = ()) -> None:
        self._limits = limits or Limits()
        self.skips = frozenset(skips)
        self._buffer = bytearray()
        self._current: tuple[Id, int] | None = None  # of the message under way; bytes of its body
        self._missing: int | None = None  # bytes of it that are still to come, where it is skipped

    @property
    def held(self) -> int:
        """Bytes that are kept of messages that are not complete yet."""
        return len(self._buffer)

    @property
    def under_way(self) -> int:
        """Bytes that have come of messages that are not complete yet, kept or skipped."""
        if self._missing is None or self._current is None:
            return len(self._buffer)
        return 2 + self._current[1] - self._missing

    def feed(self, data: bytes) -> None:
        """Add what has arrived, in pieces of any size."""
        if self._missing:
            skipped = min(self._missing, len(data))
            self._missing -= skipped
            self._buffer += memoryview(data)[skipped:]
        else:
            self._buffer += data

    def messages(self) -> Iterator[Message | Skipped]:
        """Yield the messages that are complete.

        Raises:
            StreamError: An unknown identifier, a size above its limit, or content that cannot be
                decoded. The stream cannot be followed any further.
        """
        while (message := self._next()) is not None:
            yield message

    def finish(self) -> None:
        """Tell the parser that the stream has ended.

        Raises:
            StreamError: It ended within a message.
        """
        if self._buffer or self._current is not None:
            named = "a message" if self._current is None else f"message {self._current[0].name}"
            raise StreamError(f"The stream ended within {named}.", "Send the scan again.")

    def _next(self) -> Message | Skipped | None:
        if self._current is None:
            if (known := self._begin()) is None:
                return None
            self._current = known
        identifier, size = self._current
        if identifier in self.skips:
            return self._skip(identifier, 2 + size)
        if len(self._buffer) < 2 + size:
            return None
        body = bytes(memoryview(self._buffer)[2 : 2 + size])
        del self._buffer[: 2 + size]
        self._current = None
        return _decode(identifier, body)

    def _skip(self, identifier: Id, size: int) -> Skipped | None:
        """Throw away what has come of a message; return it once all of it has."""
        if self._missing is None:
            self._missing = max(size - len(self._buffer), 0)
            del self._buffer[:size]
        if self._missing:
            return None
        self._current = self._missing = None
        return Skipped(identifier)

    def _begin(self) -> tuple[Id, int] | None:
        """Return what the message under way is and claims to be long, None where more is needed."""
        if len(self._buffer) < 2:
            return None
        (number,) = struct.unpack_from("<H", self._buffer)
        try:
            identifier = Id(number)
        except ValueError:
            raise StreamError(
                f"Message identifier {number} is unknown.",
                "The stream is broken, or of a protocol that is not MRD's.",
            ) from None
        size = _claimed(identifier, bytes(memoryview(self._buffer)[2 : 2 + _ACQUISITION]))
        if size is None:
            return None
        limit = self._limits.of(identifier)
        if size > limit:
            raise StreamError(
                f"Message {identifier.name} claims {size} bytes; {limit} are allowed.", _AGAIN
            )
        return identifier, size


def _claimed(identifier: Id, start: bytes) -> int | None:
    """Return the length of a message's body, from its first bytes; None where they are too few."""
    match identifier:
        case Id.CLOSE:
            return 0
        case Id.CONFIG_FILE:
            return CONFIG_FILE_BYTES
        case Id.ACQUISITION:
            if len(start) < _ACQUISITION:
                return None
            head = AcquisitionHeader.from_buffer_copy(start)
            per_sample = 4 * head.trajectory_dimensions + 8 * head.active_channels
            return int(_ACQUISITION + head.number_of_samples * per_sample)
        case Id.IMAGE:
            if len(start) < _IMAGE + 8:
                return None
            picture = ImageHeader.from_buffer_copy(start)
            (attributes,) = struct.unpack_from("<Q", start, _IMAGE)
            if attributes > _ATTRIBUTES:
                raise StreamError(
                    f"Message IMAGE claims {attributes} bytes of attributes; {_ATTRIBUTES} are"
                    " allowed.",
                    "Check the client.",
                )
            try:
                item = get_dtype_from_data_type(picture.data_type).itemsize
            except TypeError:
                raise StreamError(
                    f"An image has the unknown data type {picture.data_type}.", "Check the sender."
                ) from None
            return int(
                _IMAGE + 8 + attributes + prod(picture.matrix_size) * picture.channels * item
            )
        case Id.WAVEFORM:
            if len(start) < _WAVEFORM:
                return None
            wave = WaveformHeader.from_buffer_copy(start)
            return int(_WAVEFORM + 4 * wave.channels * wave.number_of_samples)
    if len(start) < 4:
        return None
    (length,) = struct.unpack_from("<I", start)
    return 4 + int(length)


def _decode(identifier: Id, body: bytes) -> Message:
    try:
        match identifier:
            case Id.CLOSE:
                return Close()
            case Id.CONFIG_FILE:
                return ConfigFile(body.split(b"\0", 1)[0].decode())
            case Id.ACQUISITION:
                return Acquisition.from_bytes(body)
            case Id.IMAGE:
                if (
                    b"<!DOCTYPE" in body[_IMAGE + 8 : _attributes_end(body)]
                ):  # entities grow without bound
                    raise ValueError("entities in attributes")
                return Image.from_bytes(body)
            case Id.WAVEFORM:
                return Waveform.from_bytes(body)
        return _TEXTS[identifier](body[4:].split(b"\0", 1)[0].decode())
    # a broken body makes the package's deserialisation raise errors of any type
    except Exception as error:
        raise StreamError(
            f"Message {identifier.name} cannot be decoded ({type(error).__name__}).",
            "Check the sender.",
        ) from None


def _attributes_end(body: bytes) -> int:
    (length,) = struct.unpack_from("<Q", body, _IMAGE)
    return _IMAGE + 8 + int(length)


class Order:
    """The order in which a client may speak: configuration, header, data and texts, close."""

    def __init__(self) -> None:
        self._seen: list[str] = []

    def take(self, message: Message | Skipped) -> None:
        """Accept the next message.

        Raises:
            StreamError: It may not come here.
        """
        match message:
            case ConfigFile() | ConfigText():
                self._once("configuration", after=None)
            case HeaderText():
                self._once("header", after="configuration")
            case Acquisition() | Image() | Waveform():
                self._needs("header", type(message).__name__.lower())
            case Skipped():
                self._needs("header", message.identifier.name.lower())

    def _once(self, what: str, after: str | None) -> None:
        if what in self._seen:
            raise StreamError(f"A second {what} came.", "Open a connection for each scan.")
        if after is not None:
            self._needs(after, what)
        self._seen.append(what)

    def _needs(self, before: str, what: str) -> None:
        if before not in self._seen:
            raise StreamError(
                f"A message of kind {what} came before the {before}.",
                "The order is configuration, header, data, close.",
            )
