"""The volumes that a run trains and validates on, undersampled and described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdmri_edge.data.attribution import attribution_of
from kdmri_edge.data.cases import Case, make_case
from kdmri_edge.data.folder import VolumeFile, load_volumes
from kdmri_edge.data.parts import find_parts, phantom_parts
from kdmri_edge.data.source_hash import source_sha256
from kdmri_edge.data.volume import Volume
from kdmri_edge.distill.settings import PHANTOM, Settings
from kdmri_edge.errors import DataError
from kdmri_edge.models.spec import ModelSpec
from kdmri_edge.physics.masks import Mask

__all__ = ["Material", "gather"]


@dataclass(frozen=True, kw_only=True)
class Material:
    """Data of a run.

    Attributes:
        train: Training volumes, undersampled.
        validation: Validation volumes, undersampled.
        record: For run.json: split name and, for each part, name, subject, contrast and hash.
        attribution: How the data's owner wants to be named; None where unknown.
    """

    train: Sequence[Case]
    validation: Sequence[Case]
    record: dict[str, Any]
    attribution: str | None

    @property
    def hashes(self) -> list[str]:
        """SHA-256 of the training and validation volumes."""
        return [case.sha256 for case in (*self.train, *self.validation)]


def _describe(item: Case | Volume | VolumeFile, sha256: str) -> dict[str, Any]:
    return {
        "name": item.name,
        "subject": item.subject,
        "contrast": item.contrast,
        "sha256": sha256,
    }


def _cases(volumes: Sequence[Volume], mask: Mask, spec: ModelSpec) -> list[Case]:
    return [
        make_case(volume, mask, spec.channels, magnitude=spec.magnitude_input) for volume in volumes
    ]


def gather(settings: Settings) -> Material:
    """Load and undersample what the settings name.

    Raises:
        DataError: See `find_parts`, `load_volumes` and `make_case`.
        MaskError: The mask does not fit the matrix.
    """
    mask, spec = settings.mask, settings.student_spec
    if settings.data == PHANTOM:
        recipe = settings.recipe
        drawn = phantom_parts(
            recipe.seed,
            recipe.phantom_volumes,
            slices=recipe.phantom_slices,
            matrix=settings.matrix,
        )
        cases = {part: _cases(volumes, mask, spec) for part, volumes in drawn.items()}
        record: dict[str, Any] = {
            part: [_describe(case, case.sha256) for case in found] for part, found in cases.items()
        }
        return Material(
            train=cases["train"],
            validation=cases["validation"],
            record={"split": PHANTOM, **record},
            attribution=None,
        )
    folder = Path(settings.data)
    parts = find_parts(folder, contrast=settings.contrast, split=settings.split)
    train = _cases(load_volumes(parts.train, settings.matrix), mask, spec)
    validation = _cases(load_volumes(parts.validation, settings.matrix), mask, spec)
    seen = {case.sha256: case.name for case in train}
    test = [_describe(file, source_sha256(file.path)) for file in parts.test]
    for held in [_describe(case, case.sha256) for case in validation] + test:
        if held["sha256"] in seen:
            raise DataError(
                f"{held['name']} is the same file as the training volume {seen[held['sha256']]}.",
                "Remove one of them: a test on training data says nothing.",
            )
    return Material(
        train=train,
        validation=validation,
        record={
            "split": parts.split.name,
            "train": [_describe(case, case.sha256) for case in train],
            "validation": [_describe(case, case.sha256) for case in validation],
            "test": test,
        },
        attribution=attribution_of(folder),
    )
