"""Whether a bundle is what was exported, and gives on this machine what it gave there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import BackendError, BundleError, KdmriError, MissingExtraError
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
from kdmri_edge.runtime.deviation import Figures, coarser, compare, tolerance_for
from kdmri_edge.runtime.inputs import read_input_spec
from kdmri_edge.runtime.session import Session, open_session
from kdmri_edge.utils.arrays import read_array
from kdmri_edge.utils.extras import load_attribute, require
from kdmri_edge.utils.files import damaged

__all__ = ["verify_bundle"]


def verify_bundle(path: Path, *, backend: str | None = None) -> dict[str, Any]:
    """Check a bundle's files, and run its golden input wherever this machine can.

    Args:
        path: The bundle's folder.
        backend: Key of `BACKENDS` to run alone; None runs all that take the graph.

    Returns:
        Plain JSON values: `passed`; `files`, how many had the right SHA-256; and `rows`, one per
        backend and precision with `status` ("passed", "deviates" or "absent"), the reason of an
        absent one, the deviation from PyTorch's golden output with its tolerance, and what ran;
        for a bundle of any matrix the larger deviation of two `matrices`.
        Passed is a bundle that ran somewhere and deviated nowhere.

    Raises:
        BundleError: A file is missing or changed, or there is no golden data.
        BackendError: The backend does not take the graph.
    """
    bundle = open_bundle(path)
    read_input_spec(path)  # what `run` would ask of the manifest
    golden = tuple(_golden(bundle, name) for name in (GOLDEN_INPUT, GOLDEN_OUTPUT))
    offered = bundle.target.runs_on
    if backend not in (None, *offered):
        open_session(path, backend=backend)  # refuses, with the remedy
    names = offered if backend is None else (backend,)
    with damaged(path, BundleError, "Export the network again."):
        rows = [row for name in names for row in _rows(bundle, name, *golden)]
    statuses = {row["status"] for row in rows}
    return {
        "bundle": str(path),
        "files": len(bundle.manifest["files"]),
        "passed": "passed" in statuses and "deviates" not in statuses,
        "rows": rows,
    }


def _golden(bundle: Bundle, name: str) -> NDArray[np.float32]:
    if name not in bundle.manifest["files"]:
        raise BundleError(f"{bundle.path} lacks its file {name}.", "Export the network again.")
    array: NDArray[np.float32] = read_array(
        bundle.path / name,
        kind="golden data",
        error=BundleError,
        remedy="Export the network again.",
    )
    return array


def _rows(
    bundle: Bundle, name: str, given: NDArray[np.float32], wanted: NDArray[np.float32]
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
    return [_row(bundle, name, precision, given, wanted) for precision in precisions]


def _row(
    bundle: Bundle,
    name: str,
    precision: str,
    given: NDArray[np.float32],
    wanted: NDArray[np.float32],
) -> dict[str, Any]:
    row: dict[str, Any] = {"backend": name, "precision": precision}
    try:
        maps = _golden(bundle, GOLDEN_MAPS) if bundle.takes_maps else None
        session = open_session(bundle.path, backend=name, precision=precision)
        figures = compare(session.run(given, maps=maps), wanted)
        if bundle.free is not None:
            figures = figures.worst(_elsewhere(bundle, session))
    except (BackendError, MissingExtraError) as error:
        return {**row, "status": "absent", "reason": str(error)}
    allowed = coarser(precision, bundle.written)
    tolerance_name, tolerance = tolerance_for(allowed, Form(bundle.manifest["dc"]))
    exceeded = figures.exceeded(tolerance)
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
