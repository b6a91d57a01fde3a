"""Typed settings: frozen dataclasses filled from TOML and from `--set key=value`.

A field's metadata may hold `minimum` and `maximum`; unknown keys name the nearest known one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from kdmri_edge.errors import RecipeError
from kdmri_edge.utils.suggest import nearest

__all__ = ["build", "override", "read_toml"]

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
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML ({error}).", "Correct the file.") from error


def override(values: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply `key=value` assignments on top of `values`; a value is read as TOML, else as text.

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
        except tomllib.TOMLDecodeError:
            read = {}
        # More than the value: a text of several lines that happens to be TOML.
        result[key.strip()] = read["value"] if len(read) == 1 else text.strip()
    return result


@dataclass(frozen=True)
class _Place:
    """Where a value came from, for messages."""

    source: str
    key: str

    def error(self, problem: str, remedy: str) -> RecipeError:
        return RecipeError(f"{self.key!r} of {self.source} {problem}.", remedy)


def build(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """Make a settings dataclass from plain values, checking names, types and ranges.

    Args:
        cls: A frozen dataclass whose fields are int, float, bool, str or StrEnum, or tuples of
            one of them.
        values: Plain values by field name.
        source: What to call their origin in messages, such as a file name.

    Raises:
        RecipeError: Unknown key (the nearest is named), wrong type or value out of range.
    """
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    clean: dict[str, Any] = {}
    for key, value in values.items():
        place = _Place(source, key)
        if key not in known:
            near = nearest(key, known)
            raise place.error("is not a known key", f"Did you mean {near!r}?")
        clean[key] = _convert(value, hints[key], place)
        _check_range(clean[key], known[key].metadata, place)
    missing = [name for name, field in known.items() if name not in clean and _is_required(field)]
    if missing:
        raise RecipeError(f"{source} lacks the key {missing[0]!r}.", "Add it.")
    return cls(**clean)


def _is_required(field: Any) -> bool:
    from dataclasses import MISSING

    return field.default is MISSING and field.default_factory is MISSING


def _convert(value: Any, kind: Any, place: _Place) -> Any:
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if not isinstance(value, list | tuple):
            raise place.error(f"is {value!r}", f"Give a list of {item.__name__}, e.g. [1, 2].")
        return tuple(_convert(one, item, place) for one in value)
    if issubclass(kind, StrEnum):
        try:
            return kind(value)
        except ValueError:
            raise place.error(
                f"is {value!r}", f"Choose one of: {', '.join(member.value for member in kind)}."
            ) from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise place.error(f"is {value!r}", f"Give a value of type {kind.__name__}.")
    return value


def _check_range(value: Any, metadata: Mapping[str, Any], place: _Place) -> None:
    low, high = metadata.get("minimum"), metadata.get("maximum")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        text = f"between {low} and {high}" if high is not None else f"of at least {low}"
        raise place.error(f"is {value!r}", f"Give a value {text}.")
