"""Weights of other programs, as files of tensors by name, and how they fit a module.

Files are read without running anything of theirs: safetensors, and what `torch.load` reads with
`weights_only=True`. Training programs put a prefix before the names of the network's weights
(Lightning: the attribute that holds the network), which is found by what is left after it.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from kdmri_edge.errors import CheckpointError
from kdmri_edge.models.foreign import OURS, file_kind
from kdmri_edge.utils.extras import require
from kdmri_edge.utils.suggest import nearest

__all__ = ["load_weights", "read_weights"]

_WITHIN: Final = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training programs keep the weights, Lightning's first."""

_SAVE: Final = "Save them with torch.save(module.state_dict(), FILE), or as safetensors."


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights.

    Args:
        path: safetensors; or a state dict, or a checkpoint that holds one, of `torch.save`.

    Returns:
        Tensors on the CPU by the names that the file has.

    Raises:
        CheckpointError: It is missing, cannot be read without running code of it, or holds no
            weights.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"The file of weights {path} {what}.", "Check the path.")
    kind = file_kind(path)
    if kind == OURS or "safetensors" in kind:
        safetensors = require("safetensors.torch", extra="train")
        try:
            return dict(safetensors.load_file(path))
        except Exception as error:  # safetensors raises its own untyped errors for corrupt files
            raise CheckpointError(f"{path} is damaged ({error}).", "Copy it again.") from error
    if "PyTorch checkpoint" not in kind:
        raise CheckpointError(f"{path} is {kind}, not a file of weights.", _SAVE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are not PyTorch's, refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is a pickle that runs code when it is opened, so it is not.", _SAVE
        ) from error
    except Exception as error:  # whatever a file that was cut short makes of the unpickler
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged ({first}).", "Copy it again.") from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict that a file holds or is."""
    if isinstance(content, Mapping):
        for key in _WITHIN:
            if isinstance(content.get(key), Mapping):
                return _tensors(content[key], path)
        found = {str(key): one for key, one in content.items() if isinstance(one, Tensor)}
        if found and len(found) == len(content):
            return found
    what = f"is of type {type(content).__name__}"
    if isinstance(content, Mapping) and content:
        what = f"holds {', '.join(str(key)[:40] for key in list(content)[:5])}"
    raise CheckpointError(f"{path} holds no weights by name (it {what}).", _SAVE)


def load_weights(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Put weights into a module, in place.

    Args:
        module: The module, without what this library puts around it.
        state: Tensors by the names that the file has.
        origin: What to call the file in messages.

    Raises:
        CheckpointError: The weights do not fit, or hold NaN; the module is as it was.
    """
    wanted = module.state_dict()
    prefix = _prefix(wanted, state, origin)
    found = {
        name.removeprefix(prefix): one for name, one in state.items() if name.startswith(prefix)
    }
    _check_names(wanted, found, origin)
    for name, value in wanted.items():
        given = found[name]
        if given.shape != value.shape:
            raise CheckpointError(
                f"The weights of {origin} do not fit: {name} is of shape {list(given.shape)}, the"
                f" module's is {list(value.shape)}.",
                "Name the code with the arguments that it was trained with.",
            )
        if given.layout is not torch.strided or given.is_quantized or given.is_meta:
            raise CheckpointError(
                f"The weights of {origin} hold no plain numbers ({name} is"
                f" {'without values' if given.is_meta else 'sparse or quantised'}).",
                _SAVE,
            )
        if value.is_floating_point() and not (given.is_floating_point() or given.is_complex()):
            raise CheckpointError(
                f"The weights of {origin} are {given.dtype} where the module's are"
                f" {value.dtype} ({name}).",
                "Save them as floats: integers of a quantised network are not its weights.",
            )
        if given.is_complex() or not torch.isfinite(given.float()).all():
            what = "complex numbers" if given.is_complex() else "NaN or infinite values"
            raise CheckpointError(
                f"The weights of {origin} hold {what} ({name}).", "Give finite, real weights."
            )
    module.load_state_dict(found)


def _prefix(wanted: Collection[str], found: Collection[str], origin: str) -> str:
    """Return what stands before the names of the module's weights in a file; "" for nothing.

    Of all prefixes the one that leaves the most names of the module; the shortest of several.

    Raises:
        CheckpointError: Several leave all of them: a network and its running average, say.
    """
    candidates = {""}
    for name in found:
        parts = name.split(".")
        candidates |= {".".join(parts[:n]) + "." for n in range(1, len(parts))}

    def left(prefix: str) -> int:
        return sum(prefix + name in found for name in wanted)

    whole = sorted(prefix for prefix in candidates if wanted and left(prefix) == len(wanted))
    if len(whole) > 1:
        raise CheckpointError(
            f"{origin} holds weights of the module {len(whole)} times, under"
            f" {', '.join(map(repr, whole[:3]))}, and does not say which are meant.",
            "Save those alone: torch.save({k: v for k, v in state.items() if"
            f" k.startswith({whole[-1]!r})}}, FILE).",
        )
    return max(sorted(candidates, key=len), key=left)


def _check_names(wanted: Collection[str], found: Collection[str], origin: str) -> None:
    """Refuse names that are not the module's, with the nearest ones."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    if not missing and not unexpected:
        return
    said = []
    if missing:
        near = nearest(missing[0], unexpected or found)
        like = f" (the nearest in the file is {near})" if near else ""
        said.append(f"{missing[0]} is missing{like}")
    if unexpected:
        near = nearest(unexpected[0], missing or wanted)
        like = f" (the nearest of the module is {near})" if near else ""
        said.append(f"{unexpected[0]} is not of the module{like}")
    counted = f"{len(missing)} missing, {len(unexpected)} unexpected"
    raise CheckpointError(
        f"The weights of {origin} do not fit the module: {', and '.join(said)}; {counted}.",
        "Name the code with the arguments that it was trained with.",
    )
