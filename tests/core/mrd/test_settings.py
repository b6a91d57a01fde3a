"""Which configurations a server answers to."""

from __future__ import annotations

import pytest

from kdmri_edge.errors import StreamError
from kdmri_edge.mrd.format.messages import ConfigFile, ConfigText, Text
from kdmri_edge.mrd.server.settings import Choice, ServerSettings, choose, refine

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
        ('{"parameters": {"other": true}}', FLOAT),
        ('{"parameters": {"format": "int16", "config": "openrecon"}}', INT16),
    ],
)
def test_parameters_after_the_header(text: str, chosen: Choice) -> None:
    assert refine(Text(text), FLOAT, ServerSettings()) == chosen


@pytest.mark.parametrize(
    "text", ['{"parameters": {"format": "jpeg"}}', '{"parameters": {"config": "other"}}']
)
def test_parameters_that_are_wrong(text: str) -> None:
    with pytest.raises(StreamError, match="unknown"):
        refine(Text(text), FLOAT, ServerSettings())
