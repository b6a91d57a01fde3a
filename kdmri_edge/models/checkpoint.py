"""Trained weights on disk: one safetensors file that knows what it is.

The header's metadata key `kdmri` holds JSON: format, role, architecture, mask, matrix, scaling rule
and how it was trained. Nothing is pickled, so opening a file never runs code.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdmri_edge.errors import CheckpointError, ModelError
from kdmri_edge.models.foreign import OURS, UNTOLD, file_kind
from kdmri_edge.models.protocol import NetworkSpec
from kdmri_edge.models.specs import ModelSpec, spec_from_dict
from kdmri_edge.physics.masks import LARGEST_SIDE, Mask
from kdmri_edge.physics.operators import Form
from kdmri_edge.physics.scaling import SCALING_RULE
from kdmri_edge.utils.extras import require
from kdmri_edge.utils.files import atomic_path, refuse_newer

if TYPE_CHECKING:
    from torch import Tensor

    from kdmri_edge.models.reconstructor import Reconstructor

__all__ = [
    "FORMAT",
    "MAXIMA",
    "RANGES",
    "Checkpoint",
    "is_checkpoint",
    "load_checkpoint",
    "load_reconstructor",
    "read_checkpoint_meta",
    "save_checkpoint",
]

FORMAT = 1
MAXIMA = "activation_maxima"
"""Key of `Checkpoint.training` for what int8 exports need, see `quantisation.calibration`."""
RANGES = "activation_ranges"
"""Key of `Checkpoint.training` of a network trained with rounding.

See `quantisation.fake_quantisation`.
"""
_LARGEST_HEADER = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network.

    Attributes:
        spec: Architecture.
        mask: Sampling pattern it was trained for.
        matrix: Side of the square image matrix.
        role: "teacher", "plain" or "student".
        training: How it came about: data with hashes, attribution, recipe, steps, provenance.
        state: Weights by name.
    """

    spec: NetworkSpec
    mask: Mask
    matrix: int
    role: str
    training: Mapping[str, Any]
    state: Mapping[str, Tensor]


def is_checkpoint(path: Path) -> bool:
    """Tell whether a path is meant as a checkpoint (rather than as a bundle's or run's folder)."""
    return path.suffix == ".safetensors"


def _damaged(path: Path, why: object) -> CheckpointError:
    return CheckpointError(
        f"Checkpoint {path} is damaged ({why}).",
        "Copy it again, train it again, or give another file.",
    )


def _foreign(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is {file_kind(path)}, not a checkpoint that kdmri-edge wrote.",
        "Give a .safetensors file of a run of `kdmri-edge distill`, or a network of"
        " `kdmri-edge models`.",
    )


