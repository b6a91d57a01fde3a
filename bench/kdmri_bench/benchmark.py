"""The benchmark as a function: networks and cases in, a report out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_bench.measuring.device import absent, governor
from kdmri_bench.measuring.isolation import WORKER
from kdmri_bench.measuring.measure import Measured, measure
from kdmri_bench.measuring.peaks import measure_peaks
from kdmri_bench.measuring.quality import summary, volume_rows
from kdmri_bench.planning.exporter import Exporter
from kdmri_bench.planning.rows import Plan, plan_rows
from kdmri_bench.planning.settings import BenchSettings, available_threads
from kdmri_bench.planning.sources import Source, check_comparable, from_run
from kdmri_bench.planning.testdata import RETROSPECTIVE, TestData, central_slices
from kdmri_bench.reporting.figures import variant_name
from kdmri_bench.reporting.page.images import Figure, figures
from kdmri_bench.reporting.panel import Panel, compose, draw
from kdmri_bench.reporting.report import write_report
from kdmri_bench.results.derive import derived, gap, layer_values
from kdmri_bench.results.schema import ZERO_FILLED, Network, Report, Row, TestVolume
from kdmri_bench.results.select import Limits, choose, limits_of, shipped_rows
from kdmri_edge.data.case import Case
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import BenchError
from kdmri_edge.utils.extras import require
from kdmri_edge.utils.provenance import provenance

__all__ = ["BOOTSTRAP_SEED", "Benchmark", "bench"]

BOOTSTRAP_SEED = 0
"""Of the intervals; nothing else is drawn at random."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """A finished benchmark.

    Attributes:
        report: the results.
        panel: the picture's contents.
        subtitle: the line below the picture.
        files: what was written, by kind ("html", "json", ...); empty when nothing was asked for.
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
    extra: Callable[[Sequence[Source], Path], list[Plan]] | None = None,
    limits: Limits | None = None,
) -> Benchmark:
    """Measure networks on test volumes.

    Args:
        sources: a run (missing exports are made under RUN/exports), or what
            `kdmri_bench.planning.sources.gather` returns.
        data: the test volumes, undersampled with the networks' mask; a plain list counts as
            retrospective magnitude data that follow no split.
        settings: how to measure.
        out: folder for the report's files; None writes nothing.
        worker: the module that is run for each row.
        extra: makes further rows of the networks, given a scratch folder.
        limits: what the recommended variant has to keep; None takes `select.limits_of`.

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
    networks.sort(key=lambda source: source.role != "teacher")  # the others are compared with it
    check_comparable(networks)
    if not isinstance(data, TestData):
        data = TestData(cases=tuple(data), split=None, statement=RETROSPECTIVE)
    cases = [central_slices(case, settings.limit_slices) for case in data.cases]
    _check_cases(cases, networks[0])
    threads = settings.threads or available_threads()
    with (
        tempfile.TemporaryDirectory(prefix="kdmri-bench-") as scratch,
        Exporter(threads=threads, timeout_s=settings.timeout_s) as make,
    ):
        workspace = Path(scratch)
        load = _load_average()  # before the exports, which keep the machine busy themselves
        plans = plan_rows(networks, settings, workspace / "exports", make=make)
        plans += extra(networks, workspace) if extra else []
        peaks = _peaks(plans, settings)
        image = "magnitude" if networks[0].spec.magnitude_input else "real"
        measured = measure(plans, cases, settings, workspace, worker=worker, image=image)
        report = _report(networks, replace(data, cases=tuple(cases)), settings, measured, peaks)
        report = _recommending(replace(report, load_average=load), limits)
        panel = compose(cases[0], _outputs(networks, measured), networks[0].mask)
        report = replace(report, panel=panel.to_dict())
        subtitle = _subtitle(report)
        files: dict[str, Path] = {}
        if out is not None:
            pictures = _figures(report, cases, measured)
            drawing = partial(draw, panel, subtitle=subtitle)
            files = write_report(report, out, drawing, pictures)
    return Benchmark(report=report, panel=panel, subtitle=subtitle, files=files)


def _peaks(plans: Sequence[Plan], settings: BenchSettings) -> dict[str, Any]:
    """Measure the machine's own limits through the runtimes that will be measured."""
    if not settings.peaks_s:
        return {}
    runtimes = dict.fromkeys(plan.row.runtime for plan in plans if plan.source is not None)
    threads = settings.threads or available_threads()
    return measure_peaks(list(runtimes), threads=threads, seconds=settings.peaks_s)


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
    networks: Sequence[Source],
    data: TestData,
    settings: BenchSettings,
    measured: Measured,
    peaks: Mapping[str, Any],
) -> Report:
    mask = networks[0].mask
    volumes = tuple(_volume(case, networks) for case in data.cases)
    described = tuple(_network(source) for source in networks)
    rows = derived([_zero_filled(data.cases), *measured.rows], described, volumes, peaks)
    return Report(
        provenance=provenance(seed=BOOTSTRAP_SEED),
        settings=settings.to_dict(),
        statement=data.statement,
        volumes=volumes,
        split=data.split,
        mask={**mask.to_dict(), "sha256": mask.sha256},
        matrix=networks[0].matrix,
        networks=described,
        rows=tuple(rows),
        gap_closed=gap(rows, described),
        governor=governor(),
        peaks=peaks,
        absent=tuple(absent()),
    )


def _recommending(report: Report, limits: Limits | None) -> Report:
    limits = limits or limits_of(report)
    chosen = choose(report, limits).row
    return replace(report, limits=asdict(limits), recommended=chosen.key if chosen else None)


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
    spec = source.spec
    return Network(
        name=source.name,
        role=source.role,
        parameters=spec.parameters,
        macs=spec.macs(source.matrix, source.matrix, lines=source.mask.is_lines),
        attribution=source.training.get("attribution"),
        layer_values=layer_values(spec.widths, spec.cascades, source.matrix**2),
    )


def _outputs(networks: Sequence[Source], measured: Measured) -> dict[str, NDArray[Any]]:
    """Reconstructions of the first test volume, by role."""
    result = {}
    for role in ("teacher", "plain", "student"):
        names = [source.name for source in networks if source.role == role]
        if len(names) == 1 and names[0] in measured.outputs:
            result[role] = measured.outputs[names[0]][0]
    return result


def _figures(report: Report, cases: Sequence[Case], measured: Measured) -> list[Figure]:
    """Draw the worst slices of the recommended row, or of the last one that was measured."""
    usual = [row.key for row in shipped_rows(report) if row.key in measured.views]
    key = report.recommended or (usual[-1] if usual else None)
    row = report.row(key) if key else None
    if row is None or row.key not in measured.views:
        return []
    names = [n.name for n in report.networks if n.role == "teacher"]
    teacher = measured.outputs.get(names[0]) if len(names) == 1 else None
    return figures(cases, measured.views[row.key], teacher, name=variant_name(row))


def _subtitle(report: Report) -> str:
    nominal = float(report.mask["nominal_acceleration"])
    effective = float(report.mask["effective_acceleration"])
    return (
        f"Mask {report.mask['name']}: {nominal:.2f}x nominal, {effective:.2f}x effective."
        f" {report.statement}"
    )
