"""Which rows a benchmark has: every network in every way that `variants` knows.

The backends come from the table of export targets; a new target appears here by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from kdmri_bench.planning.exporter import Make, Refused, attempt
from kdmri_bench.planning.exports import bundle_size, dft_nodes, export_for
from kdmri_bench.planning.settings import BenchSettings, Precision
from kdmri_bench.planning.sources import Source
from kdmri_bench.planning.variants import (
    COMPILED,
    EagerVariant,
    ExportedVariant,
    eager_variants,
    exported_variants,
    variants_for,
)
from kdmri_bench.results.ratios import PLAIN_EXPORT
from kdmri_bench.results.schema import Row, Status
from kdmri_edge.errors import BackendError, BenchError, KdmriError, MissingExtraError
from kdmri_edge.runtime.backends.registry import Backend
from kdmri_edge.runtime.bundle import open_bundle
from kdmri_edge.runtime.targets import TARGETS
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.extras import available

__all__ = ["Plan", "plan_rows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One row to be measured, or why it cannot be.

    Attributes:
        row: the row as far as it is known; its status is SKIPPED or FAILED where nothing can run.
        source: bundle folder or checkpoint; None where nothing can run.
        backend: for `open_session`.
        options: further arguments of `open_session`.
        dynamic: makes the bundle that takes any batch, when it is needed; None where the source
            itself takes any batch, or nothing larger than one slice can be run.
        opener: import string of what opens the source instead of `open_session`.
    """

    row: Row
    source: Path | None
    backend: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    dynamic: Callable[[], Path | Refused] | None = None
    opener: str | None = None


def plan_rows(
    sources: Sequence[Source], settings: BenchSettings, scratch: Path, *, make: Make = attempt
) -> list[Plan]:
    """Lay out the rows and make the exports that are missing.

    Whatever cannot be run here keeps its row, with the reason; nothing is raised for one row's
    sake.

    Args:
        sources: the networks.
        settings: precisions, and which ways are wanted.
        scratch: folder for the exports of networks that belong to no run.
        make: makes one export, in this process or in another.
    """
    ways = {
        source.name: exported_variants(source.spec, source.role, settings)
        if source.checkpoint
        else []
        for source in sources
    }
    plans: list[Plan] = []
    with progress("Exporting", sum(map(len, ways.values()))) as advance:
        for source in sources:
            if source.checkpoint is not None:
                plans.extend(_live(source, way, settings) for way in eager_variants(settings))
            for way in ways[source.name]:
                plans.append(_exported(source, way, settings, scratch, make))
                advance(1)
            plans.extend(_given(source, settings))
    return plans


def _row(source: Source, runtime: str, key: str, precision: Precision, device: str) -> Row:
    return Row(
        key=f"{source.name}/{key}",
        network=source.name,
        role=source.role,
        runtime=runtime,
        precision=str(precision),
        device=device,
    )


def _live(source: Source, way: EagerVariant, settings: BenchSettings) -> Plan:
    row = _row(source, way.runtime, way.key, Precision.F32, way.device)
    row = replace(row, variant=way.variant)
    if source.checkpoint is not None:
        row = replace(row, size_bytes=source.checkpoint.stat().st_size)
    if not available("torch"):
        return _absent(row, MissingExtraError("torch", "train"))
    if way.device == "cuda" and not _cuda():
        return _absent(row, _NO_CUDA)
    if way.variant == COMPILED and not settings.compile:
        return _absent(row, _NOT_QUICK)
    return Plan(row=row, source=source.checkpoint, options=way.options)


_NO_CUDA = BackendError("This machine has no CUDA device.", "Measure where there is one.")
_NOT_QUICK = BackendError(
    "torch.compile is left out of the quick mode, since it compiles for minutes.",
    "Measure with --full.",
)


@cache
def _cuda() -> bool:
    """Whether there is a CUDA device."""
    if not available("torch"):
        return False
    import torch

    return bool(torch.cuda.is_available())


def _absent(row: Row, error: KdmriError) -> Plan:
    return Plan(row=replace(row, status=Status.SKIPPED, reason=str(error)), source=None)


def _missing(backend: Backend) -> KdmriError | None:
    lacking = (name for name in (backend.library, *backend.runs_with) if not available(name))
    name = next(lacking, None)
    if name is not None:
        return MissingExtraError(name, backend.extra)
    return _NO_CUDA if backend.devices == ("cuda",) and not _cuda() else None


def _exported(
    source: Source, way: ExportedVariant, settings: BenchSettings, scratch: Path, make: Make
) -> Plan:
    row = _row(source, way.backend.title, way.key, way.precision, way.device)
    row = replace(row, variant=way.variant)
    missing = _missing(way.backend)
    if missing is not None:
        return _absent(row, missing)
    work = partial(
        export_for,
        source,
        way.target.name,
        dc=way.dc,
        scratch=scratch,
        precision=way.written,
        **({"builder": way.builder} if way.builder else {}),
    )
    made = make(work)
    if isinstance(made, Refused):
        status = Status.SKIPPED if made.absent else Status.FAILED
        return Plan(row=replace(row, status=status, reason=made.reason), source=None)
    plan = _ready(row, made)
    backend = None if way.backend is way.target.backend else way.backend.name
    plan = replace(plan, backend=backend, options=way.options)
    if max(settings.batches, default=1) > 1:
        plan = replace(plan, dynamic=partial(make, partial(work, batch="dynamic")))
    return plan


def _ready(row: Row, bundle: Path) -> Plan:
    opened = open_bundle(bundle)
    row = replace(row, size_bytes=bundle_size(opened), dft_nodes=dft_nodes(opened))
    return Plan(row=row, source=bundle)


def _not_asked(source: Source, path: Path, backend: Backend, written: str) -> Plan:
    """The row of a bundle in a precision that is not to be measured."""
    key = f"{path.name}-{written}"
    row = _row(source, backend.title, key, Precision(written), backend.devices[0])
    return _absent(
        row, BenchError(f"It is written in {written}.", f"Measure with --precision {written}.")
    )


def _given(source: Source, settings: BenchSettings) -> Iterable[Plan]:
    """Rows of bundles that the user named."""
    for path in source.bundles:
        manifest = open_bundle(path).manifest
        target = TARGETS[manifest["target"]]
        written = str(manifest.get("precision", "f32"))
        ways = [
            way for way in variants_for(target, target.backend, settings) if way.written == written
        ]
        if not ways:
            yield _not_asked(source, path, target.backend, written)
        for way in ways:
            key = f"{path.name}-{way.precision}"
            row = _row(source, target.backend.title, key, way.precision, way.device)
            if manifest.get("dc") == "fft" and target.name in ("onnx", "openvino"):
                row = replace(row, variant=PLAIN_EXPORT)
            missing = _missing(target.backend)
            yield _absent(row, missing) if missing else _ready(row, path)
