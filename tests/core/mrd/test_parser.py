"""The stream's parser: bytes in, messages out, whatever the pieces and whatever the bytes."""

from __future__ import annotations

import struct
from itertools import pairwise

import ismrmrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_edge.errors import StreamError
from kdmri_edge.mrd.format.messages import (
    Close,
    ConfigFile,
    ConfigText,
    HeaderText,
    Id,
    Message,
    Skipped,
    Text,
    serialise,
)
from kdmri_edge.mrd.format.parser import Limits, Order, Parser

RNG = np.random.default_rng(0)
LINE = RNG.standard_normal((3, 16)).astype(np.float32)
ACQUISITION = ismrmrd.Acquisition.from_array(
    (LINE + 1j * LINE[::-1]).astype(np.complex64), trajectory=LINE[:2, :16].T.copy()
)
IMAGE = ismrmrd.Image.from_array(LINE[:, :8])
IMAGE.meta = {"Fallback": "none", "ImageComment": ["a", "b"]}
WAVEFORM = ismrmrd.Waveform.from_array(np.arange(12, dtype=np.uint32).reshape(3, 4))
ALL: list[Message] = [
    ConfigFile("kdmri-edge"),
    ConfigText("{}"),
    HeaderText("<ismrmrdHeader/>"),
    Text("ä text"),
    ACQUISITION,
    IMAGE,
    WAVEFORM,
    Close(),
]
STREAM = b"".join(serialise(message) for message in ALL)


def parsed(stream: bytes, cuts: list[int]) -> list[Message]:
    parser, found = Parser(), []
    edges = [0, *sorted(cuts), len(stream)]
    for start, stop in pairwise(edges):
        parser.feed(stream[start:stop])
        found += list(parser.messages())
    parser.finish()
    return found


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_round_trip_in_any_pieces(cuts: list[int]) -> None:
    assert parsed(STREAM, cuts) == ALL


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(STREAM) - 1))
def test_a_truncated_stream_is_told_from_a_whole_one(length: int) -> None:
    boundaries = np.cumsum([0, *(len(serialise(message)) for message in ALL)])
    parser = Parser()
    parser.feed(STREAM[:length])
    assert len(list(parser.messages())) == np.searchsorted(boundaries, length, "right") - 1
    if length in boundaries:
        parser.finish()
    else:
        with pytest.raises(StreamError, match="ended within"):
            parser.finish()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=600), st.sampled_from(list(Id)))
def test_noise_gives_messages_or_one_error(noise: bytes, identifier: Id) -> None:
    """No other exception, and no more memory than was fed."""
    parser = Parser(Limits(image=4096, acquisition=4096, waveform=4096))
    parser.feed(struct.pack("<H", identifier) + noise)
    try:
        for _ in parser.messages():
            pass
    except StreamError:
        pass
    assert parser.held <= len(noise) + 2


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(STREAM) - 1), st.integers(0, 255))
def test_a_flipped_byte_gives_messages_or_one_error(place: int, value: int) -> None:
    broken = bytearray(STREAM)
    broken[place] = value
    parser = Parser(Limits(image=1 << 16, acquisition=1 << 16, waveform=1 << 16))
    parser.feed(bytes(broken))
    try:
        for _ in parser.messages():
            pass
        parser.finish()
    except StreamError:
        pass


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_what_nobody_takes_is_not_kept(cuts: list[int]) -> None:
    """Whatever the pieces, only that it came is left, and others come out whole."""
    parser, found = Parser(skips=(Id.IMAGE, Id.WAVEFORM)), []
    longest = max(len(serialise(m)) for m in ALL if m is not IMAGE and m is not WAVEFORM)
    for start, stop in pairwise([0, *sorted(cuts), len(STREAM)]):
        parser.feed(STREAM[start:stop])
        found += list(parser.messages())
        assert parser.held < longest
    parser.finish()
    kinds = [type(message) for message in found]
    assert kinds == [Skipped if m is IMAGE or m is WAVEFORM else type(m) for m in ALL]
    skipped = [message for message in found if isinstance(message, Skipped)]
    assert skipped == [Skipped(Id.IMAGE), Skipped(Id.WAVEFORM)]


