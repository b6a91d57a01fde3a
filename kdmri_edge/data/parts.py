"""The volumes of a folder (or of the phantom) sorted into training, validation and test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdmri_edge.console import progress
from kdmri_edge.data.folder import VolumeFile, find_volumes
from kdmri_edge.data.phantom import phantom_set
from kdmri_edge.data.splits import KNOWN_SPLITS, Split, assign, load_split, split_for
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError

__all__ = ["Parts", "automatic_split", "find_parts", "phantom_parts"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Files by part.

    Attributes:
        split: The split that sorted them.
        train: Files of the training subjects.
        validation: Files of the validation subjects.
        test: Files of the test subjects.
    """

    split: Split
    train: Sequence[VolumeFile]
    validation: Sequence[VolumeFile]
    test: Sequence[VolumeFile]


def automatic_split(subjects: Sequence[str]) -> Split:
    """Split unknown subjects: one in six validates, one in six tests, at least one each.

    The order is that of the names' hashes, so adding a subject moves few others.

    Raises:
        DataError: Fewer than three subjects.
    """
    unique = sorted(set(subjects), key=lambda s: hashlib.sha256(s.encode()).hexdigest())
    if len(unique) < 3:
        raise DataError(
            f"The folder holds {len(unique)} subject(s); training, validation and test need three.",
            "Add subjects: a subject's slices must not be both trained and tested on.",
        )
    share = max(1, round(len(unique) / 6))
    return Split(
        name="automatic",
        train=tuple(unique[2 * share :]),
        validation=tuple(unique[share : 2 * share]),
        test=tuple(unique[:share]),
    )


def find_parts(folder: Path, *, contrast: str | None = None, split: str | None = None) -> Parts:
    """Find a folder's volumes and sort them by subject.

    Args:
        folder: The data folder.
        contrast: Keep only this contrast.
        split: Name of a known split, or a TOML or JSON file; None recognises the folder's
            subjects, and splits unknown ones automatically.

    Raises:
        DataError: See `find_volumes`, `load_split`, `assign` and `automatic_split`; or no training
            volume is there.
    """
    files = find_volumes(folder, contrast)
    if split is None:
        subjects = [file.subject for file in files]
        chosen = split_for(subjects) or automatic_split(subjects)
    else:
        chosen = KNOWN_SPLITS.get(split) or load_split(Path(split))
    parts = assign(files, chosen)
    if not parts["train"]:
        raise DataError(
            f"{folder} holds no volume of a training subject of split {chosen.name!r}.",
            "Add one, or give another split with --split.",
        )
    return Parts(split=chosen, **parts)


def phantom_parts(seed: int, volumes: int, *, slices: int, matrix: int) -> dict[str, list[Volume]]:
    """Draw phantom volumes; the last fifth validates and tests, at least one volume each."""
    drawn = []
    with progress("Drawing phantoms", volumes) as advance:
        for volume in phantom_set(seed, volumes, slices=slices, matrix=matrix):
            drawn.append(volume)
            advance(1)
    held = max(1, volumes // 10)
    return {
        "train": drawn[: -2 * held],
        "validation": drawn[-2 * held : -held],
        "test": drawn[-held:],
    }
