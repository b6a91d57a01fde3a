"""Pretrained networks of a run: known by their weights, wherever their files lie."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import RunError
from kdmri_edge.models.checkpoint import load_checkpoint

__all__ = ["START", "pretrained_weights"]

START: Final = "start"
"""Name of the copy that a run keeps of the weights that its student starts with."""


def pretrained_weights(settings: Settings, run: Run) -> dict[str, str]:
    """Return the SHA-256 of the weights of a run's pretrained networks, by role.

    A run keeps a copy of them; once that is made the original file may move, or go.

    Args:
        settings: The request.
        run: Its run folder, which need not be there yet.

    Raises:
        RunError: The original file holds other weights now than those the run was begun with.
        CheckpointError: Neither file can be read.
    """
    found = {}
    paths = {
        "teacher": settings.teacher_checkpoint,
        "student": settings.student_checkpoint,
        START: settings.start_checkpoint,
    }
    for role, path in paths.items():
        if path is None:
            continue
        own = run.file(role)
        found[role] = _sha256(own if own.is_file() else path)
        if own.is_file() and path.is_file() and _sha256(path) != found[role]:
            raise RunError(
                f"{run.path} was begun with another {role} than {path} holds now.",
                "Choose another --out, or delete that folder to begin anew.",
            )
    return found


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(load_checkpoint(file).state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
