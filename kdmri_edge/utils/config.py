"""Typed settings: frozen dataclasses filled from TOML and from `--set key=value`.

Fields that are dataclasses themselves are groups: tables in TOML, `group.key` on the command line.
A field of texts by text is a table as well, of which one entry is `group.key.NAME`; names may have
dots.
A field's metadata may hold `minimum` and `maximum`; what a key means is said once, under
`Attributes:` in the docstring of its class.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import textwrap
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar, get_args, get_origin, get_type_hints

from kdmri_edge.errors import RecipeError
from kdmri_edge.utils.suggest import nearest

__all__ = [
    "Key",
    "as_toml",
    "build",
    "known_keys",
    "nested",
    "override",
    "plain",
    "read_toml",
    "rename",
]

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        RecipeError: Missing file or invalid TOML.
    """
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        raise RecipeError(f"Recipe file {path} does not exist.", "Check the path.") from None
    # beside its own error the parser lets through those of numbers, encodings and deep nesting
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is not valid TOML ({error}).", "Correct the file.") from error


def override(
    values: Mapping[str, Any], assignments: Iterable[str], *, tables: Collection[str] = ()
) -> dict[str, Any]:
    """Apply `key=value` assignments on top of `values`; a value is read as TOML, else as text.

    Args:
        values: By key, those of groups as `group.key`.
        assignments: What `--set` was given.
        tables: Keys that are tables of texts, whose entries are read as texts without quotation
            marks: the name "0.10" would be a number otherwise.

    Raises:
        RecipeError: An assignment without "=".
    """
    result = dict(values)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise RecipeError(
                f"--set {assignment!r} has no '='.", "Write --set key=value, e.g. --set seed=1."
            )
        try:
            read = tomllib.loads(f"value = {text}")
        except (ValueError, RecursionError):
            read = {}
        entry = any(key.strip().startswith(f"{table}.") for table in tables)
        # More than the value: a text of several lines that happens to be TOML.
        known = len(read) == 1 and (not entry or isinstance(read["value"], str))
        result[key.strip()] = read["value"] if known else text.strip()
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One setting.

    Attributes:
        name: Its key, that of a group's as `group.key`.
        kind: Its type.
        default: Its default; `dataclasses.MISSING` where it must be given.
        minimum: Smallest value; None for no limit.
        maximum: Largest value; None for no limit.
        description: What its class says of it.
    """

    name: str
    kind: Any
    default: Any
    minimum: float | None
    maximum: float | None
    description: str

    @property
    def values(self) -> str:
        """What may be given, in words."""
        if get_origin(self.kind) is dict:
            return "table of texts"
        if get_origin(self.kind) is tuple:
            item = get_args(self.kind)[0]
            return f"list of {item.words if hasattr(item, 'words') else _WORDS[item] + 's'}"
        if issubclass(self.kind, StrEnum):
            return " | ".join(self.kind)
        word = _WORDS[self.kind]
        if self.minimum is None:
            return word
        if self.maximum is None:
            return f"{word}, at least {self.minimum:g}"
        return f"{word}, {self.minimum:g} to {self.maximum:g}"


_WORDS: Final = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def known_keys(cls: type) -> dict[str, Key]:
    """Return the keys of a settings dataclass, those of its groups as `group.key`."""
    found = {}
    hints, texts = get_type_hints(cls), _descriptions(cls)
    for field in fields(cls):
        kind = hints[field.name]
        if is_dataclass(kind):
            assert isinstance(kind, type)
            for name, key in known_keys(kind).items():
                found[f"{field.name}.{name}"] = replace(key, name=f"{field.name}.{name}")
            continue
        found[field.name] = Key(
            name=field.name,
            kind=kind,
            default=_default(field),
            minimum=field.metadata.get("minimum"),
            maximum=field.metadata.get("maximum"),
            description=texts.get(field.name, ""),
        )
    return found


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _descriptions(cls: type) -> dict[str, str]:
    """Return what the docstring of a class says of its attributes (none under `python -OO`)."""
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    entries = re.split(r"^(\w+): ", textwrap.dedent(section.partition("\n\n")[0]), flags=re.M)
    return {
        name: " ".join(text.split())
        for name, text in zip(entries[1::2], entries[2::2], strict=True)
    }


def plain(settings: Any) -> dict[str, Any]:
    """Return a settings object as JSON values by key, those of groups as `group.key`."""
    found: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            found |= {f"{field.name}.{name}": own for name, own in plain(value).items()}
        else:
            found[field.name] = _plain_value(value)
    return found


def _plain_value(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return [_plain_value(one) for one in value]
    return value.plain() if hasattr(value, "plain") else value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by `group.key` as a table for each group."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        group, dot, key = name.partition(".")
        if dot:
            result.setdefault(group, {})[key] = value
        else:
            result[name] = value
    return result


def _flat(cls: type, values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return values by key, with `group.key` for those in tables or written so."""
    groups = {name for name, kind in get_type_hints(cls).items() if is_dataclass(kind)}
    result: dict[str, Any] = {}
    for name, value in values.items():
        if name not in groups:
            own = {name: value}
        elif isinstance(value, Mapping):
            own = {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            raise RecipeError(
                f"{name!r} of {source} is a group of keys.", f"Name one of them as {name}.KEY."
            )
        result |= own
    return result


def rename(
    cls: type, values: Mapping[str, Any], former: Mapping[str, str], source: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return values by today's keys, and which former names were used.

    Args:
        cls: The settings dataclass.
        values: Plain values by key, or by table and key.
        former: Today's keys by their former names.
        source: What to call the values' origin in messages.

    Returns:
        The values by key, with `group.key` for those of groups; and of the former names that were
        used, today's.

    Raises:
        RecipeError: A key is given under both of its names.
    """
    flat = _flat(cls, values, source)
    used = {name: former[name] for name in flat if name in former}
    for old, new in used.items():
        if new in flat:
            raise RecipeError(
                f"{source} gives both {old!r} and {new!r}.",
                f"Keep {new!r}: the other is its former name.",
            )
    return {former.get(name, name): value for name, value in flat.items()}, used


@dataclass(frozen=True)
class _Place:
    """Where a value came from, for messages."""

    source: str
    key: str

    def error(self, problem: str, remedy: str) -> RecipeError:
        return RecipeError(f"{self.key!r} of {self.source} {problem}.", remedy)


def build(
    cls: type[T],
    values: Mapping[str, Any],
    source: str,
    *,
    other_words: Mapping[str, str] = MappingProxyType({}),
    listing: str = "",
) -> T:
    """Make a settings dataclass from plain values, checking names, types and ranges.

    Args:
        cls: A frozen dataclass whose fields are int, float, bool, str or StrEnum, tuples of
            one of them, tables of texts (`dict[str, str]`), or groups (dataclasses) of such fields.
            Tuples may also be of a class with `words`, what may be given; `read`, which makes one
            of a plain value or raises ValueError with the remedy; and `plain`, which returns it.
        values: Plain values by field name, those of groups in tables or as `group.key`.
        source: What to call their origin in messages, such as a file name.
        other_words: Keys by words that other programs have for them, to suggest.
        listing: Command that lists all keys.

    Raises:
        RecipeError: Unknown key (the nearest is named), wrong type or value out of range.
    """
    known = known_keys(cls)
    clean: dict[str, Any] = {}
    for name, value in _joined(_flat(cls, values, source), known, source).items():
        place = _Place(source, name)
        if name not in known:
            near = _nearest(name, known, other_words)
            remedies = [f"Did you mean {near!r}?"] if near else []
            remedies += [f"All keys: {listing}."] if listing else []
            raise place.error("is not a known key", " ".join(remedies) or "Leave it out.")
        clean[name] = _convert(value, known[name].kind, place)
        _check_range(clean[name], known[name], place)
    missing = [
        key.name for key in known.values() if key.default is MISSING and key.name not in clean
    ]
    if missing:
        raise RecipeError(f"{source} lacks the key {missing[0]!r}.", "Add it.")
    return _made(cls, nested(clean))


def _joined(values: Mapping[str, Any], known: Mapping[str, Key], source: str) -> dict[str, Any]:
    """Return values with the entries of tables, written as `table.NAME`, in their tables."""
    result = dict(values)
    for table in (name for name, key in known.items() if get_origin(key.kind) is dict):
        entries = {name: result.pop(name) for name in values if name.startswith(f"{table}.")}
        if not entries and not isinstance(result.get(table), Mapping):
            continue
        whole = result.get(table, {})
        if not isinstance(whole, Mapping):
            raise _Place(source, table).error(f"is {whole!r}", _ENTRIES)
        added = {name.removeprefix(f"{table}."): value for name, value in entries.items()}
        result[table] = _dotted({**whole, **added})
    return result


def _dotted(table: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return the entries of a table by their whole names: TOML reads a.b = "c" as a table a."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        inner = isinstance(value, Mapping)
        found |= _dotted(value, f"{before}{name}.") if inner else {f"{before}{name}": value}
    return found


def _made(cls: type[T], values: Mapping[str, Any]) -> T:
    hints = get_type_hints(cls)
    return cls(
        **{
            name: _made(hints[name], value) if is_dataclass(hints[name]) else value
            for name, value in values.items()
        }
    )


# Of two names below which the one is no slip of the pen for the other.
_LIKENESS: Final = 0.6


def _nearest(name: str, known: Mapping[str, Key], other_words: Mapping[str, str]) -> str | None:
    """Return the key that an unknown one may mean, by another word for it or by spelling."""
    group, _, last = name.rpartition(".")
    if last.lower() in other_words:
        return other_words[last.lower()]
    if group:
        return nearest(name, known, likeness=_LIKENESS)
    # Who knows a key's own name need not know its group.
    keys = {key.rpartition(".")[2]: key for key in known}
    near = nearest(name, keys, likeness=_LIKENESS)
    return None if near is None else keys[near]


_ENTRIES: Final = 'Give a table of texts, e.g. {"encoder.0" = "encoder.1"}.'


def _convert(value: Any, kind: Any, place: _Place) -> Any:
    if get_origin(kind) is dict:
        if not isinstance(value, Mapping) or not all(isinstance(v, str) for v in value.values()):
            raise place.error(f"is {value!r}", _ENTRIES)
        return dict(value)
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if not isinstance(value, list | tuple):
            if item is str:
                raise place.error(f"is {value!r}", 'Give a list of texts, e.g. ["head", "tail"].')
            words = getattr(item, "words", item.__name__)
            raise place.error(f"is {value!r}", f"Give a list of {words}, e.g. [1, 2].")
        return tuple(_convert(one, item, place) for one in value)
    if hasattr(kind, "read"):
        try:
            return kind.read(value)
        except ValueError as error:
            raise place.error(f"holds {value!r}", str(error)) from None
    if issubclass(kind, StrEnum):
        try:
            return kind(value)
        except ValueError:
            raise place.error(
                f"is {value!r}", f"Choose one of: {', '.join(member.value for member in kind)}."
            ) from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > sys.float_info.max:
            raise place.error("is no finite number", "Give one.")
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise place.error(f"is {value!r}", f"Give a value of type {kind.__name__}.")
    return value


def _check_range(value: Any, key: Key, place: _Place) -> None:
    low, high = key.minimum, key.maximum
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        text = f"between {low} and {high}" if high is not None else f"of at least {low}"
        raise place.error(f"is {value!r}", f"Give a value {text}.")
    # a range without an end would take infinity
    if isinstance(value, float) and not abs(value) <= sys.float_info.max:
        raise place.error("is no finite number", "Give one.")


def as_toml(settings: Any) -> str:
    """Return a settings object as a TOML file that says of each key what it is.

    Above each key stand its description, what may be given, and its default where the value
    differs from that.
    """
    values = plain(settings)
    lines: list[str] = []
    group = ""
    for key in known_keys(type(settings)).values():
        own, _, name = key.name.rpartition(".")
        if own != group:
            group = own
            lines += ["", f"[{group}]"]
        usual = key.values
        if key.default is not MISSING and _plain_value(key.default) != values[key.name]:
            usual += f"; default {_toml(key.default)}"
        lines += [
            "",
            *textwrap.wrap(
                f"{key.description} ({usual})", 98, initial_indent="# ", subsequent_indent="# "
            ),
            f"{name} = {_toml(values[key.name])}",
        ]
    return "\n".join(lines).strip() + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(str(value), ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        entries = (f"{_toml(name)} = {_toml(one)}" for name, one in value.items())
        return "{" + ", ".join(entries) + "}"
    if hasattr(value, "plain"):
        return _toml(value.plain())
    return repr(value)
