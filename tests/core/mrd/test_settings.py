"""Which configurations a server answers to."""

from __future__ import annotations

import dataclasses

import pytest

from kdmri_edge.errors import StreamError
from kdmri_edge.mrd.format.messages import ConfigFile, ConfigText, Text
from kdmri_edge.mrd.server.parameters import shown
from kdmri_edge.mrd.server.settings import Choice, ServerSettings, choose, refine

IN_XML = """<?xml version="1.0"?>
<configuration xmlns="http://www.siemens.com/fire">
  <parameters><config>kdmri-edge</config>{}</parameters>
</configuration>"""
PAIR = "<parameter><name>format</name><value>int16</value></parameter>"
FLOAT, INT16 = Choice(int16=False), Choice(int16=True)


@pytest.mark.parametrize(
    ("message", "chosen"),
    [
        (ConfigFile("kdmri-edge"), FLOAT),
        (ConfigFile("kdmri-edge.xml"), FLOAT),
        (ConfigFile("openrecon"), FLOAT),
        (ConfigText("kdmri-edge"), FLOAT),
        (ConfigText('{"config": "kdmri-edge"}'), FLOAT),
        (ConfigText('{"parameters": {"config": "kdmri-edge", "format": "int16"}}'), INT16),
        (ConfigText("<configuration name='kdmri-edge'/>"), FLOAT),
        (ConfigText("<configuration><name>openrecon</name></configuration>"), FLOAT),
        (ConfigText(IN_XML.format("<format>int16</format>")), INT16),
        (ConfigText(IN_XML.format("<parameter name='format' value='int16'/>")), INT16),
        (ConfigText(IN_XML.format("<parameter name='format'>int16</parameter>")), INT16),
        (ConfigText("\ufeff\n" + IN_XML.format(PAIR)), INT16),
        (ConfigText(IN_XML.format(PAIR.replace("parameter", "property"))), INT16),
    ],
)
def test_known(message: ConfigFile | ConfigText, chosen: Choice) -> None:
    assert choose(message, ServerSettings()) == chosen


@pytest.mark.parametrize(
    "message",
    [
        ConfigFile(""),
        ConfigFile("invertcontrast"),
        ConfigText("<configuration/>"),
        ConfigText("5"),
        ConfigText("{}"),
        ConfigText('{"parameters": {"format": "int16"}}'),
        ConfigText('{"config": "kdmri-edge", "customconfig": "other"}'),
    ],
)
def test_unknown(message: ConfigFile | ConfigText) -> None:
    with pytest.raises(StreamError, match=r"unknown.*knows kdmri-edge, openrecon"):
        choose(message, ServerSettings())


def test_names_of_ones_own() -> None:
    settings = ServerSettings(configs=("brain.xml",), format="int16")
    assert choose(ConfigFile("brain"), settings) == INT16
    with pytest.raises(StreamError, match=r"knows brain\.xml"):
        choose(ConfigFile("kdmri-edge"), settings)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("hello", FLOAT),
        ("7", FLOAT),
        ('{"parameters": {"other": true}}', Choice(int16=False, unknown=("other",))),
        ("<parameters><format>int16</format></parameters>", INT16),
        ("<p><b c='d'/><e f='1'>g</e></p>", Choice(int16=False, unknown=("b", "e"))),
        ("<p><undersample>on</undersample></p>", Choice(int16=False, undersample=True)),
        ('{"undersample": false}', FLOAT),
        ('{"parameters": {"format": "int16", "config": "openrecon"}}', INT16),
    ],
)
def test_parameters_after_the_header(text: str, chosen: Choice) -> None:
    assert refine(Text(text), FLOAT, ServerSettings()) == chosen


@pytest.mark.parametrize(
    "text",
    [
        '{"parameters": {"format": "jpeg"}}',
        '{"parameters": {"config": "other"}}',
        "<p><format>jpeg</format></p>",
        "<p><customconfig>other</customconfig></p>",
    ],
)
def test_parameters_that_are_wrong(text: str) -> None:
    with pytest.raises(StreamError, match="unknown"):
        refine(Text(text), FLOAT, ServerSettings())


NESTED = "[" * 900 + "]" * 900


@pytest.mark.parametrize("value", ['"perhaps"', "7", "[]", "{}", "1.0", NESTED])
def test_a_truth_that_is_none(value: str) -> None:
    with pytest.raises(StreamError, match="neither yes nor no"):
        refine(Text(f'{{"undersample": {value}}}'), FLOAT, ServerSettings())


@pytest.mark.parametrize("value", ["7", "[1]", '{"a": 1}', "true", NESTED])
def test_a_name_that_is_no_text(value: str) -> None:
    for text in (f'{{"config": {value}}}', f'{{"parameters": {{"config": {value}}}}}'):
        with pytest.raises(StreamError, match="is unknown"):
            choose(ConfigText(text), ServerSettings())


@pytest.mark.parametrize(
    "text",
    [
        "<",
        "<a>",
        "<a>" * 50_000,
        "<a>" * 50_000 + "</a>" * 50_000,
        "<!DOCTYPE a [<!ENTITY b '" + "c" * 100 + "'>]><a><config>&b;</config></a>",
        '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        '<?xml version="1.0" encoding="UTF-16"?><a/>',
        "<a>&#0;</a>",
        "<configuration>" + "<parameter name='x'/>" * 10_000 + "</configuration>",
        "<a" + "".join(f" b{n}='c'" for n in range(10_000)) + "/>",
    ],
)
def test_xml_that_wishes_ill_is_an_unknown_configuration(text: str) -> None:
    with pytest.raises(StreamError, match="is unknown"):
        choose(ConfigText(text), ServerSettings())
    kept = refine(Text(text), FLOAT, ServerSettings())
    assert dataclasses.replace(kept, unknown=()) == FLOAT
    assert len(kept.unknown) <= 8


def test_names_are_repeated_where_they_are_plain_and_few() -> None:
    given = {
        "Doe, John": 1,
        "a" * 41: 1,
        "\x1b[31m": 1,
        "tau": 1,
        **{f"p{n}": 1 for n in range(20)},
    }
    assert len(shown(given)) == 8
    assert set(shown(given)) < {*(f"p{n}" for n in range(20))}
    assert shown(["Doe, John", "tau"]) == ("tau",)
