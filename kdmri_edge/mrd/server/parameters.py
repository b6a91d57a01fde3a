"""A client's parameters, as JSON or as XML: what the FIRE and OpenRecon interfaces send.

    {"parameters": {"config": "kdmri-edge", "format": "int16"}}

    <configuration name="kdmri-edge">
      <parameters>
        <format>int16</format>
        <parameter name="format" value="int16"/>
        <parameter><name>format</name><value>int16</value></parameter>
      </parameters>
    </configuration>

All of these say the same; `property` stands for `parameter` as well. A text is nothing more than
values by name here: nothing in it is executed, opened or looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from xml.etree import ElementTree

from kdmri_edge.data.formats.mrd_header import header_elements
from kdmri_edge.errors import DataError
from kdmri_edge.utils.files import finite_json

__all__ = ["parameters_of", "shown"]

_MOST: Final = 256  # parameters of one text
_SHOWN: Final = 8  # of their names that are repeated
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}")
_NAMED: Final = ("parameter", "property")
_CONFIG: Final = "config"


def parameters_of(text: str) -> Mapping[str, Any] | None:
    """Return what a text sets, by name; None where it is neither JSON nor XML of parameters."""
    if text.lstrip("\ufeff \t\r\n").startswith("<"):
        return _of_xml(text.lstrip("\ufeff \t\r\n"))
    try:
        value = finite_json(text)
    except (ValueError, RecursionError):  # no JSON, not finite, or nested without end
        return None
    if not isinstance(value, dict):
        return None
    inner = value.get("parameters", value)
    return inner if isinstance(inner, dict) else None


def _of_xml(text: str) -> Mapping[str, Any] | None:
    try:
        root = header_elements(text)  # which refuses entities
    except (DataError, SyntaxError, ValueError):
        return None
    found: dict[str, Any] = {}
    if "name" in root.attrib:
        found[_CONFIG] = root.attrib["name"].strip()
    _collect(root, found)
    return found


def _collect(root: ElementTree.Element, found: dict[str, Any]) -> None:
    """Collect the leaves below an element, without recursion: texts may nest without end."""
    waiting = list(reversed(root))
    while waiting and len(found) < _MOST:
        element = waiting.pop()
        if element.tag in _NAMED:
            name = element.get("name") or element.findtext("name")
            value = element.get("value") or element.findtext("value") or element.text
            if name:
                found[name.strip()] = (value or "").strip()
        elif len(element):
            waiting.extend(reversed(element))
        else:
            name = _CONFIG if element.tag == "name" else element.tag
            found[name] = (element.text or element.get("value") or "").strip()


def shown(names: Iterable[str]) -> tuple[str, ...]:
    """Return names that may be repeated in texts and logs: few, short, and plain words."""
    plain = [name for name in names if _NAME.fullmatch(name)]
    return tuple(sorted(plain)[:_SHOWN])
