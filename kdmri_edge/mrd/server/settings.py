"""What a server is told: names of its configuration, limits and times."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kdmri_edge.data.orientation import Orientation
from kdmri_edge.errors import StreamError
from kdmri_edge.mrd.format.assembler import Capacity
from kdmri_edge.mrd.format.messages import ConfigFile, ConfigText, Text
from kdmri_edge.mrd.format.parser import Limits
from kdmri_edge.mrd.server.parameters import parameters_of, shown
from kdmri_edge.runtime.certificate import Policies

__all__ = [
    "DEFAULT_CONFIGS",
    "SAVES",
    "Choice",
    "ServerSettings",
    "check_default",
    "choose",
    "refine",
]

DEFAULT_CONFIGS: Final = ("kdmri-edge", "openrecon")
SAVES: Final = "savedataonly"
"""The configuration that records a scan and sends no image, as public servers call it."""
FORMATS: Final = ("float", "int16")
PARAMETERS: Final = ("config", "customconfig", "format", "undersample")
"""What a client may set."""
_REPEATED: Final = 16  # names of other ones that a scan is told
_TRUTH: Final = {
    "true": True, "yes": True, "on": True, "1": True,
    "false": False, "no": False, "off": False, "0": False, "": False,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """How a server behaves.

    Attributes:
        host: Address to listen at.
        port: TCP port; 0 takes a free one.
        configs: Names of configurations that it answers to, without suffix. OpenRecon asks every
            container for "openrecon".
        default_config: What other names stand for; None for an error.
        records: Scans are recorded, and `savedataonly` is a configuration.
        format: "float" or "int16"; a client's parameters may choose the other one.
        interpolate: Follow headers that ask for a finer matrix than is encoded.
        pass_images: Images that no network takes are sent back as they came, flagged.
        policies: What becomes of slices outside their network's scope, or perhaps outside; the
            networks do it, and images that are refused are not sent.
        orientation: How images run to the readouts' directions, see `data.orientation`.
        sessions: Scans at once, from their headers on; more are refused in text.
        waiting: Connections that have sent no header yet. One more takes the place of the oldest.
        at_once: Slices of all scans that are reconstructed at a time.
        reuse_coils: Estimate coil sensitivities once at each place, for all repetitions, contrasts,
            phases and sets of a scan.
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
    default_config: str | None = None
    records: bool = False
    format: str = "float"
    interpolate: bool = True
    pass_images: bool = False
    policies: Policies = field(default_factory=Policies)
    orientation: Orientation = Orientation.VENDOR
    sessions: int = 8
    waiting: int = 32
    at_once: int = 1
    reuse_coils: bool = False
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
        saves: Whether the scan is recorded, and nothing else.
        undersample: Whether images are fully sampled, and the network's mask is tried on them.
        defaulted: Whether another configuration was asked for than this one.
        unknown: Names of parameters that mean nothing here.
    """

    int16: bool
    saves: bool = False
    undersample: bool = False
    defaulted: bool = False
    unknown: tuple[str, ...] = ()


def choose(message: ConfigFile | ConfigText, settings: ServerSettings) -> Choice:
    """Take a client's configuration: a name, or JSON or XML of parameters, as FIRE sends them.

    Raises:
        StreamError: It names a configuration that the server does not know, and there is no default
            one. What was named is not repeated, since errors are logged.
    """
    given = message.name if isinstance(message, ConfigFile) else message.text
    chosen = Choice(int16=settings.format == "int16")
    parameters = parameters_of(given)
    if parameters is None:
        return _named(given, chosen, settings)
    if not _names(parameters):
        chosen = _named("", chosen, settings)
    return _apply(parameters, chosen, settings)


def refine(message: Text, chosen: Choice, settings: ServerSettings) -> Choice:
    """Take the parameters that FIRE and OpenRecon send as a text after the header.

    Other texts, and parameters that mean nothing here, change nothing.

    Raises:
        StreamError: They name another configuration, or a format that does not exist.
    """
    parameters = parameters_of(message.text)
    return chosen if parameters is None else _apply(parameters, chosen, settings)


def _names(parameters: Mapping[str, Any]) -> list[str]:
    given = (parameters.get(key) for key in ("config", "customconfig"))
    return [value if isinstance(value, str) else "?" for value in given if value]


def _apply(parameters: Mapping[str, Any], chosen: Choice, settings: ServerSettings) -> Choice:
    for name in _names(parameters):
        chosen = _named(name, chosen, settings)
    if len(chosen.unknown) < _REPEATED:
        unknown = {*chosen.unknown, *shown(key for key in parameters if key not in PARAMETERS)}
        chosen = dataclasses.replace(chosen, unknown=tuple(sorted(unknown)))
    if (form := parameters.get("format")) is not None:
        if form not in FORMATS:
            raise StreamError(
                "The format that was asked for is unknown.", f"It is one of {FORMATS}."
            )
        chosen = dataclasses.replace(chosen, int16=form == "int16")
    if (wanted := parameters.get("undersample")) is not None:
        known = _TRUTH.get(str(wanted).lower()) if isinstance(wanted, str | int) else None
        if known is None:
            raise StreamError("Whether to undersample is neither yes nor no.", "Say true or false.")
        chosen = dataclasses.replace(chosen, undersample=known)
    return chosen


def check_default(name: str | None, configs: Sequence[str], *, records: bool) -> None:
    """Refuse a default configuration that is none.

    Args:
        name: What other names are to stand for; None for nothing.
        configs: Names that the server answers to.
        records: Whether it records scans.

    Raises:
        StreamError: It is not among them.
    """
    known = [*configs, *([SAVES] if records else [])]
    if name is not None and _bare(name) not in map(_bare, known):
        more = "" if records else f" {SAVES} needs --record."
        raise StreamError(
            f"The default configuration {name!r} is none of this server.",
            f"It is one of {', '.join(known)}.{more}",
        )


def _bare(name: str) -> str:
    return name.strip().removesuffix(".xml").removesuffix(".json")


def _named(name: str, chosen: Choice, settings: ServerSettings) -> Choice:
    """Return what is chosen by a name, or by the default one.

    Raises:
        StreamError: The name is unknown, and there is no default.
    """
    bare, default = _bare(name), settings.default_config
    known = [*map(_bare, settings.configs), *([SAVES] if settings.records else [])]
    defaulted = bare not in known
    if defaulted and default is not None:
        bare = _bare(default)
    if bare in known:
        return dataclasses.replace(chosen, saves=bare == SAVES, defaulted=defaulted)
    if bare == SAVES:
        raise StreamError("This server records no scans.", "Start it with --record.")
    raise StreamError(
        "The configuration that was asked for is unknown.",
        f"This server knows {', '.join(settings.configs)}.",
    )
