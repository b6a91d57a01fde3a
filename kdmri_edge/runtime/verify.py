"""The acceptance test of a bundle on site: it is what was exported, and runs as it did there.

What lies in it is looked at first, whose it is by its signature, and apart from running it: a
stranger's bundle can be checked without any of it being executed (`files_only`). Then its golden
input is run and compared, and, where it is asked for, timed.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge import __version__
from kdmri_edge.errors import (
    BackendError,
    BundleError,
    KdmriError,
    MissingExtraError,
    SignatureError,
)
from kdmri_edge.models.permission import is_permitted_program
from kdmri_edge.physics.operators import Form
from kdmri_edge.runtime.acceptance import checks_of
from kdmri_edge.runtime.assessed import compare_report
from kdmri_edge.runtime.backends.registry import BACKENDS
from kdmri_edge.runtime.bill import BILL
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
from kdmri_edge.runtime.session import Session, open_session, own_copy
from kdmri_edge.runtime.signature import read_signature
from kdmri_edge.utils.extras import load_attribute, require
from kdmri_edge.utils.files import damaged
from kdmri_edge.utils.keys import public_keys
from kdmri_edge.utils.provenance import machine

__all__ = ["refusal_of", "verify_bundle"]

_MEASURE = "kdmri_bench.measuring.bundle:measure_bundle"


CLAIMED = "The figures and the attribution in its manifest are its exporter's claim."
"""What is said of a network that is not one of this package."""


def verify_bundle(
    path: Path,
    *,
    backend: str | None = None,
    files_only: bool = False,
    digest: str | None = None,
    key: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    report: str | os.PathLike[str] | None = None,
    measure: bool = False,
    max_ms: float | None = None,
    max_memory: int | None = None,
) -> dict[str, Any]:
    """Check a bundle's files, and run its golden input wherever this machine can.

    Args:
        path: The bundle's folder.
        backend: Key of `BACKENDS` to run alone; None runs all that take the graph.
        files_only: Execute nothing: files, manifest, mask, operator and golden data are checked.
        digest: What the manifest's digest has to be, as its sender told it on another way.
        key: File of a public key, or several: one of these has to have signed it.
        report: JSON file of a report (`kdmri-edge assess`), which has to be about this very bundle.
        measure: Time the golden input here, in a process of its own, beside what the export found.
        max_ms: Milliseconds that a slice may take here, network alone; None sets no limit.
        max_memory: Bytes that the process may take here; None sets no limit. Either is measured.

    Returns:
        Plain JSON values: `passed`; `files`, how many had the right SHA-256; `digest` of the
        manifest, None where a bundle of an older version has none; `mask_agrees_with`, which of
        graph, golden operator and golden input hold the mask; `code`, what of it may do anything
        when it is loaded, and was neither written nor allowed here; `origin` with the package's
        `network` that it is by its hash, whether that is `confirmed` (None: not known), and a
        `remark`; and `rows`, one per backend and precision with `status` ("passed", "deviates" or
        "absent"), the reason of an absent one, the deviation from PyTorch's golden output with its
        tolerance, and what ran; for a bundle of any matrix the larger deviation of two `matrices`.
        `signature` is what its signature says and whether it was `checked`, None without one;
        `bill` the file of its bill of materials, None in older bundles; `report` whether that is
        about `this_bundle`; `performance` the figures `here`, those of the export (`there`), their
        ratios and what `exceeded` the site's limits. `kdmri_edge`, `time_utc` and `machine` say
        who verified, when and where; `checks` is all of it as name, result and text.
        Passed is a bundle that is not contradicted in anything, that ran somewhere and deviated
        nowhere, and that keeps the limits; with `files_only` one that holds no unknown code.
        Timings fail nothing without a limit: machines differ.

    Raises:
        SignatureError: It is not signed as it should be, see `open_bundle`.
        KeyFileError: `key` is no file of a public key.
        DataError: `report` is no report.
        BundleError: A file is missing, changed or not named, the manifest is wrong or has another
            digest, or there is no golden data.
        BackendError: The backend does not take the graph.
        ModelError: The graph holds code of unknown origin (not with `files_only`).
    """
    bundle = open_bundle(path, keys=public_keys(key))
    _check_digest(bundle, digest)
    signature = bundle.signature or read_signature(path)
    assessed = None if report is None else compare_report(Path(report), bundle)
    limits = {"p50_ms": max_ms, "peak_bytes": max_memory}
    wanted = limits if measure or max_ms is not None or max_memory is not None else None
    if bundle.signature is None:
        found = _tried(bundle, backend, limits=wanted, files_only=files_only)
    else:  # all of it on a copy that nobody else can change meanwhile
        with own_copy(bundle) as copy:
            there = dataclasses.replace(bundle, path=copy)
            found = _tried(there, backend, limits=wanted, files_only=files_only)
            shutil.rmtree(copy.parent, ignore_errors=True)
        for row in found["rows"]:
            if "reason" in row:
                row["reason"] = row["reason"].replace(str(copy), str(path))
    performance = found["performance"]
    found |= {
        "bundle": str(path),
        "passed": (
            found["passed"]
            and (assessed is None or assessed.this_bundle)
            and (performance is None or not performance["exceeded"])
        ),
        "signature": None
        if signature is None
        else {**dataclasses.asdict(signature), "checked": bundle.signature is not None},
        "bill": BILL if BILL in bundle.manifest["files"] else None,
        "report": None
        if assessed is None
        else {
            **dataclasses.asdict(assessed),
            "named_by_signature": signature is not None and signature.report == assessed.report,
        },
        **_circumstances(),
    }
    return {**found, "checks": [dataclasses.asdict(one) for one in checks_of(found)]}


def _tried(
    bundle: Bundle,
    backend: str | None,
    *,
    limits: Mapping[str, float | None] | None,
    files_only: bool,
) -> dict[str, Any]:
    """Look at what an opened bundle holds, run it, and measure it where there are limits."""
    path = bundle.path
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
        "performance": None
        if limits is None or files_only
        else _performance(bundle, backend, limits),
    }


def refusal_of(path: Path, error: KdmriError) -> dict[str, Any]:
    """Return what `verify_bundle` would, of a bundle that it refuses.

    Returns:
        Plain JSON values: `bundle`, `passed`, which is false, `problem` with its `kind`, `what` and
        `remedy`, and `checks`. The kind of a signature's is its `SignatureState`; of another
        bundle "not intact"; else the exception's name.
    """
    kind = type(error).__name__
    if isinstance(error, SignatureError):
        kind = error.state
    elif isinstance(error, BundleError):
        kind = "not intact"
    problem = {"kind": kind, "what": error.what, "remedy": error.remedy}
    found = {"bundle": str(path), "passed": False, "problem": problem, **_circumstances()}
    return {**found, "checks": [dataclasses.asdict(one) for one in checks_of(found)]}


def _circumstances() -> dict[str, Any]:
    return {
        "kdmri_edge": __version__,
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
    }


def _performance(
    bundle: Bundle, backend: str | None, limits: Mapping[str, float | None]
) -> dict[str, Any]:
    """Measure a slice here, beside what the export found."""
    recorded = bundle.manifest.get("measured") or {}
    there = recorded if "p50_ms" in recorded else None
    with damaged(bundle.path, BundleError, "Export the network again."):
        here: dict[str, Any] = load_attribute(_MEASURE)(bundle.path, like=there, backend=backend)
        exceeded = []
        for key, unit, factor in (("p50_ms", "ms a slice", 1.0), ("peak_bytes", "MiB", 2.0**-20)):
            limit = limits[key]
            if limit is None:
                continue
            if key not in here:
                exceeded.append(f"{limit * factor:.4g} {unit} could not be checked")
            elif here[key] > limit:
                exceeded.append(f"{here[key] * factor:.4g} {unit}, above {limit * factor:.4g}")
        same = there is not None and all(
            there.get(key) == here.get(key) for key in ("backend", "precision", "threads")
        )
        ratios = {}
        if there is not None and same and "p50_ms" in here:
            ratios = {
                "time": round(here["p50_ms"] / float(there["p50_ms"]), 3),
                "memory": round(here["peak_bytes"] / float(there["peak_bytes"]), 3),
            }
    return {
        "here": here,
        "there": there,
        "ratios": ratios,
        "limits": dict(limits),
        "exceeded": exceeded,
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
