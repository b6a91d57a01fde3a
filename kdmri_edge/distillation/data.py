"""The volumes that a run trains and validates on, undersampled and described."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdmri_edge.data.case import Undersampling
from kdmri_edge.data.datasets import (
    PARTS,
    Parts,
    Split,
    VolumeFile,
    attribution_of,
    find_parts,
    find_volumes,
    phantom_parts,
    split_of_record,
)
from kdmri_edge.data.sources import source_sha256
from kdmri_edge.data.volume import Volume
from kdmri_edge.distillation.preparation import Item, Keeping, Wanted, cases_of, prepare
from kdmri_edge.distillation.recipe import Masks
from kdmri_edge.distillation.request import PHANTOM, Settings
from kdmri_edge.distillation.stored import AnyCase, CaseStore, SliceCache
from kdmri_edge.errors import DataError
from kdmri_edge.models.protocol import NetworkSpec, holds_mask, same_input
from kdmri_edge.physics.espirit import check_calibration
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.redraw import redrawn

__all__ = ["Reading", "TrainingData", "find", "gather", "merged_records", "recorded_hashes"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A run's volumes as one of its networks reads them.

    Attributes:
        train: Training volumes, undersampled.
        validation: Validation volumes, undersampled.
        simulation: {"simulation": ...} for complex networks: what was added to magnitude images.
        sized: Training volumes at each of the recipe's matrices, in their order.
    """

    train: Sequence[AnyCase]
    validation: Sequence[AnyCase]
    simulation: dict[str, Any]
    sized: Sequence[Sequence[AnyCase]] = ()


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Data of a run.

    Attributes:
        train: Training volumes, undersampled.
        validation: Validation volumes, undersampled.
        record: For run.json: split name and, for each part, name, subject, contrast and hash; of
            several processes only the first knows the test part.
        attribution: How the data's owner wants to be named; None where unknown.
        simulation: {"simulation": ...} for complex networks: what was added to magnitude images.
        teacher: The same volumes as the teacher reads them; None where it reads what the student
            reads.
        sized: Training volumes at each of the recipe's matrices, in their order.
        cache: Keeps the slices that were read last; None where all are held in memory.
        kept: Where slices are kept, in a sentence; empty for the phantom.
    """

    train: Sequence[AnyCase]
    validation: Sequence[AnyCase]
    record: dict[str, Any]
    attribution: str | None
    simulation: dict[str, Any] = field(default_factory=dict)
    teacher: Reading | None = None
    sized: Sequence[Sequence[AnyCase]] = ()
    cache: SliceCache | None = None
    kept: str = ""

    @property
    def hashes(self) -> list[str]:
        """SHA-256 of the training and validation volumes."""
        return [case.sha256 for case in (*self.train, *self.validation)]


def _describe(item: AnyCase | Volume | VolumeFile, sha256: str) -> dict[str, Any]:
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


def find(settings: Settings, recorded: Mapping[str, Any] | None = None) -> Parts | None:
    """Find the volumes that the settings name, and sort them by part.

    The names of files tell little: headers are looked into for subjects, and hashes for recorded
    splits. Of several processes the first does that for all of them.

    Args:
        settings: Of the run.
        recorded: What a run that goes on has recorded of its data: where no split is named, its
            own is kept, however that was found then.

    Returns:
        None for the phantom.

    Raises:
        DataError: See `find_parts`.
    """
    if settings.data == PHANTOM:
        return None
    folder = Path(settings.data)
    split: str | Split | None = settings.split
    if split is None and recorded is not None:
        own_split = split_of_record(recorded)
        present = {file.subject for file in find_volumes(folder, settings.contrast)}
        split = own_split if own_split and present == own_split.subjects else None
    needed = PARTS if recorded is None else ("train",)
    return find_parts(folder, contrast=settings.contrast, split=split, needed=needed)


def gather(
    settings: Settings, parts: Parts | None = None, keeping: Keeping | None = None
) -> TrainingData:
    """Load and undersample what the settings name.

    Args:
        settings: Of the run.
        parts: What `find` found; None finds it, for a run that begins.
        keeping: Where slices are kept; None is in memory, as far as a quarter of it holds them.

    Raises:
        DataError: See `find_parts`, `preparation.prepare` and `make_case`.
        MaskError: The mask does not fit the matrix, or (with coils) its centre has gaps.
        OutputError: The cache folder cannot be written to.
    """
    if settings.student_spec.coils or settings.teacher_spec.coils:  # estimated from the centre
        check_calibration(settings.mask, settings.matrix)
    ways = _Ways(settings)
    if settings.data == PHANTOM:
        recipe = settings.recipe
        drawn = phantom_parts(
            recipe.seed,
            recipe.phantom_volumes,
            slices=recipe.phantom_slices,
            matrix=settings.matrix,
        )
        train, validation = (
            [cases_of(volume, ways.own) for volume in drawn[part]] for part in PARTS[:2]
        )
        sized = [cases_of(volume, ways.sized) for volume in _large_phantoms(settings)]
        own, teacher = ways.readings(train, validation, sized)
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
    parts = find(settings) if parts is None else parts
    assert parts is not None  # of files
    keeping = keeping or Keeping()
    items = [
        *(Item(file, [*ways.own, *ways.sized], copies=2) for file in parts.train),
        *(Item(file, ways.own) for file in parts.validation),
    ]
    prepared = prepare(items, keeping)
    of_train = prepared.cases[: len(parts.train)]
    first = len(ways.own)
    own, teacher = ways.readings(
        [cases[:first] for cases in of_train],
        prepared.cases[len(parts.train) :],
        [cases[first:] for cases in of_train],
    )
    seen = {case.sha256: case.name for case in own.train}
    store = CaseStore(keeping.place)
    hashed = store.sha256 if prepared.streamed else source_sha256
    # the first process writes the record, and no other reads a test file
    named = parts.test if keeping.rank == 0 else ()
    test = [_describe(file, hashed(file.path)) for file in named]
    for held in [_describe(case, case.sha256) for case in own.validation] + test:
        if held["sha256"] in seen:
            raise DataError(
                f"{held['name']} is the same file as the training volume {seen[held['sha256']]}.",
                "Remove one of them: a test on training data says nothing.",
            )
    return TrainingData(
        train=own.train,
        validation=own.validation,
        record={
            "split": parts.split.name,
            "train": [_describe(case, case.sha256) for case in own.train],
            "validation": [_describe(case, case.sha256) for case in own.validation],
            "test": test,
        },
        attribution=attribution_of(Path(settings.data)),
        simulation=own.simulation,
        teacher=teacher,
        sized=own.sized,
        cache=SliceCache(keeping.cached) if prepared.streamed else None,
        kept=prepared.how,
    )


class _Ways:
    """How a run's volumes are undersampled, at its matrix and at those of the recipe.

    That is for the student and, where it reads another input, for the teacher.

    Attributes:
        own: At the run's matrix, one for each reader.
        sized: At the recipe's matrices, one after the other, for each reader.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        both = settings.student_spec, settings.teacher_spec
        # networks that share an input share its operator
        alike = same_input(*both) and holds_mask(both[0]) is holds_mask(both[1])
        self._readers = both[:1] if alike else both
        side = settings.matrix
        self.own = [self._way(spec, settings.mask, (side, side)) for spec in self._readers]
        self.sized = [
            self._way(spec, redrawn(settings.mask, *matrix.shape), matrix.shape, where_large=True)
            for matrix in settings.recipe.batches.matrices
            for spec in self._readers
        ]

    def _way(
        self, spec: NetworkSpec, mask: Mask, shape: tuple[int, int], *, where_large: bool = False
    ) -> Wanted:
        undersampled = Undersampling(spec, mask, shape, self._settings.recipe.seed)
        return Wanted(undersampled, shape, where_large)

    def readings(
        self,
        train: Sequence[Sequence[AnyCase | None]],
        validation: Sequence[Sequence[AnyCase | None]],
        sized: Sequence[Sequence[AnyCase | None]],
    ) -> tuple[Reading, Reading | None]:
        """Sort cases by who reads them.

        Args:
            train: Of each training volume a case for each of `own`.
            validation: The same of the validation volumes.
            sized: Of each training volume a case for each of `sized`, None where it is smaller.

        Raises:
            DataError: No volume is as large as one of the matrices.
        """
        matrices, count = self._settings.recipe.batches.matrices, len(self._readers)
        found = []
        for n, way in enumerate(self.own):
            at = [_column(sized, place * count + n) for place in range(len(matrices))]
            for matrix, cases in zip(matrices, at, strict=True):
                if not cases:
                    raise DataError(
                        f"No training volume is as large as the matrix {matrix} of"
                        " batches.matrices, and none is upsampled.",
                        "Leave that matrix out, or train on larger volumes.",
                    )
            found.append(
                Reading(
                    train=_column(train, n),
                    validation=_column(validation, n),
                    simulation=_simulation(way.undersampled, self._settings),
                    sized=at,
                )
            )
        return found[0], found[1] if count > 1 else None


def _column(rows: Sequence[Sequence[AnyCase | None]], n: int) -> list[AnyCase]:
    return [row[n] for row in rows if row[n] is not None]  # type: ignore[misc]


def _large_phantoms(settings: Settings) -> list[Volume]:
    """Draw the training phantoms as large as the recipe's matrices ask for."""
    recipe = settings.recipe
    if not recipe.batches.matrices:
        return []
    largest = max(max(matrix.shape) for matrix in recipe.batches.matrices)
    return phantom_parts(
        recipe.seed,
        recipe.phantom_volumes,
        slices=recipe.phantom_slices,
        matrix=largest,
        wanted=["train"],
    )["train"]


def _simulation(undersampled: Undersampling, settings: Settings) -> dict[str, Any]:
    """What was added to magnitudes; masks that are drawn anew meet the images without noise."""
    record = undersampled.record
    if record and settings.recipe.batches.masks is Masks.LINES:
        return {"simulation": {**record["simulation"], "noise": [0.0, 0.0]}}
    return record