def read_checkpoint_meta(path: Path) -> dict[str, Any]:
    """Read a checkpoint's metadata without torch or safetensors.

    Raises:
        CheckpointError: Missing, truncated or foreign file, or a newer format.
    """
    if path.is_dir() or not path.exists():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"Checkpoint {path} {what}.", "Check the path.")
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError("its header is implausibly long")
            header = json.loads(stream.read(length))
        if "kdmri" not in (header.get("__metadata__") or {}):
            raise _foreign(path)
        meta = json.loads(header["__metadata__"]["kdmri"])
        version = int(meta["format"])
    except (
        OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
        RecursionError, struct.error,
    ) as error:  # fmt: skip
        # what is named like a checkpoint and of no known kind is most likely one that was cut short
        if path.suffix != ".safetensors" or file_kind(path) not in (OURS, *UNTOLD):
            raise _foreign(path) from error
        raise _damaged(path, error) from error
    refuse_newer(f"Checkpoint {path}", version, FORMAT, CheckpointError)
    return dict(meta)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Raises:
        OutputError: The place cannot be written to.
        MissingExtraError: safetensors is not installed.
    """
    safetensors = require("safetensors.torch", extra="train")
    meta = {
        "format": FORMAT,
        "role": checkpoint.role,
        "spec": checkpoint.spec.to_dict(),
        "mask": checkpoint.mask.to_dict(),
        "matrix": checkpoint.matrix,
        "scaling": SCALING_RULE,
        "training": dict(checkpoint.training),
    }
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, value in checkpoint.state.items():
        held = value.detach().cpu().contiguous()
        # layers may have one weight in common, which the format does not know
        tensors[name] = held.clone() if held.data_ptr() in places else held
        places.add(held.data_ptr())
    data = safetensors.save(tensors, metadata={"kdmri": json.dumps(meta)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: Missing or corrupt file, a newer format, or weights that do not fit the
            architecture that the file declares.
        MissingExtraError: torch or safetensors is not installed.
    """
    meta = read_checkpoint_meta(path)
    require("torch", extra="train")
    safetensors = require("safetensors.torch", extra="train")
    try:
        state = safetensors.load_file(path)
    except Exception as error:  # safetensors raises its own untyped errors for corrupt files
        raise _damaged(path, error) from error
    try:
        spec = spec_from_dict(meta["spec"])
        mask = Mask.from_dict(meta["mask"])
        side = meta["matrix"]
        if type(side) is not int or not 1 <= side <= LARGEST_SIDE:
            raise ValueError(f"its matrix is {side!r}")
        for key in (MAXIMA, RANGES):
            if not isinstance(meta["training"].get(key) or {}, dict):
                raise TypeError(f"its {key} are no table")
        checkpoint = Checkpoint(
            spec=spec,
            mask=mask,
            matrix=side,
            role=str(meta["role"]),
            training=meta["training"],
            state=state,
        )
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise _damaged(path, repr(error)) from error
    except ModelError as error:
        raise _unreadable(path, error) from error
    _check_fit(path, checkpoint)
    return checkpoint


def _unreadable(path: Path, error: ModelError) -> CheckpointError:
    said = f"{error.what[0].lower()}{error.what[1:]}"
    return CheckpointError(f"Checkpoint {path} cannot be read: {said}", error.remedy)


def _check_fit(path: Path, checkpoint: Checkpoint) -> None:
    from kdmri_edge.models.build import build_model

    torch: Any = require("torch", extra="train")
    # A specification may name sizes that fill any memory. Code of others is called as it is:
    # modules that move themselves, or look at values, cannot be built without any.
    own = isinstance(checkpoint.spec, ModelSpec)
    try:
        with torch.device("meta" if own else "cpu"):
            network = build_model(checkpoint.spec)
    except ModelError as error:
        raise _unreadable(path, error) from error
    expected = {name: (value.shape, value.dtype) for name, value in network.state_dict().items()}
    found = {name: (value.shape, value.dtype) for name, value in checkpoint.state.items()}
    if expected != found:
        odd = sorted(set(expected.items()) ^ set(found.items()), key=str)[0][0]
        raise CheckpointError(
            f"Checkpoint {path} does not fit its architecture (first difference: {odd}).",
            "Train it again, or give another file.",
        )


def load_reconstructor(
    path: Path, form: Form | None = None, *, any_mask: bool = False
) -> Reconstructor:
    """Read a checkpoint and return it ready to run, in evaluation mode on the CPU.

    Args:
        path: The .safetensors file.
        form: Form of data consistency; None picks by the mask.
        any_mask: See `Reconstructor`.

    Raises:
        CheckpointError: See `load_checkpoint`.
        MaskError: The form does not suit the checkpoint's mask.
    """
    from kdmri_edge.models.build import build_model
    from kdmri_edge.models.reconstructor import Reconstructor

    checkpoint = load_checkpoint(path)
    model = build_model(checkpoint.spec)
    model.load_state_dict(dict(checkpoint.state))
    training = checkpoint.training
    return Reconstructor(
        model,
        checkpoint.mask,
        form,
        training.get(MAXIMA),
        ranges=training.get(RANGES),
        any_mask=any_mask,
    ).eval()
