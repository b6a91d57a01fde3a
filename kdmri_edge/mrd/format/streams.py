"""Files that hold a stream of the protocol's messages, as converters write it to a pipe or a file.

siemens_to_ismrmrd writes such files since its version 1.3, under any suffix: header, readouts, and
CLOSE at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ismrmrd import Acquisition, Image

from kdmri_edge.errors import DataError, StreamError
from kdmri_edge.mrd.format.messages import Close, HeaderText, Message
from kdmri_edge.mrd.format.parser import Parser

__all__ = ["stream_header", "stream_readouts"]

_CHUNK: Final = 1 << 20


def _messages(path: Path) -> Iterator[Message]:
    """Yield the messages of a file until CLOSE, or its end.

    Raises:
        DataError: It cannot be read, or ends within a message.
    """
    parser = Parser()
    try:
        with path.open("rb") as file:
            while data := file.read(_CHUNK):
                parser.feed(data)
                for message in parser.messages():
                    if isinstance(message, Close):
                        return
                    yield message
        parser.finish()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}).", "Check the file and its rights."
        ) from None
    except StreamError as error:
        raise DataError(
            f"{path} is an MRD stream that cannot be followed: {error.what}",
            "The file is damaged or cut short: copy it again.",
        ) from None


def stream_header(path: Path) -> str:
    """Return the XML header of a stream.

    Raises:
        DataError: See `_messages`; or data comes before a header, or none does.
    """
    for message in _messages(path):
        if isinstance(message, HeaderText):
            return message.xml
        if isinstance(message, Acquisition | Image):
            break
    raise DataError(f"{path} is an MRD stream without a header.", "Convert the scan again.")


def stream_readouts(path: Path) -> Iterator[Acquisition]:
    """Yield the readouts of a stream; other messages than the header are passed over.

    Raises:
        DataError: See `_messages`; or it holds images and no readout.
    """
    readouts, images = 0, 0
    for message in _messages(path):
        if isinstance(message, Acquisition):
            readouts += 1
            yield message
        images += isinstance(message, Image)
    if images and not readouts:
        raise DataError(
            f"{path} is an MRD stream of {images} images, without readouts.",
            "Save them as an MRD file (HDF5), as `kdmri-edge send` does.",
        )
