"""Which volumes of a folder are test data, and what they look like to the networks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdmri_edge.data.case import Case, Undersampling
from kdmri_edge.data.datasets import (
    Split,
    VolumeFile,
    find_volumes,
    phantom_parts,
    read_coils,
    read_found,
    split_for,
    split_of_record,
)
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.volume import Volume
from kdmri_edge.distillation.recipe import load_recipe
from kdmri_edge.distillation.request import PHANTOM, Settings
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import BenchError
from kdmri_edge.models.protocol import NetworkSpec, reads_coils
from kdmri_edge.physics.masks import Mask
from kdmri_edge.utils.console import progress

__all__ = [
    "MEASURED",
    "MEASURED_COILS",
    "RETROSPECTIVE",
    "Data",
    "TestData",
    "check_same_input",
    "choose_files",
    "load_cases",
    "load_data",
    "run_split",
]

RETROSPECTIVE = "Retrospective, single-coil, zero-phase k-space from magnitude images."
COMPLEX = (
    "Retrospective, single-coil k-space; magnitude images are given a smooth phase, with local"
    " fields, and noise."
)
SIMULATED_COILS = "Retrospective k-space of simulated coils, phase and noise from magnitude images."
MEASURED_COILS = (
    "Retrospective undersampling of measured multi-coil k-space; the reference is the fully sampled"
    " combination of the coils by sensitivities of the sampled centre (ESPIRiT)."
)
MIXED_COILS = (
    "Retrospective k-space: measured multi-coil k-space of some volumes, simulated coils, phase and"
    " noise of the others."
)
MEASURED = "Retrospective undersampling of measured, single-coil complex k-space."

_SEED = 1
"""Of what is simulated on test volumes: other coils than training's, whose seed is 0 by default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TestData:
    """Volumes to measure on.

    Attributes:
        cases: undersampled with the networks' mask, at their matrix.
        split: name of the split whose test subjects they are, None where all of the folder is
            test data.
        statement: what kind of data this is, for the report.
    """

    __test__ = False  # the name starts with Test, and pytest would try to collect it

    cases: tuple[Case, ...]
    split: str | None
    statement: str


Data = str | os.PathLike[str] | TestData | Iterable[Case | Volume | Scan]
"""Folder of volumes or one file, "phantom", volumes or scans that were read, or cases."""


def run_split(meta: Mapping[str, Any]) -> Split | None:
    """Return the split that a run recorded in its run.json, None where it recorded none.

    Raises:
        DataError: the record has one subject in two parts.
    """
    return split_of_record(meta.get("data", {}))


def choose_files(
    folder: Path,
    *,
    contrast: str | None = None,
    subjects: Sequence[str] = (),
    own: Split | None = None,
) -> tuple[list[VolumeFile], str | None]:
    """Find the test volumes of a folder.

    Args:
        folder: the data.
        contrast: keep only this contrast.
        subjects: take exactly these subjects, whatever any split says; empty goes by the split.
        own: the split of the run that is measured. Where it knows all subjects of the folder its
            test subjects are taken, otherwise those of a recorded split, where all files are its
            own by their hashes; a folder that follows neither is all test data.

    Returns:
        The files, and the name of the split (None without one).

    Raises:
        DataError: see `find_volumes`.
        BenchError: a subject is not there, or the split's test subjects are not.
    """
    files = find_volumes(folder, contrast)
    present = sorted({file.subject for file in files})
    if subjects:
        wanted = [subject.removeprefix("sub-") for subject in subjects]
        missing = [subject for subject in wanted if subject not in present]
        if missing:
            raise BenchError(
                f"{folder} has no volume of subject {missing[0]}.",
                f"Present are {', '.join(present)}.",
            )
        return [file for file in files if file.subject in wanted], None
    follows = own is not None and frozenset(present) <= own.subjects
    split = own if follows else split_for(files, whole=False)
    if split is None:
        return files, None
    chosen = [file for file in files if file.subject in split.test]
    if not chosen:
        raise BenchError(
            f"{folder} holds no test subject of split {split.name!r}"
            f" ({', '.join(split.test) or 'it has none'}).",
            f"Name the subjects to measure on, of {', '.join(present)}, with --subjects.",
        )
    return chosen, split.name


def check_same_input(networks: Sequence[tuple[str, NetworkSpec]]) -> None:
    """Refuse networks that want different inputs of the same volumes.

    Args:
        networks: Name and architecture of each.

    Raises:
        BenchError: Some take magnitudes, others real parts or complex images, or some are given
            several coils and others one image.
    """
    first, *others = networks
    for name, spec in others:
        if reads_coils(spec) != reads_coils(first[1]):
            several, one = (name, first[0]) if reads_coils(spec) else (first[0], name)
            raise BenchError(
                f"{several} is given several coils, {one} one image.",
                "Measure networks with coils and networks of one image separately.",
            )
        if reads_coils(spec):  # each makes its own input of the same k-space
            continue
        if spec.channels != first[1].channels:
            raise BenchError(
                f"{first[0]} takes {first[1].channels} channel(s), {name} {spec.channels}.",
                "Measure magnitude and complex networks separately.",
            )
        if spec.magnitude_input != first[1].magnitude_input:
            raise BenchError(
                f"Of {first[0]} and {name}, one has data consistency and reads the real part of"
                " the zero-filled image, the other its magnitude.",
                "Measure them separately.",
            )


