"""Which rows a benchmark has: every network on every backend at every precision.

The backends come from the table of export targets; a new target appears here by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kdmri_bench.exports import bundle_size, dft_nodes, export_for
from kdmri_bench.plan import Plan
from kdmri_bench.ratios import PLAIN_EXPORT
from kdmri_bench.schema import Row, Status
from kdmri_bench.settings import BenchSettings, Precision
from kdmri_bench.sources import Source
from kdmri_edge.bundle import open_bundle
from kdmri_edge.console import progress
from kdmri_edge.errors import BackendError, KdmriError, MissingExtraError
from kdmri_edge.extras import available
from kdmri_edge.models.spec import Kind
from kdmri_edge.targets import TARGETS, Target

__all__ = ["REFERENCE", "plan_rows"]

REFERENCE: Final = "PyTorch"
"""Title of the runtime that speed-ups and differences refer to."""

# torch.fft becomes DFT nodes in these; TorchScript keeps calling PyTorch's own FFT.
_PLAIN_TARGETS: Final = ("onnx", "openvino")
_PLAIN_DC: Final = "fft"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Variant:
    """A target at a precision, exported in a certain way."""

    target: Target
    precision: Precision
    dc: str = "auto"

    @property
    def written(self) -> str:
        """Precision of the graph; bf16 is chosen when a float32 graph is loaded."""
        return "f32" if self.precision is Precision.BF16 else str(self.precision)

    @property
    def key(self) -> str:
        suffix = "" if self.dc == "auto" else f"-{self.dc}"
        return f"{self.target.name}{suffix}-{self.precision}"


def plan_rows(sources: Sequence[Source], settings: BenchSettings, scratch: Path) -> list[Plan]:
    """Lay out the rows and make the exports that are missing.

    Whatever cannot be run here keeps its row, with the reason; nothing is raised for one row's
    sake.

    Args:
        sources: the networks.
        settings: precisions, and whether plain exports are wanted.
        scratch: folder for the exports of networks that belong to no run.
    """
    plans: list[Plan] = []
    work = [(source, variant) for source in sources for variant in _variants(source, settings)]
    with progress("Exporting", len(work)) as advance:
        for source in sources:
            if source.checkpoint is not None and Precision.F32 in settings.precisions:
                plans.append(_pytorch(source))
            for owner, variant in work:
                if owner is source:
                    plans.append(_exported(source, variant, scratch))
                    advance(1)
            plans.extend(_given(source, settings))
    return plans


def _variants(source: Source, settings: BenchSettings) -> list[_Variant]:
    """What is exported from a source's checkpoint, empty for a source of bundles."""
    if source.checkpoint is None:
        return []
    found = [
        _Variant(target=target, precision=precision)
        for target in TARGETS.values()
        for precision in _precisions(target, settings)
    ]
    # The plain student has the distilled one's graph: measuring it twice would tell nothing.
    wanted = settings.plain_export and source.role != "plain"
    if wanted and source.spec.kind is Kind.DCCNN:
        found += [
            _Variant(target=TARGETS[name], precision=precision, dc=_PLAIN_DC)
            for name in _PLAIN_TARGETS
            for precision in _precisions(TARGETS[name], settings)
            if precision in (Precision.F32, Precision.BF16)
        ]
    return found


def _precisions(target: Target, settings: BenchSettings) -> list[Precision]:
    offered = {str(precision) for precision in target.backend.precisions}
    return [precision for precision in settings.precisions if str(precision) in offered]


def _row(source: Source, runtime: str, key: str, precision: Precision) -> Row:
    return Row(
        key=f"{source.name}/{key}",
        network=source.name,
        role=source.role,
        runtime=runtime,
        precision=str(precision),
    )


def _pytorch(source: Source) -> Plan:
    row = _row(source, REFERENCE, "pytorch-f32", Precision.F32)
    if source.checkpoint is not None:
        row = replace(row, size_bytes=source.checkpoint.stat().st_size)
    if not available("torch"):
        return _absent(row, MissingExtraError("torch", "train"))
    return Plan(row=row, source=source.checkpoint, options={"layout": "channels_last"})


def _absent(row: Row, error: KdmriError) -> Plan:
    return Plan(row=replace(row, status=Status.SKIPPED, reason=str(error)), source=None)


def _missing(target: Target) -> MissingExtraError | None:
    if available(target.backend.library):
        return None
    return MissingExtraError(target.backend.library, target.backend.extra)


def _exported(source: Source, variant: _Variant, scratch: Path) -> Plan:
    target = variant.target
    row = _row(source, target.backend.title, variant.key, variant.precision)
    if variant.dc != "auto":
        row = replace(row, variant=PLAIN_EXPORT)
    missing = _missing(target)
    if missing is not None:
        return _absent(row, missing)
    try:
        bundle = export_for(
            source, target.name, dc=variant.dc, scratch=scratch, precision=variant.written
        )
        return _ready(row, bundle)
    except (BackendError, MissingExtraError) as error:
        return _absent(row, error)
    except Exception as error:  # an exporter may raise anything: it costs this row, no other
        reason = f"The export failed: {_what(error)}"
        return Plan(row=replace(row, status=Status.FAILED, reason=reason), source=None)


def _what(error: BaseException) -> str:
    """Say in one plain line what went wrong, at the root of a chain of exceptions."""
    if isinstance(error, KdmriError):
        return str(error)
    while error.__cause__ is not None:
        error = error.__cause__
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or "no message"
    return f"{type(error).__name__}: {plain.splitlines()[0][:300]}"


def _ready(row: Row, bundle: Path) -> Plan:
    opened = open_bundle(bundle)
    row = replace(row, size_bytes=bundle_size(opened), dft_nodes=dft_nodes(opened))
    return Plan(row=row, source=bundle)


def _given(source: Source, settings: BenchSettings) -> Iterable[Plan]:
    """Rows of bundles that the user named."""
    for path in source.bundles:
        manifest = open_bundle(path).manifest
        target = TARGETS[manifest["target"]]
        written = str(manifest.get("precision", "f32"))
        for precision in _precisions(target, settings):
            if _Variant(target=target, precision=precision).written != written:
                continue
            key = f"{path.name}-{precision}"
            row = _row(source, target.backend.title, key, precision)
            if manifest.get("dc") == _PLAIN_DC and target.name in _PLAIN_TARGETS:
                row = replace(row, variant=PLAIN_EXPORT)
            missing = _missing(target)
            yield _absent(row, missing) if missing else _ready(row, path)
