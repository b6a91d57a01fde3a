"""Calibrating a network on volumes of known truth: what `kdmri-edge calibrate` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from kdmri_edge.data.case import Case, Undersampling
from kdmri_edge.data.datasets import VolumeFile, find_parts, read_coils, read_found
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.data.scan import Scan
from kdmri_edge.errors import BundleError, CheckpointError
from kdmri_edge.models.checkpoint import is_checkpoint
from kdmri_edge.models.protocol import reads_coils
from kdmri_edge.runtime.bundle import open_bundle
from kdmri_edge.runtime.calibration import (
    CALIBRATION,
    TRAINING,
    VALIDATION,
    Calibration,
    Described,
    fit,
    sidecar,
    write_calibration,
)
from kdmri_edge.runtime.inputs import NetworkInput
from kdmri_edge.runtime.manifest import write_manifest
from kdmri_edge.runtime.pipeline import Pipeline
from kdmri_edge.runtime.statistics import slice_statistics
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.files import sha256_file
from kdmri_edge.utils.provenance import provenance

__all__ = ["calibrate", "described", "place_calibration", "relative_error"]

_SEED: Final = 1  # of what is simulated for complex networks: other coils than training's


def relative_error(image: Any, truth: Any) -> float:
    """Return the norm of |image| - |truth| over that of |image|; infinite for a blank image."""
    own, true = np.abs(image), np.abs(truth)
    norm = float(np.linalg.norm(own))
    return float(np.linalg.norm(own - true)) / norm if norm > 0 else float("inf")


def described(
    pipeline: Pipeline, file: VolumeFile, part: str, every: int
) -> tuple[list[Described], float | None]:
    """Undersample a volume, reconstruct it, and describe its slices.

    Args:
        pipeline: The network.
        file: The volume, fully sampled.
        part: See `Described`.
        every: Take every such slice.

    Returns:
        Slices that are not constant, and the field of view in millimetres where the file tells.

    Raises:
        KdmriError: The volume cannot be read, or is not what the network takes.
    """
    reads = pipeline.reads
    loaded = (read_coils if reads_coils(reads.spec) else read_found)(file)
    fov = None
    if not isinstance(loaded, Scan):
        loaded = to_matrix(loaded, reads.matrix)
        if loaded.voxel_mm is not None:
            sides = zip(loaded.matrix, loaded.voxel_mm[1:], strict=True)
            fov = max(side * mm for side, mm in sides)
    undersampled = Undersampling(reads.spec, reads.mask, reads.matrix, _SEED)
    case = undersampled.case(loaded)
    found = []
    for number in range(0, case.count, every):
        given = _input(case, number, pipeline)
        image = pipeline.images(given)[0]
        statistics = slice_statistics(given.zero_filled[0], image, given.mask)
        if statistics is not None:
            error = relative_error(image, case.target[number])
            found.append(
                Described(
                    part=part, subject=file.subject, contrast=case.contrast or file.contrast,
                    statistics=statistics, error=error,
                )
            )  # fmt: skip
    return found, fov


def _input(case: Case, number: int, pipeline: Pipeline) -> NetworkInput:
    one = slice(number, number + 1)
    kspace = None
    if case.kspace and case.reception is not None:
        kspace = case.reception.part(one).kspace()
    return NetworkInput(
        zero_filled=case.zero_filled[one], mask=pipeline.reads.mask, maps=case.maps_of(one),
        kspace=kspace,
    )  # fmt: skip


def calibrate(
    pipeline: Pipeline, data: Path, *, split: str | None = None, weights: str, every: int = 1
) -> Calibration:
    """Calibrate a network on the subjects of training and validation of a folder.

    Args:
        pipeline: The network.
        data: Folder of fully sampled volumes.
        split: See `find_parts`.
        weights: SHA-256 of its checkpoint.
        every: Take every such slice of training volumes; validation volumes are taken whole.

    Raises:
        DataError: There is no such volume, or too few slices.
    """
    parts = find_parts(data, split=split)
    files = [(TRAINING, file) for file in parts.train]
    files += [(VALIDATION, file) for file in parts.validation]
    slices: list[Described] = []
    fields: list[float] = []
    with progress("Calibrating", len(files)) as advance:
        for part, file in files:
            found, fov = described(pipeline, file, part, every if part == TRAINING else 1)
            slices += found
            fields += [] if fov is None else [fov]
            advance(1)
    subjects = {part: _subjects(slices, part) for part in (TRAINING, VALIDATION)}
    about = {
        "split": parts.split.name,
        "subjects": subjects,
        "slices": {part: sum(one.part == part for one in slices) for part in subjects},
        "volumes": [file.name for _, file in files],
        "every": every,
        "ran": pipeline.session.info.backend,
        "precision": pipeline.session.info.precision_requested,
        "provenance": provenance(_SEED),
    }
    return fit(
        slices,
        weights=weights,
        integers=pipeline.session.info.precision_requested == "int8",
        fov_mm=(min(fields), max(fields)) if fields else None,
        about=about,
    )


def _subjects(slices: Sequence[Described], part: str) -> list[str]:
    return sorted({one.subject for one in slices if one.part == part})


def weights_of(source: Path) -> str:
    """Return the SHA-256 of the checkpoint that a bundle was exported from, or of a checkpoint.

    Raises:
        BundleError: The bundle does not say it.
    """
    if is_checkpoint(source):
        return sha256_file(source)
    found = open_bundle(source, verify=False).manifest.get("checkpoint_sha256")
    if not isinstance(found, str):
        raise BundleError(f"{source} does not say which weights it holds.", "Export it again.")
    return found


def place_calibration(source: Path, calibration: Calibration) -> Path:
    """Write a calibration where `Pipeline` looks for it: into a bundle, or beside a checkpoint.

    A bundle's manifest is written anew, since it accounts for every file: it has another digest
    then, and signatures of the former one are gone.

    Raises:
        BundleError: The bundle is not intact.
        CheckpointError: The calibration is of other weights.
        OutputError: The place cannot be written to.
    """
    if calibration.weights != weights_of(source):
        raise CheckpointError(
            f"The calibration is not that of {source}.", "Calibrate this network itself."
        )
    if is_checkpoint(source):
        write_calibration(sidecar(source), calibration)
        return sidecar(source)
    bundle = open_bundle(source)
    write_calibration(source / CALIBRATION, calibration)
    write_manifest(source, bundle.manifest)
    return source / CALIBRATION
