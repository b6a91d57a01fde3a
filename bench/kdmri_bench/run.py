"""The benchmark as a function: networks and cases in, a report out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_bench.isolation import WORKER
from kdmri_bench.measure import Measured, measure
from kdmri_bench.panel import Panel, compose, draw
from kdmri_bench.quality import gap_closed, summary, volume_rows
from kdmri_bench.report import write_report
from kdmri_bench.rows import REFERENCE, plan_rows
from kdmri_bench.schema import ZERO_FILLED, Network, Report, Row, TestVolume
from kdmri_bench.settings import BenchSettings
from kdmri_bench.sources import Source, check_comparable, from_run
from kdmri_bench.testdata import RETROSPECTIVE, TestData, central_slices
from kdmri_edge.data.cases import Case
from kdmri_edge.errors import BenchError
from kdmri_edge.extras import require
from kdmri_edge.provenance import provenance
from kdmri_edge.runs import Run

__all__ = ["Benchmark", "bench"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """A finished benchmark.

    Attributes:
        report: the results.
        panel: the picture's contents.
        subtitle: the line below the picture.
        files: what was written, by kind ("json", "csv", "panel"); empty when nothing was asked for.
    """

    report: Report
    panel: Panel
    subtitle: str
    files: dict[str, Path]


def bench(
    sources: Run | Sequence[Source],
    data: TestData | Sequence[Case],
    settings: BenchSettings | None = None,
    *,
    out: Path | None = None,
    worker: str = WORKER,
) -> Benchmark:
    """Measure networks on test volumes.

    Args:
        sources: a run (missing exports are made under RUN/exports), or what
            `kdmri_bench.sources.gather` returns.
        data: the test volumes, undersampled with the networks' mask; a plain list counts as
            retrospective magnitude data that follow no split.
        settings: how to measure.
        out: folder for report.json, report.csv and panel.png; None writes nothing.
        worker: the module that is run for each row.

    Raises:
        BenchError: no volume, or volumes that do not fit the networks.
        MissingExtraError: scikit-image or matplotlib is not installed.
        OutputError: `out` cannot be written to.
    """
    settings = settings or BenchSettings()
    if out is not None:  # found out now, not after an hour of measuring
        require("matplotlib", extra="bench")
    require("skimage", extra="bench")
    networks = from_run(sources) if isinstance(sources, Run) else list(sources)
    check_comparable(networks)
    if not isinstance(data, TestData):
        data = TestData(cases=tuple(data), split=None, statement=RETROSPECTIVE)
    cases = [central_slices(case, settings.limit_slices) for case in data.cases]
    _check_cases(cases, networks[0])
    with tempfile.TemporaryDirectory(prefix="kdmri-bench-") as scratch:
        workspace = Path(scratch)
        load = _load_average()  # before the exports, which keep the machine busy themselves
        plans = plan_rows(networks, settings, workspace / "exports")
        measured = measure(plans, cases, settings, workspace, worker=worker)
        report = _report(networks, replace(data, cases=tuple(cases)), settings, measured)
        report = replace(report, load_average=load)
        panel = compose(cases[0], _outputs(networks, measured), networks[0].mask)
        report = replace(report, panel=panel.to_dict())
        subtitle = _subtitle(report)
        files: dict[str, Path] = {}
        if out is not None:
            files = write_report(report, out, partial(draw, panel, subtitle=subtitle))
    return Benchmark(report=report, panel=panel, subtitle=subtitle, files=files)


def _load_average() -> float | None:
    """Processes that wanted a CPU in the last minute, on average."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _check_cases(cases: Sequence[Case], source: Source) -> None:
    if not cases:
        raise BenchError("There is no test volume.", "Give at least one.")
    names = [case.name for case in cases]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise BenchError(f"Two test volumes are called {double}.", "Give each a name of its own.")
    for case in cases:
        height, width = case.target.shape[1:]
        if (height, width) != (source.matrix, source.matrix):
            raise BenchError(
                f"{case.name} is {height} x {width}, {source.name} takes"
                f" {source.matrix} x {source.matrix}.",
                "Bring the volumes to the networks' matrix.",
            )
        source.mask.check_matrix(height, width)
        if np.iscomplexobj(case.target) != (source.spec.channels == 2):
            raise BenchError(
                f"{case.name} has {1 + np.iscomplexobj(case.target)} channel(s), {source.name}"
                f" takes {source.spec.channels}.",
                "Make the cases with the networks' number of channels.",
            )


