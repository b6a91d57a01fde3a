"""Training and evaluating the cases; every finished piece stays finished."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdmri_bench.measuring.quality import volume_rows
from kdmri_bench.planning.testdata import RETROSPECTIVE, load_cases
from kdmri_bench.reproduce.processes import Piece
from kdmri_bench.reproduce.protocol import CARRIED_NETWORKS, NETWORKS, CaseSpec, known_trainings
from kdmri_bench.reproduce.report import evaluation
from kdmri_edge.data.case import Case
from kdmri_edge.data.datasets import find_parts
from kdmri_edge.data.sources import source_sha256
from kdmri_edge.distillation.pretrained import pretrained_weights
from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import BenchError, RunError
from kdmri_edge.models.blocks import channels_last
from kdmri_edge.models.checkpoint import load_reconstructor
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.consistency import maps_tensor
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.scaling import network_image, network_input
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.files import read_json, sha256_file, write_json

__all__ = ["STATEMENT", "evaluate", "pieces", "reconstruct", "test_cases"]

STATEMENT = RETROSPECTIVE
ZERO_FILLED = "zero-filled"
_AT_ONCE = 4


def pieces(
    case: CaseSpec, folder: Path, done: int, total: int, *, skip_complete: bool
) -> list[Piece]:
    """Return the trainings of a case, in an order in which they can follow each other.

    Args:
        case: What to train.
        folder: The case's folder.
        done: Trainings of the cases before this one, for the display.
        total: Trainings of all cases.
        skip_complete: Leave out what is finished: its data need not be read again.

    Raises:
        RunError: The folder holds trainings of other settings or other volumes.
    """
    volumes = _training_volumes(case)
    _check_others(case, folder, volumes)
    found = []
    for number, training in enumerate(case.trainings, start=done + 1):
        out = folder / training.folder
        wanted = case.settings(training, folder)
        if _complete(out, wanted, volumes) and skip_complete:
            continue
        taught_by = training.taught_by
        found.append(
            Piece(
                out=out,
                settings=wanted,
                title=f"[{number}/{total}] {case.task.name} {case.name}: {training.folder}",
                after=() if taught_by is None else (folder / taught_by,),
            )
        )
    return found


def _training_volumes(case: CaseSpec) -> list[str]:
    """Return the SHA-256 of a case's training and validation volumes, in their order."""
    parts = find_parts(case.data, contrast=case.contrast, split=case.split)
    return [source_sha256(file.path) for file in (*parts.train, *parts.validation)]


def _check_others(case: CaseSpec, folder: Path, volumes: list[str]) -> None:
    """Refuse networks of earlier requests that were trained otherwise: one table shows them all.

    Raises:
        RunError: See `_complete`.
    """
    asked = {training.folder for training in case.trainings}
    for training in known_trainings():
        if training.folder not in asked:
            _complete(folder / training.folder, case.settings(training, folder), volumes)


def _complete(folder: Path, wanted: Settings, volumes: list[str]) -> bool:
    """Tell whether a training is finished.

    Raises:
        RunError: It was one of other settings, or of other volumes.
    """
    if not (folder / "run.json").is_file():
        return False
    run = Run(folder)
    other = Settings.from_dict(run.meta.get("settings", {})).difference(wanted)
    if other is not None:
        raise RunError(
            f"{folder} was trained with another {other}.",
            "Ask for the same again, or choose another --out.",
        )
    data = run.meta.get("data", {})
    trained = [item["sha256"] for part in ("train", "validation") for item in data.get(part, ())]
    if trained != volumes:
        raise RunError(
            f"{folder} was trained on other volumes than {wanted.data} holds now.",
            "Restore them, or choose another --out.",
        )
    pretrained_weights(wanted, run)  # refuses a student of another teacher than is there now
    return run.complete


def test_cases(case: CaseSpec) -> tuple[Case, ...]:
    """Read the test volumes of a case's split, undersampled with its mask.

    Raises:
        DataError: An unreadable volume, or the split has no test subject here.
    """
    files = find_parts(case.data, contrast=case.contrast, split=case.split).test
    if not files:
        raise BenchError(
            f"{case.data} holds no test subject of split {case.split!r}.", "Give the whole folder."
        )
    spec = preset(case.task.student)
    return load_cases(files, mask=case.mask, matrix=case.task.matrix, spec=spec).cases


test_cases.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever its name


def reconstruct(
    checkpoint: Path, cases: Sequence[Case], mask: Mask | None = None
) -> list[NDArray[Any]]:
    """Run a network on whole volumes: PyTorch on the CPU, float32, channels-last.

    Args:
        checkpoint: Its weights.
        cases: Volumes [S, H, W].
        mask: What the cases were sampled with; None for the checkpoint's own mask.

    Returns:
        Reconstructions [S, H, W] in the volumes' own intensity units.
    """
    network = load_reconstructor(checkpoint)
    if mask is not None:
        network = Reconstructor(network.model, mask).eval()
    channels_last(network)
    volumes = []
    with torch.inference_mode():
        for case in cases:
            inputs = torch.from_numpy(network_input(case.zero_filled, case.scale))
            outputs = []
            starts = range(0, len(inputs), _AT_ONCE)
            for start, x in zip(starts, torch.split(inputs, _AT_ONCE), strict=True):
                maps = case.maps_of(slice(start, start + _AT_ONCE))
                outputs.append(network(x, maps=None if maps is None else maps_tensor(maps)).numpy())
            volumes.append(network_image(np.concatenate(outputs), case.scale))
    return volumes


def evaluate(case: CaseSpec, folder: Path) -> None:
    """Measure all finished networks of a case on its test volumes, once.

    A file of figures names the weights and the volumes that it belongs to, and is made anew when
    either changed.
    """
    files = find_parts(case.data, contrast=case.contrast, split=case.split).test
    volumes = [source_sha256(file.path) for file in files]
    missing = [
        (name, checkpoint)
        for name, checkpoint in _networks(folder).items()
        if not _is_current(evaluation(folder, name), checkpoint, volumes)
    ]
    if not missing:
        return
    cases = test_cases(case)
    with progress(f"Evaluating {case.name}", len(missing)) as advance:
        for name, checkpoint in missing:
            outputs = (
                [case.zero_filled for case in cases]
                if checkpoint is None
                else reconstruct(checkpoint, cases)
            )
            rows = [
                {**row, "subject": one.subject, "contrast": one.contrast, "sha256": one.sha256}
                for row, one in zip(volume_rows(cases, outputs), cases, strict=True)
            ]
            weights = sha256_file(checkpoint) if checkpoint else None
            write_json(
                evaluation(folder, name),
                {"weights_sha256": weights, "volumes_sha256": volumes, "rows": rows},
            )
            advance(1)


def _networks(folder: Path) -> dict[str, Path | None]:
    """Return the finished networks' weights by name; None for the zero-filled image."""
    found: dict[str, Path | None] = {ZERO_FILLED: None}
    for name, network in (NETWORKS | CARRIED_NETWORKS).items():
        folders = (network.folder, *(() if network.alone is None else (network.alone.folder,)))
        runs = [run for run in map(Run, map(folder.joinpath, folders)) if run.has(network.role)]
        if runs:
            found[name] = runs[0].file(network.role)
    return found


def _is_current(file: Path, checkpoint: Path | None, volumes: list[str]) -> bool:
    if not file.is_file():
        return False
    stored = dict(read_json(file, BenchError, finite=False))
    weights = sha256_file(checkpoint) if checkpoint else None
    return stored.get("weights_sha256") == weights and stored.get("volumes_sha256") == volumes
