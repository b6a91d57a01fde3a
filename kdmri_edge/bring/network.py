"""From code that a user names, and a file of weights, to what the rest of the library takes.

Code alone is an architecture, as a preset is. With weights it becomes a checkpoint, which is kept
in the cache folder and stands wherever one of a run can.
"""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

from kdmri_edge.errors import KdmriError, ModelError
from kdmri_edge.models.code import (
    CodeSpec,
    convention_named,
    is_code,
    is_module,
)
from kdmri_edge.models.permission import PermittedCode, allow_code, keep_object
from kdmri_edge.models.shipped import named_mask
from kdmri_edge.physics.masks import Mask
from kdmri_edge.utils.cache import cache_folder
from kdmri_edge.utils.extras import require
from kdmri_edge.utils.files import sha256_file
from kdmri_edge.utils.provenance import provenance

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdmri_edge.models.network import Network

__all__ = [
    "BROUGHT",
    "Code",
    "bring",
    "bring_checkpoint",
    "bring_trained",
    "check_not_brought",
    "is_brought",
    "tried",
]

Code: TypeAlias = "str | os.PathLike[str] | nn.Module"
"""Code that makes a network, "FILE.py:factory" or "package.module:factory"; or a module."""

BROUGHT = "network"
"""Role of a network that was brought with its weights, in checkpoints and reports."""


def check_not_brought(said: Mapping[str, object], error: type[KdmriError]) -> None:
    """Refuse what is said of a network that says it itself.

    Args:
        said: The arguments of `bring_checkpoint`, None where nothing was said.
        error: Raised for the first that was.
    """
    for name, value in said.items():
        if value is not None:
            raise error(
                f"{name.capitalize()} can be named for a network that is code alone.",
                "Presets, checkpoints, runs and bundles say it themselves: leave it out.",
            )


def is_brought(value: object) -> TypeGuard[Code]:
    """Tell whether a value names code or is a module, rather than a network of this library."""
    return is_module(value) or is_code(value)


def bring(code: Code, *, convention: str | None = None) -> CodeSpec:
    """Describe the network that code makes; its code is allowed to be called from now on.

    Args:
        code: Its reference, or the module itself.
        convention: Name of a `Convention`, where the signature of `forward` does not tell it.

    Returns:
        Its specification, without a count of its multiplications (`tried`).

    Raises:
        ModelError: There is no such code, it fails, or its `forward` follows no known convention.
        MissingExtraError: PyTorch is not installed.
    """
    require("torch", extra="train")
    from kdmri_edge.models.adapter import adapted, call

    said = None if convention is None else convention_named(convention)
    allowed = _kept(code) if is_module(code) else allow_code(str(code))
    name = str(allowed.reference.portable)
    made = adapted(call(allowed), name, said)
    if any(value.is_meta for value in made.network.state_dict().values()):
        raise ModelError(
            f"The module of {name} has weights without values (device meta).", "Make it on the CPU."
        )
    return CodeSpec(
        reference=name,
        sha256=allowed.sha256,
        convention=made.convention,
        reads=made.reads,
        has_data_consistency=made.network.has_data_consistency,
        parameters=sum(p.numel() for p in made.network.parameters() if p.requires_grad),
    )


def _kept(module: nn.Module) -> PermittedCode:
    """Keep a module that was given as an object.

    Raises:
        ModelError: It cannot be pickled.
    """
    own = type(module).__name__
    try:
        pickled = pickle.dumps(copy.deepcopy(module).cpu())
    except Exception as error:  # of whatever the module holds
        raise ModelError(
            f"The module {own} cannot be handed to the processes that train and measure"
            f" ({type(error).__name__}: {str(error).rstrip('.')}).",
            f"Put its class into a file, and name it FILE.py:{own}.",
        ) from error
    return keep_object(own, pickled)


def tried(spec: CodeSpec, mask: Mask, matrix: int) -> CodeSpec:
    """Run a freshly drawn network once on a phantom, and count its multiplications.

    Raises:
        ModelError: See `trial.try_network`.
        MaskError: The mask is of another matrix.
    """
    import torch

    from kdmri_edge.bring.trial import try_network
    from kdmri_edge.models.build import build_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return try_network(build_model(spec), spec, mask, matrix)


def bring_trained(spec: CodeSpec, weights: Path | None, mask: Mask, matrix: int) -> Path:
    """Give a network its weights, run it once on a phantom, and keep it as a checkpoint.

    Args:
        spec: What `bring` returned.
        weights: File of weights; None for those that a module, given as an object, has.
        mask: The mask that the network is meant for.
        matrix: Side of its square images.

    Returns:
        The checkpoint, in the cache folder.

    Raises:
        CheckpointError: See `foreign_weights.read_weights` and `load_weights`.
        ModelError: See `trial.try_network`.
        OutputError: The cache folder cannot be written to.
    """
    from kdmri_edge.bring.trial import try_network
    from kdmri_edge.models.build import build_model
    from kdmri_edge.models.checkpoint import Checkpoint, save_checkpoint
    from kdmri_edge.models.foreign_weights import load_weights, read_weights

    network = build_model(spec)
    origin = {}
    if weights is not None:
        load_weights(_holder(network), read_weights(weights), str(weights))
        origin = {"weights": {"file": weights.name, "sha256": sha256_file(weights)}}
    spec = try_network(network, spec, mask, matrix)
    state = network.state_dict()
    name = spec.reference.partition(":")[2].partition("?")[0]
    key = _sha256(f"{spec.to_dict()} {mask.sha256} {matrix}", state)
    place = cache_folder() / "brought" / f"{name}-{key[:16]}.safetensors"
    if not place.is_file():
        training = {"data": [], "steps": {}, "provenance": provenance(), **origin}
        made = Checkpoint(
            spec=spec, mask=mask, matrix=matrix, role=BROUGHT, training=training, state=state
        )
        save_checkpoint(place, made)
    return place


def _holder(network: Network) -> nn.Module:
    """Return what the names of a user's weights are of: the module, or an adapter with more."""
    module: nn.Module = network.get_submodule("module")
    outside = [name for name in network.state_dict() if not name.startswith("module.")]
    return network if outside else module


def _sha256(text: str, state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def bring_checkpoint(
    code: Code,
    *,
    weights: str | os.PathLike[str] | None = None,
    mask: Mask | str | os.PathLike[str] | None = None,
    matrix: int | None = None,
    convention: str | None = None,
) -> Path:
    """Return the checkpoint of a network that is brought with its weights.

    Args:
        code: Its reference, or the module itself.
        weights: File of weights; a module has its own.
        mask: The mask that it is meant for: a mask, a file, or a network whose mask is taken.
        matrix: Side of its square images; None takes the mask's.
        convention: See `bring`.

    Raises:
        ModelError: Weights or mask are not said; see `bring` and `bring_trained`.
        CheckpointError: See `bring_trained`.
        MaskError: The mask cannot be read, or is of another matrix.
    """
    shown = type(code).__name__ if is_module(code) else str(code)
    if weights is None and not is_module(code):
        raise ModelError(
            f"{shown} is code without weights.",
            "Give them with --weights FILE, or train it: `kdmri-edge distill`.",
        )
    if mask is None:
        raise ModelError(
            f"{shown} does not say for which mask it reconstructs.",
            "Give it with --for-mask: a mask file, or a network whose mask is taken.",
        )
    chosen = mask if isinstance(mask, Mask) else named_mask(str(mask))
    spec = bring(code, convention=convention)
    place = None if weights is None else Path(weights)
    return bring_trained(spec, place, chosen, matrix or chosen.height)
