"""The messages of the MRD streaming protocol, and their bytes.

Every message starts with an identifier of two bytes; numbers are little-endian. Acquisitions,
images and waveforms are those of the package `ismrmrd`, with its serialisation. Texts end with a
NUL, as scanners' FIRE interface writes and expects them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from io import BytesIO
from typing import Final, TypeAlias

from ismrmrd import Acquisition, Image, Waveform

from kdmri_edge.errors import StreamError

__all__ = [
    "CONFIG_FILE_BYTES",
    "Close",
    "ConfigFile",
    "ConfigText",
    "HeaderText",
    "Id",
    "Message",
    "Skipped",
    "Text",
    "serialise",
]

CONFIG_FILE_BYTES: Final = 1024
"""A configuration file's name travels in a field of this fixed size."""


class Id(IntEnum):
    """Identifiers of the messages."""

    CONFIG_FILE = 1
    CONFIG_TEXT = 2
    HEADER = 3
    CLOSE = 4
    TEXT = 5
    ACQUISITION = 1008
    IMAGE = 1022
    WAVEFORM = 1026


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """Which reconstruction is wanted, by the name of a file on the server."""

    name: str


@dataclass(frozen=True, slots=True)
class ConfigText:
    """Which reconstruction is wanted, by the configuration itself."""

    text: str


@dataclass(frozen=True, slots=True)
class HeaderText:
    """The scan's header: XML."""

    xml: str


@dataclass(frozen=True, slots=True)
class Text:
    """Free text; "ERR" and "WRN" at its start make a scanner show it as error and warning."""

    text: str


@dataclass(frozen=True, slots=True)
class Close:
    """Nothing more is sent."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A message of a kind that is not taken: it has come, and nothing of it was kept."""

    identifier: Id


Message: TypeAlias = (
    ConfigFile | ConfigText | HeaderText | Text | Close | Acquisition | Image | Waveform
)


def _head(identifier: Id) -> bytes:
    return struct.pack("<H", identifier)


def _string(identifier: Id, text: str) -> bytes:
    encoded = text.encode() + b"\0"
    return _head(identifier) + struct.pack("<I", len(encoded)) + encoded


def serialise(message: Message) -> bytes:
    """Return a message's bytes.

    Raises:
        StreamError: The name of a configuration file is too long for its field.
    """
    match message:
        case ConfigFile():
            name = message.name.encode()
            if len(name) >= CONFIG_FILE_BYTES:
                raise StreamError(
                    f"The config's name is {len(name)} bytes long.",
                    f"It has room for {CONFIG_FILE_BYTES - 1}.",
                )
            return _head(Id.CONFIG_FILE) + name.ljust(CONFIG_FILE_BYTES, b"\0")
        case ConfigText():
            return _string(Id.CONFIG_TEXT, message.text)
        case HeaderText():
            return _string(Id.HEADER, message.xml)
        case Text():
            return _string(Id.TEXT, message.text)
        case Close():
            return _head(Id.CLOSE)
    own = {Acquisition: Id.ACQUISITION, Image: Id.IMAGE, Waveform: Id.WAVEFORM}[type(message)]
    stream = BytesIO()
    stream.write(_head(own))
    message.serialize_into(stream.write)
    return stream.getvalue()