def _zero_filled(cases: Sequence[Case]) -> Row:
    volumes = volume_rows(cases, [case.zero_filled for case in cases])
    return Row(
        key=ZERO_FILLED,
        network=ZERO_FILLED,
        role=ZERO_FILLED,
        runtime="none",
        precision="f32",
        volumes=tuple(volumes),
        quality=summary(volumes),
    )


def _report(
    networks: Sequence[Source], data: TestData, settings: BenchSettings, measured: Measured
) -> Report:
    mask = networks[0].mask
    rows = _with_speedup([_zero_filled(data.cases), *measured.rows], networks)
    return Report(
        provenance=provenance(),
        settings=settings.to_dict(),
        statement=data.statement,
        volumes=tuple(_volume(case, networks) for case in data.cases),
        split=data.split,
        mask={**mask.to_dict(), "sha256": mask.sha256},
        matrix=networks[0].matrix,
        networks=tuple(_network(source) for source in networks),
        rows=tuple(rows),
        gap_closed=_gap(rows, networks),
    )


def _volume(case: Case, networks: Sequence[Source]) -> TestVolume:
    return TestVolume(
        name=case.name,
        subject=case.subject,
        contrast=case.contrast,
        sha256=case.sha256,
        slices=len(case.target),
        seen_in_training=tuple(n.name for n in networks if case.sha256 in n.hashes),
    )


def _network(source: Source) -> Network:
    return Network(
        name=source.name,
        role=source.role,
        parameters=source.spec.parameters,
        macs=source.spec.macs(source.matrix, source.matrix, lines=source.mask.is_lines),
        attribution=source.training.get("attribution"),
    )


def _of_role(role: str, networks: Sequence[Source]) -> str | None:
    """Name of the network in a role, None unless there is exactly one."""
    names = [source.name for source in networks if source.role == role]
    return names[0] if len(names) == 1 else None


def _reference(rows: Sequence[Row], network: str | None) -> Row | None:
    """The PyTorch row of a network, if it was measured."""
    wanted = (row for row in rows if row.network == network and row.runtime == REFERENCE)
    return next((row for row in wanted if row.latency), None)


def _with_speedup(rows: Sequence[Row], networks: Sequence[Source]) -> list[Row]:
    teacher = _reference(rows, _of_role("teacher", networks))
    if teacher is None or teacher.latency is None:
        return list(rows)
    base = float(teacher.latency["p50_ms"])
    return [
        replace(row, speedup=base / float(row.latency["p50_ms"])) if row.latency else row
        for row in rows
    ]


def _gap(rows: Sequence[Row], networks: Sequence[Source]) -> dict[str, float | None]:
    found = [_reference(rows, _of_role(role, networks)) for role in ("teacher", "plain", "student")]
    measured = [row.quality for row in found if row is not None]
    return gap_closed(*measured) if len(measured) == 3 else {}


def _outputs(networks: Sequence[Source], measured: Measured) -> dict[str, NDArray[Any]]:
    """Reconstructions of the first test volume, by role."""
    result = {}
    for role in ("teacher", "plain", "student"):
        name = _of_role(role, networks)
        if name in measured.outputs:
            result[role] = measured.outputs[name][0]
    return result


def _subtitle(report: Report) -> str:
    nominal = float(report.mask["nominal_acceleration"])
    effective = float(report.mask["effective_acceleration"])
    return (
        f"Mask {report.mask['name']}: {nominal:.2f}x nominal, {effective:.2f}x effective."
        f" {report.statement}"
    )
