"""The weights that a student starts with, as a user names them: what is refused before training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdmri_edge.errors import CheckpointError, ModelError
from kdmri_edge.models.checkpoint import load_checkpoint
from kdmri_edge.models.shipped import refusal

if TYPE_CHECKING:
    from kdmri_edge.models.protocol import NetworkSpec

__all__ = ["check_start_weights"]


def check_start_weights(
    name: str,
    checkpoint: Path | None,
    *,
    student: str,
    spec: NetworkSpec,
    trained: bool,
) -> None:
    """Refuse first weights that are none, or of another network than the student.

    Args:
        name: What the user called them.
        checkpoint: The file that is meant; None where the name is that of no trained network. It
            may be gone where a run goes on, which has its own copy.
        student: What the user called the student.
        spec: Its architecture, with the recipe's dilation.
        trained: Whether the student is a finished one.

    Raises:
        ModelError: There are no weights of that name, the student is trained already, or the
            weights are another architecture's.
        CheckpointError: The file is damaged, or holds weights that are not finite.
    """
    if checkpoint is None:
        raise refusal(
            Path(name),
            ModelError,
            "To start from, give a .safetensors checkpoint, or a trained network of"
            " `kdmri-edge models`.",
        )
    if trained:
        raise ModelError(
            f"--student {student} is trained already, so it cannot start from another.",
            "Leave --start-from out, or give its architecture as --student.",
        )
    if not checkpoint.is_file():
        return
    found = load_checkpoint(checkpoint)
    if found.spec != spec:
        raise ModelError(
            f"{name} is another network than the student {student}:"
            f" {_first_difference(found.spec, spec)}.",
            "Name the same architecture as --student, with the dilation that the recipe gives it.",
        )
    for weight, value in found.state.items():
        if not value.isfinite().all():
            raise CheckpointError(
                f"The weights of {name} hold NaN or infinite values ({weight}), so nothing can"
                " start from them.",
                "Give a checkpoint of a training that went well.",
            )


def _first_difference(one: NetworkSpec, other: NetworkSpec) -> str:
    theirs, ours = one.to_dict(), other.to_dict()
    key = next(key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key))
    return f"{key} is {theirs.get(key)}, not {ours.get(key)}"
