"""The volumes that a run trains and validates on, undersampled and described."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdmri_edge.data.case import Case, Undersampling
from kdmri_edge.data.datasets import (
    PARTS,
    Split,
    VolumeFile,
    attribution_of,
    find_parts,
    find_volumes,
    load_volumes,
    phantom_parts,
    read_found,
    split_of_record,
)
from kdmri_edge.data.resample import is_large_enough, to_matrix
from kdmri_edge.data.sources import source_sha256
from kdmri_edge.data.volume import Volume
from kdmri_edge.distillation.recipe import Masks
from kdmri_edge.distillation.request import PHANTOM, Settings
from kdmri_edge.errors import DataError
from kdmri_edge.models.protocol import NetworkSpec, same_input
from kdmri_edge.physics.espirit import check_calibration
from kdmri_edge.physics.redraw import redrawn

__all__ = ["Reading", "TrainingData", "gather", "merged_records", "recorded_hashes"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A run's volumes as one of its networks reads them.

    Attributes:
        train: Training volumes, undersampled.
        validation: Validation volumes, undersampled.
        simulation: {"simulation": ...} for complex networks: what was added to magnitude images.
        sized: Training volumes at each of the recipe's matrices, in their order.
    """

    train: Sequence[Case]
    validation: Sequence[Case]
    simulation: dict[str, Any]
    sized: Sequence[Sequence[Case]] = ()


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Data of a run.

    Attributes:
        train: Training volumes, undersampled.
        validation: Validation volumes, undersampled.
        record: For run.json: split name and, for each part, name, subject, contrast and hash.
        attribution: How the data's owner wants to be named; None where unknown.
        simulation: {"simulation": ...} for complex networks: what was added to magnitude images.
        teacher: The same volumes as the teacher reads them; None where it reads what the student
            reads.
        sized: Training volumes at each of the recipe's matrices, in their order.
    """

    train: Sequence[Case]
    validation: Sequence[Case]
    record: dict[str, Any]
    attribution: str | None
    simulation: dict[str, Any] = field(default_factory=dict)
    teacher: Reading | None = None
    sized: Sequence[Sequence[Case]] = ()

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


def recorded_hashes(volumes: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the SHA-256 of volumes as a record describes them."""
    return [str(volume["sha256"]) for volume in volumes]


