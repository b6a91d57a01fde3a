"""Margins of non-inferiority, stated in a file before any result is seen."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, cast

from kdmri_edge.errors import BenchError
from kdmri_edge.utils.extras import load_attribute
from kdmri_edge.utils.files import refuse_newer, sha256_bytes
from kdmri_edge.utils.suggest import nearest

__all__ = ["FORMAT", "Margins", "load_margins", "read_margins"]

FORMAT: Final = 1
_DEFAULT: Final = "margins.toml"
_KEYS: Final = ("format", "name", "subjects")


@dataclass(frozen=True, kw_only=True, slots=True)
class Margins:
    """Largest losses that count as none.

    Attributes:
        name: what the file calls itself.
        subjects: on fewer test subjects there is no verdict.
        losses: by section, then by the figure's name; above zero, in the figure's unit.
        text: the file, as the report quotes it.
        sha256: of its bytes.
    """

    name: str
    subjects: int
    losses: Mapping[str, Mapping[str, float]]
    text: str
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "subjects": self.subjects,
            "losses": {section: dict(own) for section, own in self.losses.items()},
            "text": self.text,
        }


def load_margins(path: Path | None = None) -> Margins:
    """Read a file of margins.

    Args:
        path: The TOML file; None takes the package's own, `margins.toml` beside this module.

    Raises:
        BenchError: The file is missing, no TOML, a value is no margin, or one is stated for what
            no section measures: it would be found out after the measurement, and the verdict be
            open for want of it.
    """
    name = str(path) if path is not None else f"the package's {_DEFAULT}"
    try:
        data = (
            path.read_bytes()
            if path is not None
            else files("kdmri_bench.assessment").joinpath(_DEFAULT).read_bytes()
        )
    except OSError as error:
        raise BenchError(f"{name} cannot be read ({error.strerror}).", "Check the path.") from error
    try:
        found = read_margins(data.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        raise BenchError(f"{name} is no text in UTF-8 ({error}).", "Correct it.") from error
    for section, own in found.losses.items():
        _check_names(name, section, list(own))
    return found


def _check_names(name: str, section: str, keys: Sequence[str]) -> None:
    from kdmri_bench.assessment.sections import SECTIONS

    place = SECTIONS[section].differences
    if place is None:  # of an installed package, which does not say
        return
    known: Sequence[str] = load_attribute(place)
    for key in keys:
        if key not in known:
            near = nearest(key, known)
            hint = f"; did you mean {near!r}?" if near else "."
            raise BenchError(
                f"{name}: [{section}] {key} is no difference that the section measures{hint}",
                f"It measures {', '.join(known)}."
                if known
                else f"Leave [{section}] out: it measures none.",
            )


def read_margins(text: str, name: str) -> Margins:
    """Read margins as a report quotes them.

    Args:
        text: Contents of a file of margins.
        name: What to call it in messages.

    Raises:
        BenchError: It is no TOML, or a value is no margin.
    """
    try:
        value = tomllib.loads(text)
    # beside its own error the parser lets through those of numbers and deep nesting
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{name} is no TOML file ({error}).", "Correct it.") from error
    return Margins(**_checked(name, value), text=text, sha256=sha256_bytes(text.encode()))


def _checked(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    from kdmri_bench.assessment.sections import SECTIONS

    refuse_newer(name, form := value.get("format", FORMAT), FORMAT, BenchError)
    if form != FORMAT:
        raise BenchError(f"{name} has format {form!r}, which is none.", f"Write format = {FORMAT}.")
    for section in value:
        if section not in (*SECTIONS, *_KEYS):
            raise BenchError(
                f"{name} has margins for {section!r}, which is no section; did you mean"
                f" {nearest(section, [*SECTIONS, *_KEYS])!r}?",
                f"Sections are {', '.join(SECTIONS)}.",
            )
    subjects = value.get("subjects")
    if not isinstance(subjects, int) or isinstance(subjects, bool) or subjects < 2:
        raise BenchError(
            f"{name} does not say on how many subjects a verdict may rest (subjects = {subjects}).",
            "Write a whole number of 2 or more: one subject says nothing of others.",
        )
    losses: dict[str, dict[str, float]] = {}
    for section, own in value.items():
        if section in _KEYS:
            continue
        if not isinstance(own, dict):
            raise BenchError(f"{name}: {section} is no table.", f"Write [{section}].")
        losses[section] = {key: _margin(name, section, key, loss) for key, loss in own.items()}
    if not any(losses.values()):
        raise BenchError(f"{name} states no margin.", "Write e.g. [volumes] psnr_db = 0.1.")
    return {"name": str(value.get("name", name)), "subjects": subjects, "losses": losses}


def _margin(name: str, section: str, key: str, loss: object) -> float:
    wrong = isinstance(loss, bool) or not isinstance(loss, int | float)
    # a whole number may be beyond what a float holds
    if wrong or not 0 < (number := cast("float", loss)) <= sys.float_info.max:
        raise BenchError(
            f"{name}: [{section}] {key} = {loss!r} is no margin.",
            "Write how much may be lost as a number above zero.",
        )
    return float(number)
