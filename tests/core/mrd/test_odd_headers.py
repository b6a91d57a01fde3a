"""Headers and configurations of a stream that make no sense: one sentence, no defect of ours."""

from __future__ import annotations

import pytest

from kdmri_edge.errors import DataError, StreamError
from kdmri_edge.mrd.format.header import Encoding, read_encoding, write_encoding
from kdmri_edge.mrd.format.messages import ConfigText, Text
from kdmri_edge.mrd.server.settings import Choice, ServerSettings, choose, refine

XML = write_encoding(
    Encoding(lines=32, samples=64, width=32, rows=32, fov_mm=(200, 200, 4), centre=16, first=0,
             last=31)
)  # fmt: skip


@pytest.mark.parametrize("value", ["1e308", "-1e308", "1e999", "nan", "9" * 6000, "", "x"])
@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_fields_of_view_that_no_scanner_has(value: str, axis: str) -> None:
    whole = XML.index("fieldOfView_mm")
    begin = XML.index(f"{axis}>", whole) + 2
    end = XML.index("</", begin)
    with pytest.raises(DataError):
        read_encoding(XML[:begin] + value + XML[end:])


@pytest.mark.parametrize(
    "xml", [b"", b"\0", b"\xff\xfe<", b"<a>" * 100_000, b"<ismrmrdHeader/>", b"{}", b"<\xe9/>"]
)
def test_what_is_no_header(xml: bytes) -> None:
    with pytest.raises(DataError):
        read_encoding(xml)


@pytest.mark.parametrize("part", ["encodedSpace", "reconSpace", "encoding", "trajectory"])
def test_headers_without_a_part(part: str) -> None:
    begin, end = XML.index(f"<{part}"), XML.index(f"</{part}>") + len(part) + 3
    with pytest.raises(DataError):
        read_encoding(XML[:begin] + XML[end:])


def test_parameters_nested_too_deeply_are_no_parameters() -> None:
    deep = '{"parameters":' * 100_000
    with pytest.raises(StreamError, match="unknown"):
        choose(ConfigText(deep), ServerSettings())
    kept = Choice(int16=True)
    assert refine(Text(deep), kept, ServerSettings()) is kept