def merged_records(
    mine: list[dict[str, Any]], others: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the volumes of two records, each once."""
    known = set(recorded_hashes(mine))
    return mine + [volume for volume in others if volume["sha256"] not in known]


def gather(settings: Settings, recorded: Mapping[str, Any] | None = None) -> TrainingData:
    """Load and undersample what the settings name.

    Args:
        settings: Of the run.
        recorded: What a run that goes on has recorded of its data: where no split is named, its
            own is kept, however that was found then.

    Raises:
        DataError: See `find_parts`, `load_volumes` and `make_case`.
        MaskError: The mask does not fit the matrix, or (with coils) its centre has gaps.
    """
    if settings.student_spec.coils or settings.teacher_spec.coils:  # estimated from the centre
        check_calibration(settings.mask, settings.matrix)
    if settings.data == PHANTOM:
        recipe = settings.recipe
        drawn = phantom_parts(
            recipe.seed,
            recipe.phantom_volumes,
            slices=recipe.phantom_slices,
            matrix=settings.matrix,
        )
        own, teacher = _readings(
            settings, drawn["train"], drawn["validation"], _drawn_at_matrices(settings)
        )
        cases = {"train": own.train, "validation": own.validation}
        record: dict[str, Any] = {
            part: [_describe(case, case.sha256) for case in cases.get(part, volumes)]
            for part, volumes in drawn.items()
        }
        return TrainingData(
            train=own.train,
            validation=own.validation,
            record={"split": PHANTOM, **record},
            attribution=None,
            simulation=own.simulation,
            teacher=teacher,
            sized=own.sized,
        )
    folder, matrices = Path(settings.data), settings.recipe.batches.matrices
    split: str | Split | None = settings.split
    if split is None and recorded is not None:
        own_split = split_of_record(recorded)
        present = {file.subject for file in find_volumes(folder, settings.contrast)}
        split = own_split if own_split and present == own_split.subjects else None
    needed = PARTS if recorded is None else ("train",)
    parts = find_parts(folder, contrast=settings.contrast, split=split, needed=needed)
    own, teacher = _readings(
        settings,
        load_volumes(parts.train, settings.matrix),
        load_volumes(parts.validation, settings.matrix),
        _at_matrices(settings, map(read_found, parts.train if matrices else ())),
    )
    train, validation = own.train, own.validation
    seen = {case.sha256: case.name for case in train}
    test = [_describe(file, source_sha256(file.path)) for file in parts.test]
    for held in [_describe(case, case.sha256) for case in validation] + test:
        if held["sha256"] in seen:
            raise DataError(
                f"{held['name']} is the same file as the training volume {seen[held['sha256']]}.",
                "Remove one of them: a test on training data says nothing.",
            )
    return TrainingData(
        train=train,
        validation=validation,
        record={
            "split": parts.split.name,
            "train": [_describe(case, case.sha256) for case in train],
            "validation": [_describe(case, case.sha256) for case in validation],
            "test": test,
        },
        attribution=attribution_of(folder),
        simulation=own.simulation,
        teacher=teacher,
        sized=own.sized,
    )


def _at_matrices(settings: Settings, volumes: Iterable[Volume]) -> list[list[Volume]]:
    """Bring volumes to each of the recipe's matrices, leaving out there what is smaller.

    Raises:
        DataError: All of them are.
    """
    matrices = settings.recipe.batches.matrices
    found: list[list[Volume]] = [[] for _ in matrices]
    for volume in volumes:
        for matrix, kept in zip(matrices, found, strict=True):
            if is_large_enough(volume, matrix.shape):
                kept.append(to_matrix(volume, matrix.shape))
    for matrix, kept in zip(matrices, found, strict=True):
        if not kept:
            raise DataError(
                f"No training volume is as large as the matrix {matrix} of batches.matrices, and"
                " none is upsampled.",
                "Leave that matrix out, or train on larger volumes.",
            )
    return found


def _drawn_at_matrices(settings: Settings) -> list[list[Volume]]:
    """Draw the training phantoms as large as the recipe's matrices ask for."""
    recipe = settings.recipe
    if not recipe.batches.matrices:
        return []
    largest = max(max(matrix.shape) for matrix in recipe.batches.matrices)
    volumes = phantom_parts(
        recipe.seed,
        recipe.phantom_volumes,
        slices=recipe.phantom_slices,
        matrix=largest,
        wanted=["train"],
    )["train"]
    return _at_matrices(settings, volumes)


def _readings(
    settings: Settings,
    train: Sequence[Volume],
    validation: Sequence[Volume],
    sized: Sequence[Sequence[Volume]],
) -> tuple[Reading, Reading | None]:
    """Undersample volumes for the student and, where it reads another input, for the teacher."""

    def reading(spec: NetworkSpec) -> Reading:
        undersampled = Undersampling(spec, settings.mask, settings.matrix, settings.recipe.seed)
        cases = undersampled(train), undersampled(validation)
        simulation = _simulation(undersampled, settings)
        others = []
        for matrix, volumes in zip(settings.recipe.batches.matrices, sized, strict=True):
            mask = redrawn(settings.mask, *matrix.shape)
            others.append(Undersampling(spec, mask, matrix.shape, settings.recipe.seed)(volumes))
        return Reading(train=cases[0], validation=cases[1], simulation=simulation, sized=others)

    own = reading(settings.student_spec)
    alike = same_input(settings.teacher_spec, settings.student_spec)
    return own, None if alike else reading(settings.teacher_spec)


def _simulation(undersampled: Undersampling, settings: Settings) -> dict[str, Any]:
    """What was added to magnitudes; masks that are drawn anew meet the images without noise."""
    record = undersampled.record
    if record and settings.recipe.batches.masks is Masks.LINES:
        return {"simulation": {**record["simulation"], "noise": [0.0, 0.0]}}
    return record
