from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import pytest

from kdmri_edge.errors import RecipeError
from kdmri_edge.utils.config import build, override, read_toml


class _Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class _Paint:
    name: str
    litres: float = field(default=1.0, metadata={"minimum": 0.5, "maximum": 10})
    coats: int = field(default=2, metadata={"minimum": 1})
    colour: _Colour = _Colour.RED
    matt: bool = False


def test_values_are_converted() -> None:
    made = build(_Paint, {"name": "wall", "litres": 3, "colour": "blue", "matt": True}, "here")
    assert made == _Paint("wall", 3.0, 2, _Colour.BLUE, True)
    assert type(made.litres) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"litre": 1}, "'litre' of here is not a known key. Did you mean 'litres'?"),
        ({"color": "red"}, "Did you mean 'colour'?"),
        ({"litres": "1"}, "Give a value of type float."),
        ({"litres": True}, "Give a value of type float."),
        ({"litres": 0.1}, "Give a value between 0.5 and 10."),
        ({"litres": float("nan")}, "Give a value between 0.5 and 10."),
        ({"litres": 11}, "Give a value between 0.5 and 10."),
        ({"coats": 0}, "Give a value of at least 1."),
        ({"coats": 1.0}, "Give a value of type int."),
        ({"coats": True}, "Give a value of type int."),
        ({"matt": 1}, "Give a value of type bool."),
        ({"colour": "green"}, "Choose one of: red, blue."),
        ({"colour": ["red"]}, "Choose one of: red, blue."),
    ],
)
def test_bad_values(values: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build(_Paint, {"name": "wall", **values}, "here")
    assert message in str(caught.value)


def test_missing_key() -> None:
    with pytest.raises(RecipeError, match="here lacks the key 'name'"):
        build(_Paint, {}, "here")


def test_override_reads_toml_else_text() -> None:
    values = override({"a": 1, "b": 2}, ["a=3.5", " c = red ", 'd="x=y"', "e=true", "f="])
    assert values == {"a": 3.5, "b": 2, "c": "red", "d": "x=y", "e": True, "f": ""}


def test_override_cannot_smuggle_in_other_keys() -> None:
    assert override({}, ["a=1\nb=2"]) == {"a": "1\nb=2"}


def test_override_leaves_its_argument_alone() -> None:
    values = {"a": 1}
    override(values, ["a=2"])
    assert values == {"a": 1}


def test_override_without_equals() -> None:
    with pytest.raises(RecipeError, match="has no '='"):
        override({}, ["seed"])


def test_read_toml(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("a = 1")
    assert read_toml(file) == {"a": 1}
    with pytest.raises(RecipeError, match="does not exist"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="not valid TOML"):
        read_toml(tmp_path)


@dataclass(frozen=True)
class _Weighed:
    """Settings.

    Attributes:
        weight: Without an upper end.
    """

    weight: float = field(default=0.0, metadata={"minimum": 0.0})


@pytest.mark.parametrize("value", [float("inf"), 10**400])
def test_a_range_without_an_end_takes_no_number_without_one(value: float) -> None:
    with pytest.raises(RecipeError, match="no finite number"):
        build(_Weighed, {"weight": value}, "the file")
