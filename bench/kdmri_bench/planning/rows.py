"""The rows of a benchmark before they are measured: every network in every variant of it.

The backends come from the table of export targets; a new target appears here by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path
from typing import Any

from kdmri_bench.planning.exporter import Make, Refused, attempt
from kdmri_bench.planning.exports import bundle_size, dft_nodes, export_for
from kdmri_bench.planning.settings import BenchSettings
from kdmri_bench.planning.sources import Source
from kdmri_bench.planning.variants import (
    COMPILED,
    TORCH_TENSORRT,
    EagerVariant,
    ExportedVariant,
    eager_variants,
    exported_variants,
    variants_for,
)
from kdmri_bench.results.figures import spelled
from kdmri_bench.results.schema import DEFAULT, PLAIN_EXPORT, Row, Status
from kdmri_edge.errors import BackendError, BenchError, KdmriError, MissingExtraError
from kdmri_edge.models.protocol import holds_mask
from kdmri_edge.runtime.backends.registry import Backend
from kdmri_edge.runtime.bundle import open_bundle
from kdmri_edge.runtime.targets import TARGETS
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.extras import available, load_attribute

__all__ = ["Draft", "Plan", "chosen", "draft_rows", "has_cuda", "plan_rows", "planned_row"]


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
        reads: checkpoint or bundle that says what the source has to be given; None for itself.
    """

    row: Row
    source: Path | None
    backend: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    dynamic: Callable[[], Path | Refused] | None = None
    opener: str | None = None
    reads: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A row before anything is exported for it.

    Attributes:
        plan: what is known of it.
        export: completes the plan, given a folder for exports and what makes them; None where
            nothing is left to be made.
    """

    plan: Plan
    export: Callable[[Path, Make], Plan] | None = None


def draft_rows(sources: Sequence[Source], settings: BenchSettings) -> list[Draft]:
    """Lay out the rows, without exporting anything.

    Args:
        sources: the networks.
        settings: precisions, and which variants are wanted.
    """
    drafts: list[Draft] = []
    for source in sources:
        if source.checkpoint is not None:
            drafts += [
                Draft(plan=_eager_plan(source, variant, settings))
                for variant in eager_variants(settings)
            ]
            drafts += [
                _exported_draft(source, variant, settings)
                for variant in exported_variants(source.spec, source.role, settings)
            ]
        drafts += [Draft(plan=plan) for plan in _bundle_plans(source, settings)]
    return drafts


def chosen(
    drafts: Sequence[Draft], patterns: Sequence[str], *, ordered: bool = False
) -> list[Draft]:
    """Return the rows that patterns name.

    Args:
        drafts: all rows.
        patterns: of their keys, with * and ? as in a shell: of a whole key, of one with the
            network's role in place of its name ("student/cuda-*"), or of what follows the name
            ("cuda-*"). Empty takes all.
        ordered: in the order of the patterns, and leave out patterns that name nothing.

    Raises:
        BenchError: a pattern names no row.
    """
    if not patterns:
        return list(drafts)
    if ordered:
        named = [d for pattern in patterns for d in drafts if _named(d, pattern)]
        return list({draft.plan.row.key: draft for draft in named}.values())
    for pattern in patterns:
        if not any(_named(draft, pattern) for draft in drafts):
            raise BenchError(
                f"No row is called {pattern!r}.", "`kdmri-edge bench ... --list-rows` lists them."
            )
    return [d for d in drafts if any(_named(d, pattern) for pattern in patterns)]


def _named(draft: Draft, pattern: str) -> bool:
    row = draft.plan.row
    way = row.key.rpartition("/")[2]
    return any(fnmatchcase(name, pattern) for name in (row.key, f"{row.role}/{way}", way))


def plan_rows(
    sources: Sequence[Source],
    settings: BenchSettings,
    scratch: Path,
    *,
    make: Make = attempt,
    rows: Sequence[str] = (),
    until: float | None = None,
) -> list[Plan]:
    """Lay out the rows and make the exports that are missing.

    Whatever cannot be run here keeps its row, with the reason; nothing is raised for one row's
    sake.

    Args:
        sources: the networks.
        settings: precisions, and which variants are wanted.
        scratch: folder for the exports of networks that belong to no run.
        make: makes one export, in this process or in another.
        rows: patterns, see `chosen`; with a limit of time their order is that of the rows.
        until: time.perf_counter() after which no export is begun.

    Raises:
        BenchError: a pattern names no row.
    """
    ordered = settings.limit_s is not None and bool(rows)
    drafts = chosen(draft_rows(sources, settings), rows, ordered=ordered)
    plans: list[Plan] = []
    with progress("Exporting", sum(draft.export is not None for draft in drafts)) as advance:
        for draft in drafts:
            if draft.export is None:
                plans.append(draft.plan)
                continue
            advance(0, note=draft.plan.row.key)
            late = until is not None and time.perf_counter() > until
            plans.append(_skipped(draft.plan.row, _LATE) if late else draft.export(scratch, make))
            advance(1)
    return plans


def planned_row(
    source: Source,
    key: str,
    runtime: str,
    precision: str,
    *,
    variant: str = DEFAULT,
    device: str = "cpu",
) -> Row:
    """Return a row of a network that nothing is measured of yet.

    Args:
        source: the network.
        key: the row's, after the network's name.
        runtime: title of what will run it.
        precision: that is asked for.
        variant: what is special about it.
        device: see `Row`.
    """
    return Row(
        key=f"{source.name}/{key}",
        network=source.name,
        role=source.role,
        runtime=runtime,
        precision=str(precision),
        variant=variant,
        device=device,
    )


def _eager_plan(source: Source, variant: EagerVariant, settings: BenchSettings) -> Plan:
    row = planned_row(
        source,
        variant.key,
        variant.runtime,
        variant.precision,
        variant=variant.variant,
        device=variant.device,
    )
    if source.checkpoint is not None:
        row = replace(row, size_bytes=source.checkpoint.stat().st_size)
    if not available("torch"):
        return _skipped(row, MissingExtraError("torch", "train"))
    if variant.device == "cuda" and not has_cuda():
        return _skipped(row, _NO_CUDA)
    if variant.variant == COMPILED and not settings.compile:
        return _skipped(row, _NOT_QUICK)
    if variant.variant == TORCH_TENSORRT:
        try:
            load_attribute(_TORCH_TENSORRT_CHECK)(variant.device)
        except BackendError as error:
            return _skipped(row, error)
    return Plan(row=row, source=source.checkpoint, options=variant.options)


_NO_CUDA = BackendError("This machine has no CUDA device.", "Measure where there is one.")
_NO_FORM = BenchError(
    "The network has data consistency of its own, and no other form of it.",
    "Measure its other exports.",
)
_LATE = BackendError(
    "There was no time left for its export.", "Measure this row with --rows, or give more time."
)
_TORCH_TENSORRT_CHECK = "kdmri_edge.runtime.backends.pytorch:check_torch_tensorrt"
_NOT_QUICK = BackendError(
    "torch.compile is left out of the quick mode, since it compiles for minutes.",
    "Measure with --full.",
)


@cache
def has_cuda() -> bool:
    """Whether PyTorch finds a CUDA device."""
    if not available("torch"):
        return False
    import torch

    return bool(torch.cuda.is_available())


def _skipped(row: Row, error: KdmriError) -> Plan:
    return Plan(row=replace(row, status=Status.SKIPPED, reason=str(error)), source=None)


def _missing(backend: Backend) -> KdmriError | None:
    lacking = (name for name in (backend.library, *backend.runs_with) if not available(name))
    name = next(lacking, None)
    if name is not None:
        return MissingExtraError(name, backend.extra)
    return _NO_CUDA if backend.devices == ("cuda",) and not has_cuda() else None


def _exported_draft(source: Source, variant: ExportedVariant, settings: BenchSettings) -> Draft:
    row = planned_row(
        source,
        variant.key,
        variant.backend.title,
        variant.precision,
        variant=variant.variant,
        device=variant.device,
    )
    missing = _missing(variant.backend)
    if missing is None and variant.device == "cuda" and not has_cuda():
        missing = _NO_CUDA
    if missing is not None:
        return Draft(plan=_skipped(row, missing))
    if variant.dc == "fft" and holds_mask(source.spec):
        return Draft(plan=_skipped(row, _NO_FORM))
    export = partial(_exported_plan, source, variant, settings, row)
    return Draft(plan=Plan(row=row, source=None), export=export)


def _exported_plan(
    source: Source,
    variant: ExportedVariant,
    settings: BenchSettings,
    row: Row,
    scratch: Path,
    make: Make,
) -> Plan:
    work = partial(
        export_for,
        source,
        variant.target.name,
        dc=variant.dc,
        scratch=scratch,
        precision=variant.written,
        **({"builder": variant.builder} if variant.builder else {}),
    )
    made = make(work)
    if isinstance(made, Refused):
        status = Status.SKIPPED if made.absent else Status.FAILED
        return Plan(row=replace(row, status=status, reason=made.reason), source=None)
    plan = _ready(row, made)
    backend = None if variant.backend is variant.target.backend else variant.backend.name
    plan = replace(plan, backend=backend, options=variant.options)
    if max(settings.batches, default=1) > 1:
        plan = replace(plan, dynamic=partial(make, partial(work, batch="dynamic")))
    return plan


def _ready(row: Row, bundle: Path) -> Plan:
    opened = open_bundle(bundle)
    row = replace(row, size_bytes=bundle_size(opened), dft_nodes=dft_nodes(opened))
    return Plan(row=row, source=bundle)


def _not_asked(source: Source, path: Path, backend: Backend, written: str) -> Plan:
    """The row of a bundle in a precision that is not to be measured."""
    name = spelled(written)
    key = f"{path.name}-{written}"
    row = planned_row(source, key, backend.title, written, device=backend.devices[0])
    return _skipped(
        row, BenchError(f"It is written in {name}.", f"Measure with --precision {name}.")
    )


def _bundle_plans(source: Source, settings: BenchSettings) -> Iterable[Plan]:
    """Rows of bundles that the user named."""
    for path in source.bundles:
        manifest = open_bundle(path).manifest
        target = TARGETS[manifest["target"]]
        written = str(manifest.get("precision", "f32"))
        known = variants_for(target, target.backend, settings)
        variants = [variant for variant in known if variant.written == written]
        if not variants:
            yield _not_asked(source, path, target.backend, written)
        plain = manifest.get("dc") == "fft" and target.name in ("onnx", "openvino")
        for variant in variants:
            row = planned_row(
                source,
                f"{path.name}-{variant.precision}",
                target.backend.title,
                variant.precision,
                variant=PLAIN_EXPORT if plain else DEFAULT,
                device=variant.device,
            )
            missing = _missing(target.backend)
            yield _skipped(row, missing) if missing else _ready(row, path)
