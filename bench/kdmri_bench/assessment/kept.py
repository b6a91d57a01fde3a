"""What an assessment has found before it was cut off, so that the same command goes on from there.

A part is what one network gives in one section, or a whole section. Each is a file in a folder
whose name is a hash of what was asked: networks, volumes, annotations, seed, versions. Who asks for
something else finds nothing there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdmri_bench.assessment.sections import Gallery, Measure, Picture, Plot, Section, Table
from kdmri_bench.reporting.page.images import Tile
from kdmri_bench.results.schema import finite
from kdmri_edge.errors import BenchError, OutputError
from kdmri_edge.utils.console import say
from kdmri_edge.utils.files import atomic_path, damaged, read_json, sha256_bytes, write_json

__all__ = ["Kept", "identity"]

_WHOLE: Final = "sections"

Made = TypeVar("Made")


def identity(asked: Any) -> str:
    """Return a hash of plain JSON values that everything found depends on."""
    return sha256_bytes(json.dumps(asked, sort_keys=True, default=str).encode())


class Kept:
    """The parts that are finished.

    Args:
        folder: Where they are; it is made with the first of them. None keeps nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def values(self, section: str, part: str, make: Callable[[], Any]) -> Any:
        """Return plain JSON values (numbers may be NaN), made at the first call.

        Args:
            section: That asks.
            part: Of it: the key of a network, and what else tells it from others.
            make: Makes them.

        Raises:
            BenchError: The file is damaged.
            OutputError: The place cannot be written to.
        """
        return self._through_json(section, part, make, lambda made: made, lambda found: found)

    def section(self, name: str, make: Callable[[], Section]) -> Section:
        """Return a whole section, with its drawings and pictures, made at the first call.

        One that could not be measured is not kept: what it lacked may be there the next time.

        Raises:
            BenchError: The file is damaged.
            OutputError: The place cannot be written to.
        """

        def told(made: Section) -> Any:
            return None if made.reason is not None else finite(asdict(made))

        return self._through_json(_WHOLE, name, make, told, _section_of)

    def arrays(
        self, section: str, part: str, make: Callable[[], list[NDArray[Any]]]
    ) -> list[NDArray[Any]]:
        """Return arrays of numbers or texts, such as images, made at the first call.

        These are large: where the disk does not hold them they are not kept.

        Args:
            section: See `values`, as are part and make.
            part: See `values`.
            make: See `values`.

        Raises:
            BenchError: The file is damaged.
        """
        file = self._file(section, part, ".npz")
        if file is None:
            return make()
        if file.is_file():
            with damaged(file, BenchError), np.load(file, allow_pickle=False) as stored:
                return [stored[f"arr_{n}"] for n in range(len(stored.files))]
        made = make()
        try:
            with atomic_path(file) as temporary, temporary.open("wb") as stream:
                np.savez(stream, *made)
        except OutputError as error:
            say(f"What {part} made is not kept for the case of an interruption: {error.what}")
        return made

    def _through_json(
        self,
        section: str,
        part: str,
        make: Callable[[], Made],
        told: Callable[[Made], Any],
        read: Callable[[Any], Made],
    ) -> Made:
        """Return what was made, as the file has it, made at the first call.

        It is read of the file in both cases, so that an assessment that goes on gives what one
        gives that was not cut off.

        Args:
            section: See `values`, as are part and make.
            part: See `values`.
            make: See `values`.
            told: Returns plain JSON values of it; None where it is not to be kept.
            read: Makes it of these values again.
        """
        file = self._file(section, part, ".json")
        if file is None:
            return make()
        if not file.is_file():
            made = make()
            value = told(made)
            if value is None:
                return made
            write_json(file, value)
        value = read_json(file, BenchError, finite=False)
        with damaged(file, BenchError):
            return read(value)

    def _file(self, section: str, part: str, suffix: str) -> Path | None:
        if self._folder is None:
            return None
        word = "".join(letter if letter.isalnum() else "-" for letter in part)
        name = f"{word[:80]}-{sha256_bytes(part.encode())[:8]}{suffix}"
        return self._folder / section / name


def _section_of(value: dict[str, Any]) -> Section:
    """Return what `dataclasses.asdict` made of a section."""

    def gallery(one: dict[str, Any]) -> Gallery:
        pictures = [
            Picture(title=each["title"], tiles=tuple(Tile(**tile) for tile in each["tiles"]))
            for each in one["pictures"]
        ]
        return Gallery(**{**one, "pictures": tuple(pictures)})

    def table(one: dict[str, Any]) -> Table:
        rows = tuple(tuple(row) for row in one["rows"])
        return Table(**{**one, "head": tuple(one["head"]), "rows": rows})

    parts: dict[str, Sequence[Any]] = {
        "findings": value["findings"],
        "measures": [Measure(**one) for one in value["measures"]],
        "tables": [table(one) for one in value["tables"]],
        "plots": [Plot(**one) for one in value["plots"]],
        "galleries": [gallery(one) for one in value["galleries"]],
    }
    return Section(**{**value, **{name: tuple(found) for name, found in parts.items()}})
