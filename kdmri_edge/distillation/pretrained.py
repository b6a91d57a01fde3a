"""Networks that a run was given: known by their weights, wherever their files lie."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import RunError
from kdmri_edge.models.checkpoint import load_checkpoint

__all__ = ["pretrained_weights"]


def pretrained_weights(settings: Settings, run: Run) -> dict[str, str]:
    """Return the SHA-256 of the weights of the networks that a run was given, by role.

    A run keeps a copy of them; where that is made the given file may move, or go.

    Args:
        settings: The request.
        run: Its run folder, which need not be there yet.

    Raises:
        RunError: The given file holds other weights now than those the run was begun with.
        CheckpointError: Neither file can be read.
    """
    found = {}
    for role, place in (("teacher", settings.teacher_place), ("student", settings.student_place)):
        if place is None:
            continue
        own = run.file(role)
        found[role] = _sha256(own if own.is_file() else place)
        if own.is_file() and place.is_file() and _sha256(place) != found[role]:
            raise RunError(
                f"{run.path} was begun with another {role} than {place} holds now.",
                "Choose another --out, or delete that folder to begin anew.",
            )
    return found


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(load_checkpoint(file).state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
