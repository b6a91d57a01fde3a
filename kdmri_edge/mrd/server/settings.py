"""What a server is told: names of its configuration, limits and times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kdmri_edge.data.orientation import Orientation
from kdmri_edge.errors import StreamError
from kdmri_edge.mrd.format.assembler import Capacity
from kdmri_edge.mrd.format.messages import ConfigFile, ConfigText, Text
from kdmri_edge.mrd.format.parser import Limits

__all__ = ["DEFAULT_CONFIGS", "Choice", "ServerSettings", "choose", "refine"]

DEFAULT_CONFIGS: Final = ("kdmri-edge", "openrecon")
FORMATS: Final = ("float", "int16")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """How a server behaves.

    Attributes:
        host: Address to listen at.
        port: TCP port; 0 takes a free one.
        configs: Names of configurations that it answers to, without suffix. OpenRecon asks every
            container for "openrecon".
        format: "float" or "int16"; a client's parameters may choose the other one.
        orientation: How images run to the readouts' directions, see `data.orientation`.
        sessions: Scans at once, from their headers on; more are refused in text.
        waiting: Connections that have sent no header yet. One more takes the place of the oldest.
        at_once: Slices of all scans that are reconstructed at a time.
        in_flight: Slices of one scan that are with the network or on their way back (`at_once` run,
            one waits, one is sent); one more waits for its turn, and no more of the scan is read.
        deadline_s: From a slice's last line to its image, before the zero-filled one is sent.
        opening_s: For a client to send its configuration and header.
        idle_s: Without any data from a client between two messages, before its scan is given up.
        slowest: Bytes per second within a message, below which its scan is given up after
            `opening_s`: a scanner pauses between messages, never within one.
        send_s: For a client to take one message, before its scan is given up.
        linger_s: How long what a client still sends is thrown away after its scan was ended, so
            that it can read why.
        limits: The largest messages.
        capacity: The largest slices.
    """

    host: str = "127.0.0.1"
    port: int = 9002
    configs: tuple[str, ...] = DEFAULT_CONFIGS
    format: str = "float"
    orientation: Orientation = Orientation.VENDOR
    sessions: int = 8
    waiting: int = 32
    at_once: int = 1
    in_flight: int = 3
    deadline_s: float = 5.0
    opening_s: float = 10.0
    idle_s: float = 600.0
    slowest: float = 1024.0
    send_s: float = 30.0
    linger_s: float = 5.0
    limits: Limits = field(default_factory=Limits)
    capacity: Capacity = field(default_factory=Capacity)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What a client chose.

    Attributes:
        int16: Whether images are sent as int16.
    """

    int16: bool


def choose(message: ConfigFile | ConfigText, settings: ServerSettings) -> Choice:
    """Take a client's configuration: a name, or JSON with `parameters` (as FIRE's).

    Raises:
        StreamError: It names a configuration that the server does not know. What was named is not
            repeated, since errors are logged.
    """
    given = message.name if isinstance(message, ConfigFile) else message.text
    chosen = Choice(int16=settings.format == "int16")
    parameters = _parameters(given)
    if parameters is None:
        _check_name(given, settings)
        return chosen
    if not _names(parameters):
        _check_name("", settings)
    return _apply(parameters, chosen, settings)


def refine(message: Text, chosen: Choice, settings: ServerSettings) -> Choice:
    """Take the parameters that FIRE and OpenRecon send as a text after the header.

    Other texts, and parameters that mean nothing here, change nothing.

    Raises:
        StreamError: They name another configuration, or a format that does not exist.
    """
    parameters = _parameters(message.text)
    return chosen if parameters is None else _apply(parameters, chosen, settings)


def _parameters(text: str) -> Mapping[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or nested without end
        return None
    if not isinstance(value, dict):
        return None
    inner = value.get("parameters", value)
    return inner if isinstance(inner, dict) else None


def _names(parameters: Mapping[str, Any]) -> list[str]:
    return [str(parameters[key]) for key in ("config", "customconfig") if parameters.get(key)]


def _apply(parameters: Mapping[str, Any], chosen: Choice, settings: ServerSettings) -> Choice:
    for name in _names(parameters):
        _check_name(name, settings)
    form = parameters.get("format")
    if form is None:
        return chosen
    if form not in FORMATS:
        raise StreamError("The format that was asked for is unknown.", f"It is one of {FORMATS}.")
    return Choice(int16=form == "int16")


def _bare(name: str) -> str:
    return name.strip().removesuffix(".xml").removesuffix(".json")


def _check_name(name: str, settings: ServerSettings) -> None:
    if _bare(name) not in map(_bare, settings.configs):
        raise StreamError(
            "The configuration that was asked for is unknown.",
            f"This server knows {', '.join(settings.configs)}.",
        )
