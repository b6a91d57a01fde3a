"""Splits by subject, never by slice: a subject's slices resemble each other too much to test on."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kdmri_edge.data.folder import VolumeFile
from kdmri_edge.errors import DataError

PARTS: Final = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Which subjects train, validate and test.

    Attributes:
        name: for tables and manifests.
        train: subjects whose slices the weights are fitted to.
        validation: subjects that choose between checkpoints.
        test: subjects that results are reported on.

    Raises:
        DataError: a subject is in two parts, or twice in one.
    """

    name: str
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a subject that is named twice."""
        seen: dict[str, str] = {}
        for part in PARTS:
            for subject in getattr(self, part):
                if subject in seen:
                    where = (
                        f"in both {seen[subject]} and {part}"
                        if seen[subject] != part
                        else f"twice in {part}"
                    )
                    raise DataError(
                        f"Split {self.name!r} has subject {subject} {where}.",
                        "Leave each subject in one part only, once.",
                    )
                seen[subject] = part

    @property
    def subjects(self) -> frozenset[str]:
        """All subjects of the split."""
        return frozenset((*self.train, *self.validation, *self.test))


_BRAINS: Final = ("01", "03", "04", "09", "12", "19", "20")

BRAIN_FOLDS: Final[tuple[tuple[str, ...], ...]] = (("01", "20"), ("03", "19"), ("04", "09", "12"))
"""Test subjects of the three folds over all seven brains, for claims with intervals."""

KNOWN_SPLITS: Final[dict[str, Split]] = {
    "brain": Split(
        name="brain", train=("01", "03", "12"), validation=("20", "09"), test=("04", "19")
    ),
    "cardiac": Split(
        name="cardiac", train=("101", "201", "301"), validation=("401",), test=("501",)
    ),
    # Every other brain trains: nothing is chosen within a fold, so none validates.
    **{
        f"brain-fold-{number}": Split(
            name=f"brain-fold-{number}",
            train=tuple(subject for subject in _BRAINS if subject not in fold),
            test=fold,
        )
        for number, fold in enumerate(BRAIN_FOLDS, start=1)
    },
}
"""The splits that the recorded results use; a folder of brains is recognised as the first."""


def split_for(subjects: Iterable[str]) -> Split | None:
    """The known split that has all these subjects, None where there is none (or no subject)."""
    wanted = frozenset(subjects)
    if not wanted:
        return None
    return next((split for split in KNOWN_SPLITS.values() if wanted <= split.subjects), None)


def load_split(path: Path) -> Split:
    """Read a split from a TOML or JSON file with the lists `train`, `validation` and `test`.

    Args:
        path: the file; `name` is optional and defaults to the file's stem. A missing list is empty.

    Raises:
        DataError: missing or unreadable file, unknown key, something other than lists of names, no
            subject at all, or a subject in two lists.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            table: Any = json.loads(text)
        elif path.suffix.lower() == ".toml":
            table = tomllib.loads(text)
        else:
            raise DataError(
                f"Split file {path} is neither TOML nor JSON.", "Name it .toml or .json."
            )
    except FileNotFoundError:
        raise DataError(f"Split file {path} does not exist.", "Check the path.") from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"Split file {path} cannot be read ({error}).", "Correct the file."
        ) from error
    if not isinstance(table, dict):
        raise DataError(
            f"Split file {path} is not a table.", "Give train, validation and test lists."
        )
    unknown = sorted(set(table) - {"name", *PARTS})
    if unknown:
        raise DataError(
            f"Split file {path} has the unknown key {unknown[0]!r}.",
            "The keys are name, train, validation and test.",
        )
    parts = {part: _subjects(table.get(part, []), part, path) for part in PARTS}
    if not any(parts.values()):
        raise DataError(f"Split file {path} names no subject.", "List them under train and test.")
    return Split(name=str(table.get("name", path.stem)), **parts)


def _subjects(value: object, part: str, path: Path) -> tuple[str, ...]:
    """One list of the file as subject names, `sub-` taken off as readers do."""
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise DataError(
            f"{part} in split file {path} is not a list of subject names.",
            f'Write {part} = ["01", "03"], with quotes: 01 and 1 are different subjects.',
        )
    return tuple(str(item).removeprefix("sub-") for item in value)


def assign(files: Sequence[VolumeFile], split: Split) -> dict[str, list[VolumeFile]]:
    """Sort a folder's files into the parts of a split.

    Args:
        files: what `find_volumes` found. Part of a known split is enough; of any other split every
            subject must be there.
        split: which subjects go where.

    Returns:
        {"train": [...], "validation": [...], "test": [...]}, each in the order of `files`.

    Raises:
        DataError: a subject of the folder is in no part, or a subject of the split is not in the
            folder.
    """
    present = {file.subject for file in files}
    stray = sorted(present - split.subjects)
    if stray:
        raise DataError(
            f"Subject {stray[0]} is in no part of split {split.name!r}.",
            "Add it to train, validation or test, or leave its files out.",
        )
    absent = sorted(split.subjects - present)
    if absent and split not in KNOWN_SPLITS.values():
        raise DataError(
            f"Split {split.name!r} names subject {absent[0]}, of whom there is no volume.",
            "Take it out of the split, or check the folder and --contrast."
            f" Present are {', '.join(sorted(present)) or 'none'}.",
        )
    return {part: [f for f in files if f.subject in getattr(split, part)] for part in PARTS}
