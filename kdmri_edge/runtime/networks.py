"""What a user may name as a network, and where it runs fastest.

A checkpoint is exported once for the fastest runtime that is installed, and kept in a cache folder.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Final, TypeAlias

from kdmri_edge import __version__
from kdmri_edge.distillation.run_folder import Run, RunNetwork, open_run
from kdmri_edge.errors import BackendError, BundleError, MissingExtraError
from kdmri_edge.models.checkpoint import is_checkpoint, read_checkpoint_meta
from kdmri_edge.models.code import CODE, CodeSpec
from kdmri_edge.models.permission import permitted_code
from kdmri_edge.models.shipped import is_reference, resolve_weights
from kdmri_edge.runtime.backends.registry import BACKENDS, Backend
from kdmri_edge.runtime.bundle import Bundle, open_bundle
from kdmri_edge.runtime.calibration import sidecar
from kdmri_edge.runtime.session import RUN_CHECKPOINTS, check_precision, not_on
from kdmri_edge.runtime.signature import no_bundle
from kdmri_edge.runtime.targets import PRECISIONS, TARGETS
from kdmri_edge.utils.cache import cache_folder
from kdmri_edge.utils.console import say
from kdmri_edge.utils.extras import available, load_attribute
from kdmri_edge.utils.files import sha256_file

__all__ = [
    "NetworkLike",
    "backend_at_hand",
    "cached_export",
    "device_options",
    "fastest_target",
    "locate",
    "where_it_runs",
]

NetworkLike: TypeAlias = "str | os.PathLike[str] | Run | Bundle"
"""What may stand for a network: the name of one of the package, a checkpoint, a bundle, a run."""

# Fastest first, on the CPUs that were measured (bench/results/workstation).
_TARGETS: Final = ("openvino", "onnx")


def locate(network: NetworkLike) -> tuple[Path, str]:
    """Return the checkpoint or bundle that is meant, and what to call it.

    Args:
        network: The name of a network of the package, a checkpoint, a bundle, or a run (its
            student).

    Raises:
        ModelError: There is no such network.
        RunError: The run has no finished student.
    """
    if isinstance(network, Bundle):
        return network.path, network.path.name
    if isinstance(network, Run):
        return network.weights("student"), network.path.name
    if isinstance(network, RunNetwork):
        return network.path, network.role
    place = Path(network)
    if (place / "run.json").is_file() and (run := open_run(place)).has("student"):
        return run.weights("student"), place.name
    return resolve_weights(place), place.name


def fastest_target() -> str | None:
    """Return the export target whose runtime is the fastest that is installed, None without any."""
    for name in _TARGETS:
        if name in TARGETS and available(TARGETS[name].backend.library):
            return name
    return None


def where_it_runs(
    network: NetworkLike,
    *,
    backend: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    any_matrix: bool = False,
    cache: bool = True,
    signed: bool = False,
) -> tuple[Path, str]:
    """Return what is run for a network, and what to call it.

    A checkpoint is exported for the fastest runtime, unless another backend, or a device that this
    one does not have, is asked for.

    Args:
        network: See `locate`.
        backend: Of the user's choice.
        device: Of the user's choice.
        precision: See `cached_export`.
        any_matrix: See `cached_export`.
        cache: Whether an export may be made and kept.
        signed: Refuse what carries no signature: it is no bundle.

    Raises:
        SignatureError: A signed bundle is asked for, and it is none.
        BackendError: It is a checkpoint, and the backend takes none; or the backend has not that
            device or precision.
        KdmriError: See `locate` and `cached_export`.
        MissingExtraError: It is a checkpoint, and PyTorch is not installed.
    """
    source, name = locate(network)
    if signed and is_checkpoint(source):
        raise no_bundle(network)
    if is_checkpoint(source) and cache and _is_fastest(backend, device, precision):
        # of the package's networks int8 takes the copy that was tuned for it
        named = isinstance(network, str | Path) and is_reference(str(network))
        exported = name if named else source
        source = (
            cached_export(
                source, name=name, exported=exported, precision=precision, any_matrix=any_matrix
            )
            or source
        )
    if is_checkpoint(source) and not available("torch"):
        raise MissingExtraError(
            "torch",
            "train",
            "or, without PyTorch, give a bundle: `kdmri-edge export` writes it elsewhere.",
        )
    if is_checkpoint(source) and backend not in (None, *RUN_CHECKPOINTS):
        typed = network if isinstance(network, str | os.PathLike) else name
        raise not_on(typed, RUN_CHECKPOINTS, backend)
    return source, name


def _is_fastest(backend: str | None, device: str | None, precision: str | None) -> bool:
    """Tell whether the fastest runtime is what a user asks for a checkpoint.

    Raises:
        BackendError: It is, and has not that device or precision; an export would be for nothing.
    """
    target = fastest_target()
    if target is None:
        return False
    row = TARGETS[target].backend
    if backend is None:
        # ONNX Runtime has CUDA in a build of its own alone, PyTorch in its usual one
        fits = device is None or (device in row.devices and device != "cuda")
    else:
        fits = backend == row.name
    if not fits:
        return False
    if device is not None:
        _check_device(row, device)
    written = None if precision is None else PRECISIONS.get(precision, precision)
    # of precisions that this runtime alone has not, PyTorch takes some
    if written is not None and (backend is not None or written not in PRECISIONS.values()):
        check_precision(written, TARGETS[target].precisions, row.title)
    return True


def backend_at_hand(source: Path, device: str | None = None) -> str | None:
    """Return the first backend for a bundle whose library is installed, None for its own.

    Nothing is silent about it: what runs is in the session's `info`, which commands print.

    Args:
        source: A bundle or a checkpoint, which has PyTorch alone.
        device: Take those that run there only; without any installed, the first that would.

    Raises:
        BackendError: None of the bundle's backends runs on that device.
    """
    if is_checkpoint(source):
        return None
    offered = open_bundle(source, verify=False).target.runs_on
    names = [name for name in offered if device is None or device in BACKENDS[name].devices]
    if not names:
        raise BackendError(
            f"{source} runs on {' or '.join(offered)}, of which none runs on {device!r}.",
            "Export the network for a target that does, or leave --device out.",
        )
    for name in names:
        libraries = (BACKENDS[name].library, *BACKENDS[name].runs_with)
        if all(available(library) for library in libraries):
            return name
    return None if device is None else names[0]


def device_options(source: Path, backend: str | None, device: str | None) -> dict[str, Any]:
    """Return what a session is told of the device that a user names.

    Args:
        source: A bundle or a checkpoint.
        backend: What runs it; None for the source's own.
        device: As the user named it; None for the usual one.

    Raises:
        BackendError: The backend does not run there.
    """
    if device is None:
        return {}
    if is_checkpoint(source):
        return {"device": device}
    name = backend or open_bundle(source, verify=False).target.runs_on[0]
    row = BACKENDS[name]
    _check_device(row, device)
    return {} if device == row.devices[0] else {"device": device}


def _check_device(row: Backend, device: str) -> None:
    """Refuse a device that a backend does not run on.

    Raises:
        BackendError: It is one.
    """
    if device not in row.devices:
        raise BackendError(
            f"{row.title} runs on {', '.join(row.devices)}, not on {device!r}.",
            "Leave --device out, or choose another --backend.",
        )


def cached_export(
    checkpoint: Path,
    *,
    name: str,
    exported: str | Path,
    precision: str | None = None,
    any_matrix: bool = False,
) -> Path | None:
    """Return a bundle of a checkpoint for the fastest runtime; exported now if it is not kept.

    Args:
        checkpoint: The .safetensors file.
        name: What to call the network in messages.
        exported: What the exporter is given: the checkpoint, or the name of the package's network.
        precision: Of the convolutions; None is fp32, whose images differ from PyTorch's by
            rounding alone.
        any_matrix: The export is to take any matrix and mask.

    Returns:
        The bundle's folder; None where no such runtime is installed, or the export cannot be made
        here without what is missing (PyTorch, onnx), so that the caller runs the checkpoint itself.

    Raises:
        KdmriError: The export fails otherwise, e.g. at the parity gate.
    """
    target = fastest_target()
    if target is None:
        return None
    written = PRECISIONS.get(precision or "fp32", precision or "f32")
    if written not in TARGETS[target].precisions:
        return None
    # what is no checkpoint, or whose code may not be called, is refused before anything is said
    stored = read_checkpoint_meta(checkpoint).get("spec")
    if isinstance(stored, dict) and stored.get("kind") == CODE:
        spec = CodeSpec.from_dict(stored)
        permitted_code(spec.reference, spec.sha256)
    key = f"{sha256_file(checkpoint)} {target} {written} {exported == name} {__version__}"
    key += " any" if any_matrix else ""
    if sidecar(checkpoint).is_file():  # it goes into the bundle
        key += f" {sha256_file(sidecar(checkpoint))}"
    place = cache_folder() / f"{name.replace('/', '_')}-{target}-{_short(key)}"
    try:
        open_bundle(place)
    except BundleError:
        pass  # not there, or damaged: made again
    else:
        return place
    if not all(available(library) for library in ("torch", *TARGETS[target].exports_with)):
        return None
    say(f"Exporting {name} to {TARGETS[target].backend.title} once; it is kept in {place}.")
    place.parent.mkdir(parents=True, exist_ok=True)
    made: Bundle = load_attribute("kdmri_export.jobs:export")(
        exported,
        target=target,
        precision=written,
        matrix="any" if any_matrix else None,
        out=place,
    )
    return made.path


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
