"""Whether a bundle is what was exported, and gives on this machine what it gave there.

What lies in it is looked at first, and apart from running it: a stranger's bundle can be checked
without any of it being executed (`files_only`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import BackendError, BundleError, KdmriError, MissingExtraError
from kdmri_edge.models.permission import is_permitted_program
from kdmri_edge.physics.operators import Form
from kdmri_edge.runtime.backends.registry import BACKENDS
from kdmri_edge.runtime.bundle import (
    GOLDEN_INPUT,
    GOLDEN_MAPS,
    GOLDEN_OPERATOR,
    GOLDEN_OUTPUT,
    OTHER,
    Bundle,
    open_bundle,
)
from kdmri_edge.runtime.contents import check_mask, golden_array
from kdmri_edge.runtime.deviation import Figures, coarser, compare, tolerance_for
from kdmri_edge.runtime.graphs.torchscript import refused
from kdmri_edge.runtime.inputs import read_input_spec
from kdmri_edge.runtime.origin import Claim, Trial, claim_of, trial_of
from kdmri_edge.runtime.session import Session, open_session
from kdmri_edge.utils.extras import load_attribute, require
from kdmri_edge.utils.files import damaged

__all__ = ["verify_bundle"]


CLAIMED = "The figures and the attribution in its manifest are its exporter's claim."
"""What is said of a network that is not one of this package."""


def verify_bundle(
    path: Path,
    *,
    backend: str | None = None,
    files_only: bool = False,
    digest: str | None = None,
) -> dict[str, Any]:
    """Check a bundle's files, and run its golden input wherever this machine can.

    Args:
        path: The bundle's folder.
        backend: Key of `BACKENDS` to run alone; None runs all that take the graph.
        files_only: Execute nothing: files, manifest, mask, operator and golden data are checked.
        digest: What the manifest's digest has to be, as its sender told it on another way.

    Returns:
        Plain JSON values: `passed`; `files`, how many had the right SHA-256; `digest` of the
        manifest, None where a bundle of an older version has none; `mask_agrees_with`, which of
        graph, golden operator and golden input hold the mask; `code`, what of it may do anything
        when it is loaded, and was neither written nor allowed here; `origin` with the package's
        `network` that it is by its hash, whether that is `confirmed` (None: not known), and a
        `remark`; and `rows`, one per backend and precision with `status` ("passed", "deviates" or
        "absent"), the reason of an absent one, the deviation from PyTorch's golden output with its
        tolerance, and what ran; for a bundle of any matrix the larger deviation of two `matrices`.
        Passed is a bundle that is not contradicted in anything, and that ran somewhere and
        deviated nowhere; with `files_only` one that holds no unknown code.

    Raises:
        BundleError: A file is missing, changed or not named, the manifest is wrong or has another
            digest, or there is no golden data.
        BackendError: The backend does not take the graph.
        ModelError: The graph holds code of unknown origin (not with `files_only`).
    """
    bundle = open_bundle(path)
    _check_digest(bundle, digest)
    read_input_spec(path)  # what `run` would ask of the manifest
    given, wanted = (_golden(bundle, name) for name in (GOLDEN_INPUT, GOLDEN_OUTPUT))
    offered = bundle.target.runs_on
    if backend not in (None, *offered):
        open_session(path, backend=backend)  # refuses, with the remedy
    claim, trial = claim_of(bundle), None
    code = _unknown_code(bundle) if files_only else []
    rows: list[dict[str, Any]] = []
    if not files_only:
        if claim.checkpoint is not None and claim.contradicted is None:
            trial = trial_of(bundle, claim.checkpoint)
        names = offered if backend is None else (backend,)
        with damaged(path, BundleError, "Export the network again."):
            rows = [row for name in names for row in _rows(bundle, name, given, wanted, trial)]
    origin = _origin(claim, trial, rows)
    statuses = {row["status"] for row in rows}
    ran = not code if files_only else "passed" in statuses and "deviates" not in statuses
    return {
        "bundle": str(path),
        "files": len(bundle.manifest["files"]),
        "digest": bundle.digest,
        "mask_agrees_with": list(check_mask(path, bundle.manifest)),
        "code": code,
        "origin": origin,
        "executed": not files_only,
        "passed": ran and origin["confirmed"] is not False,
        "rows": rows,
    }


def _check_digest(bundle: Bundle, wanted: str | None) -> None:
    """Refuse a bundle that is another one than was meant."""
    if wanted is None or wanted.removeprefix("sha256:") == (bundle.digest or "")[7:]:
        return
    held = f"has digest {bundle.digest}" if bundle.digest else "has no digest"
    raise BundleError(
        f"{bundle.path} {held}, and {wanted} was asked for.", "Get the bundle that was meant."
    )


def _unknown_code(bundle: Bundle) -> list[str]:
    """Name what of a bundle may do anything when it is loaded, and nobody vouched for here."""
    found = []
    for name in bundle.manifest["files"]:
        file = bundle.path / name
        why = refused(file) if file.suffix == ".pt" else None
        why = "holds code and was not written on this machine" if file.suffix == ".pt2" else why
        if why is not None and not is_permitted_program(file):
            found.append(f"{name} {why}.")
    return found


def _origin(
    claim: Claim, trial: Trial | str | None, rows: list[dict[str, Any]]
) -> dict[str, str | bool | None]:
    """Say whose network it is."""
    found: dict[str, str | bool | None] = {"network": claim.network, "confirmed": None}
    tried = [row["origin_exceeded"] for row in rows if "origin_exceeded" in row]
    if claim.network is None:
        return {**found, "remark": CLAIMED}
    if claim.contradicted is not None or any(tried):
        why = claim.contradicted or "Its images are not those of that network."
        return {**found, "confirmed": False, "remark": f"It is not that network. {why}"}
    if tried:
        same = "Its images are those of the package's own weights."
        return {**found, "confirmed": True, "remark": same}
    why = trial if isinstance(trial, str) else "Its images are not compared with that network's."
    return {**found, "remark": f"{why} {CLAIMED}"}


def _golden(bundle: Bundle, name: str) -> NDArray[np.float32]:
    return golden_array(bundle.path, bundle.manifest, name)


def _rows(
    bundle: Bundle,
    name: str,
    given: NDArray[np.float32],
    wanted: NDArray[np.float32],
    trial: Trial | str | None,
) -> list[dict[str, Any]]:
    backend = BACKENDS[name]
    try:
        require(backend.library, extra=backend.extra)
        here = load_attribute(backend.session).precisions_here()
    except KdmriError as error:
        return [{"backend": name, "precision": None, "status": "absent", "reason": str(error)}]
    # a graph of float16 or int8 has no other; a float32 one runs in what the machine has
    written, usual = bundle.written, bundle.meant_for
    precisions = [n for n in here if n != "int8"] if written == "f32" else [written]
    if usual not in precisions and usual in backend.precisions:
        precisions.append(usual)  # bf16 on a machine without it: its row says that it did not run
    return [_row(bundle, name, precision, given, wanted, trial) for precision in precisions]


def _row(
    bundle: Bundle,
    name: str,
    precision: str,
    given: NDArray[np.float32],
    wanted: NDArray[np.float32],
    trial: Trial | str | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"backend": name, "precision": precision}
    try:
        maps = _golden(bundle, GOLDEN_MAPS) if bundle.takes_maps else None
        session = open_session(bundle.path, backend=name, precision=precision)
        figures = compare(session.run(given, maps=maps), wanted)
        if bundle.free is not None:
            figures = figures.worst(_elsewhere(bundle, session))
        tried = None
        if isinstance(trial, Trial):
            tried = compare(session.run(trial.given, maps=trial.maps), trial.wanted)
    except (BackendError, MissingExtraError) as error:
        return {**row, "status": "absent", "reason": str(error)}
    allowed = coarser(precision, bundle.written)
    tolerance_name, tolerance = tolerance_for(allowed, Form(bundle.manifest["dc"]))
    exceeded = figures.exceeded(tolerance)
    if tried is not None:
        row["origin_exceeded"] = tried.exceeded(tolerance)
    if bundle.free is not None:
        other = _golden(bundle, OTHER + GOLDEN_INPUT).shape[2:]
        row["matrices"] = [list(shape) for shape in (given.shape[2:], other)]
    return {
        **row,
        "status": "deviates" if exceeded else "passed",
        "exceeded": exceeded,
        "max_error": figures.max_error,
        "nrmse": figures.nrmse,
        "tolerance_name": tolerance_name,
        "tolerance": {"max_error": tolerance.max_error, "nrmse": tolerance.nrmse},
        "session": dataclasses.asdict(session.info),
    }


def _elsewhere(bundle: Bundle, session: Session) -> Figures:
    """Compare the graph with PyTorch at the other matrix that its bundle has golden data of."""
    given, wanted = (_golden(bundle, OTHER + name) for name in (GOLDEN_INPUT, GOLDEN_OUTPUT))
    maps = _golden(bundle, OTHER + GOLDEN_MAPS) if bundle.takes_maps else None
    operator = None
    if bundle.manifest.get("mask_input"):
        operator = _golden(bundle, OTHER + GOLDEN_OPERATOR)
    return compare(session.run(given, operator=operator, maps=maps), wanted)