def test_a_skipped_message_is_refused_and_missed_like_others() -> None:
    parser = Parser(Limits(image=1 << 12), skips=(Id.IMAGE,))
    whole = serialise(IMAGE)
    parser.feed(whole[:-1])
    assert list(parser.messages()) == []
    assert (parser.held, parser.under_way) == (0, len(whole) - 1)
    with pytest.raises(StreamError, match="ended within message IMAGE"):
        parser.finish()
    parser.feed(whole[-1:] + _claim("image"))
    with pytest.raises(StreamError, match=r"IMAGE claims \d+ bytes"):
        list(parser.messages())


def _claim(kind: str) -> bytes:
    if kind == "text":
        return struct.pack("<HI", Id.TEXT, 10**9)
    if kind == "header":
        return struct.pack("<HI", Id.HEADER, 10**9)
    if kind == "acquisition":
        head = ismrmrd.AcquisitionHeader()
        head.number_of_samples, head.active_channels = 65535, 15260  # 10^9 samples
        return struct.pack("<H", Id.ACQUISITION) + bytes(head)
    if kind == "waveform":
        wave = ismrmrd.waveform.WaveformHeader()
        wave.number_of_samples, wave.channels = 65535, 15260
        return struct.pack("<H", Id.WAVEFORM) + bytes(wave)
    picture = ismrmrd.ImageHeader()
    picture.data_type, picture.channels = ismrmrd.DATATYPE_FLOAT, 1
    attributes = 10**9 if kind == "attributes" else 0
    picture.matrix_size[:] = (1, 1, 1) if attributes else (1000, 1000, 1000)
    return struct.pack("<H", Id.IMAGE) + bytes(picture) + struct.pack("<Q", attributes)


@pytest.mark.parametrize(
    "kind", ["text", "header", "acquisition", "waveform", "image", "attributes"]
)
def test_a_claim_of_a_billion_is_refused_from_the_fixed_part_alone(kind: str) -> None:
    parser = Parser()
    parser.feed(_claim(kind))
    with pytest.raises(StreamError, match=r"claims \d+ bytes"):
        list(parser.messages())


def test_unknown_identifier() -> None:
    parser = Parser()
    parser.feed(struct.pack("<H", 4242))
    with pytest.raises(StreamError, match="identifier 4242 is unknown"):
        list(parser.messages())


def test_half_a_header_of_an_acquisition() -> None:
    parser = Parser()
    parser.feed(serialise(ACQUISITION)[:150])
    assert list(parser.messages()) == []
    with pytest.raises(StreamError, match="ended within"):
        parser.finish()


def test_text_that_is_not_utf8() -> None:
    parser = Parser()
    parser.feed(struct.pack("<HI", Id.TEXT, 2) + b"\xff\xfe")
    with pytest.raises(StreamError, match="TEXT cannot be decoded"):
        list(parser.messages())


def test_the_name_of_a_config_has_room_for_1023_bytes() -> None:
    assert parsed(serialise(ConfigFile("x" * 1023)), []) == [ConfigFile("x" * 1023)]
    with pytest.raises(StreamError, match="1024 bytes long"):
        serialise(ConfigFile("x" * 1024))


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([ACQUISITION], "acquisition came before the header"),
        ([ConfigFile("a"), WAVEFORM], "waveform came before the header"),
        ([ConfigFile("a"), Skipped(Id.IMAGE)], "image came before the header"),
        ([HeaderText("")], "header came before the configuration"),
        ([ConfigFile("a"), ConfigText("b")], "second configuration"),
        ([ConfigFile("a"), HeaderText(""), HeaderText("")], "second header"),
    ],
)
def test_messages_out_of_order(messages: list[Message], said: str) -> None:
    order = Order()
    for message in messages[:-1]:
        order.take(message)
    with pytest.raises(StreamError, match=said):
        order.take(messages[-1])


def test_the_usual_order() -> None:
    order = Order()
    for message in [ConfigFile("a"), HeaderText(""), Text("{}"), ACQUISITION, WAVEFORM, Close()]:
        order.take(message)