def load_cases(
    files: Sequence[VolumeFile],
    *,
    mask: Mask,
    matrix: int,
    spec: NetworkSpec,
    split: str | None = None,
    prepared: bool = False,
    slices: int | None = None,
) -> TestData:
    """Read volumes, bring them to the matrix and undersample them as a network wants them.

    Args:
        files: The volumes.
        mask: The network's.
        matrix: Side of its images.
        spec: Its architecture.
        split: What to call the split that they are of.
        prepared: Of networks with coils: give what this network itself reads, images and
            sensitivities, in place of k-space that networks of several kinds make their inputs of.
        slices: Of scans of several coils take so many around the middle; None takes all.

    Raises:
        DataError: a volume is unreadable or below the matrix.
        MaskError: the mask is of another size.
    """
    read = read_coils if reads_coils(spec) else read_found
    volumes = (read(file) for file in files)
    return _cases(
        volumes,
        len(files),
        mask=mask,
        matrix=matrix,
        spec=spec,
        split=split,
        prepared=prepared,
        slices=slices,
    )


def _cases(
    volumes: Iterable[Volume | Scan],
    count: int,
    *,
    mask: Mask,
    matrix: int,
    spec: NetworkSpec,
    split: str | None,
    prepared: bool = False,
    slices: int | None = None,
) -> TestData:
    """Bring volumes to the matrix one at a time, and undersample them."""
    cases, measured, of_coils = [], [], []
    kspace = True if reads_coils(spec) and not prepared else None
    undersampled = Undersampling(spec, mask, matrix, _SEED, kspace=kspace)
    with progress("Reading test volumes", count) as advance:
        for volume in volumes:
            if isinstance(volume, Scan):
                cases.append(undersampled.case(_central(volume, slices)))
            else:
                cases.append(undersampled.case(to_matrix(volume, matrix)))
            measured.append(isinstance(volume, Scan) or volume.measured)
            of_coils.append(isinstance(volume, Scan))
            advance(1)
    statement = MIXED_COILS if any(of_coils) else _statement(spec, measured)
    statement = MEASURED_COILS if all(of_coils) else statement
    return TestData(cases=tuple(cases), split=split, statement=statement)


def load_data(
    data: Data,
    *,
    mask: Mask,
    matrix: int,
    spec: NetworkSpec,
    runs: Sequence[Run] = (),
    contrast: str | None = None,
    subjects: Sequence[str] = (),
    slices: int | None = None,
) -> TestData:
    """Turn whatever the user gave into test volumes for a network.

    Args:
        data: See `Data`.
        mask: The network's.
        matrix: Side of its images.
        spec: Its architecture.
        runs: That the measured networks come from; the split of a single one is kept to.
        contrast: Keep only this contrast of a folder.
        subjects: Take exactly these subjects of a folder; see `choose_files`.
        slices: Of scans of several coils take so many around the middle, since each is as large as
            many images and takes a second to estimate sensitivities of; None takes all.

    Raises:
        BenchError: No volume, or subjects that are not there.
        DataError: A volume is unreadable or below the matrix.
        MaskError: The mask is of another size.
    """
    run = runs[0] if len(runs) == 1 else None
    wanted: dict[str, Any] = {"mask": mask, "matrix": matrix, "spec": spec}
    if isinstance(data, TestData):
        return data
    if data == PHANTOM:
        return _phantom(run, **wanted)
    if isinstance(data, str | os.PathLike):
        own = run_split(run.meta) if run is not None else None
        files, split = choose_files(Path(data), contrast=contrast, subjects=subjects, own=own)
        return load_cases(files, split=split, slices=slices, **wanted)
    given = list(data)
    cases = [item for item in given if isinstance(item, Case)]
    if len(cases) == len(given):
        statement = _statement(spec, [False])
        return TestData(cases=tuple(cases), split=None, statement=statement)
    volumes = [item for item in given if isinstance(item, Volume | Scan)]
    if len(volumes) < len(given):
        raise BenchError(
            "Test data are volumes or cases, and some of these are neither.",
            "Give a folder, or what `kdmri_edge.read` returns for volumes.",
        )
    return _cases(volumes, len(volumes), split=None, slices=slices, **wanted)


_PHANTOM_STATEMENT = "A procedural phantom (retrospective, single-coil, zero-phase k-space)."


def _phantom(run: Run | None, *, mask: Mask, matrix: int, spec: NetworkSpec) -> TestData:
    """Draw the test volumes of a run on the phantom; for other networks those of the quickstart."""
    recipe = load_recipe("quickstart")
    split = None
    if run is not None:
        settings = Settings.from_dict(run.meta.get("settings", {}))
        if settings.data == PHANTOM:
            recipe, split = settings.recipe, PHANTOM
    volumes = phantom_parts(
        recipe.seed,
        recipe.phantom_volumes,
        slices=recipe.phantom_slices,
        matrix=matrix,
        wanted=["test"],
    )["test"]
    drawn = _cases(volumes, len(volumes), mask=mask, matrix=matrix, spec=spec, split=split)
    alone = spec.channels == 1 and not reads_coils(spec)
    return replace(drawn, statement=_PHANTOM_STATEMENT) if alone else drawn


def _statement(spec: NetworkSpec, measured: Sequence[bool]) -> str:
    if reads_coils(spec):
        return SIMULATED_COILS
    if spec.channels == 1:
        return RETROSPECTIVE
    return MEASURED if all(measured) else COMPLEX


def central_slices(case: Case, count: int | None) -> Case:
    """Keep the `count` slices around the middle, all where there are fewer or count is None."""
    kept = _middle(len(case.target), count)
    return case if kept == slice(None) else case.part(kept)


def _middle(slices: int, count: int | None) -> slice:
    if count is None or count >= slices:
        return slice(None)
    start = (slices - count) // 2
    return slice(start, start + count)


def _central(scan: Scan, count: int | None) -> Scan:
    """Do with a scan what `central_slices` does with a case."""
    kept = _middle(len(scan.kspace), count)
    reference = None if scan.reference is None else scan.reference[kept]
    return replace(scan, kspace=scan.kspace[kept], reference=reference)
