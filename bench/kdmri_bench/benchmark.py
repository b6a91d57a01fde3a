"""The benchmark as a function: networks and test volumes in, a report with its drawings out."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdmri_bench.measuring.device import absent, governor, load_average
from kdmri_bench.measuring.fastmri import STATEMENT, with_references
from kdmri_bench.measuring.isolation import WORKER
from kdmri_bench.measuring.measure import Measured, measure
from kdmri_bench.measuring.peaks import measure_peaks
from kdmri_bench.measuring.quality import summary, volume_rows
from kdmri_bench.measuring.workspace import workspace
from kdmri_bench.planning.exporter import Exporter
from kdmri_bench.planning.rows import Plan, plan_rows
from kdmri_bench.planning.settings import (
    FULL,
    QUICK,
    BenchSettings,
    Precision,
    available_threads,
)
from kdmri_bench.planning.sources import (
    Networks,
    Source,
    at_matrix,
    check_comparable,
    from_run,
    gather,
    has_code,
    runs_of,
    with_checkpoints,
)
from kdmri_bench.planning.testdata import (
    RETROSPECTIVE,
    Data,
    TestData,
    central_slices,
    load_data,
)
from kdmri_bench.reporting.page.build import fragment
from kdmri_bench.reporting.page.charts import pareto_svg
from kdmri_bench.reporting.page.images import Figure, figures
from kdmri_bench.reporting.panel import Panel, compose, draw
from kdmri_bench.reporting.report import read_report, write_report
from kdmri_bench.reporting.table import plain_table
from kdmri_bench.results.derive import derived, gap
from kdmri_bench.results.figures import spelled, variant_name
from kdmri_bench.results.schema import ZERO_FILLED, Network, Report, Row, TestVolume
from kdmri_bench.results.select import (
    Choice,
    Limits,
    choose,
    limits_of,
    recommended_row,
    shipped_rows,
)
from kdmri_edge.data.case import Case
from kdmri_edge.distillation.request import PHANTOM
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import BenchError
from kdmri_edge.models.protocol import reads_coils
from kdmri_edge.physics.masks import Mask
from kdmri_edge.utils.console import progress, say
from kdmri_edge.utils.extras import require
from kdmri_edge.utils.files import check_writable
from kdmri_edge.utils.provenance import provenance

__all__ = ["BOOTSTRAP_SEED", "Benchmark", "Png", "Svg", "benchmark", "measure_networks"]

BOOTSTRAP_SEED = 0
"""Of the intervals; nothing else is drawn at random."""


_EXPORTS = 0.4
"""Share of a limit of time after which no export is begun."""


class Svg(str):
    """A drawing as SVG text, which notebooks show."""

    __slots__ = ()

    def _repr_svg_(self) -> str:
        return str(self)


class Png(bytes):
    """A picture as a PNG file's bytes, which notebooks show."""

    __slots__ = ()

    def _repr_png_(self) -> bytes:
        return bytes(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """A finished benchmark: its figures, and its drawings. Notebooks show it as a page.

    Attributes:
        report: the results, see `kdmri_bench.results.schema`.
        panel: contents of the comparison picture; None for a report that was read from a file.
        pictures: the worst slices of one variant.
        files: what was written, by kind ("html", "json", ...); empty when nothing was asked for.
    """

    report: Report
    panel: Panel | None = None
    pictures: tuple[Figure, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Benchmark:
        """Read a report.json, or the one in a folder or a run; pictures are not in it.

        Raises:
            BenchError: missing or damaged file, or one of a newer version.
        """
        return cls(report=read_report(Path(path)))

    @property
    def rows(self) -> tuple[Row, ...]:
        """The results: one row for each network in each runtime and precision."""
        return self.report.rows

    @property
    def recommended(self) -> Row | None:
        """The smallest variant that keeps the report's limits, None where none does."""
        return recommended_row(self.report)

    def select(self, limits: Limits) -> Choice:
        """Pick the variant that keeps other limits, without measuring again."""
        return choose(self.report, limits)

    def to_dict(self) -> dict[str, Any]:
        """Return what report.json holds."""
        return self.report.to_dict()

    def table(self, width: int | None = None) -> str:
        """Return the results as plain text, with notes on how to read them.

        Args:
            width: columns of text; None leaves room for every figure.
        """
        return plain_table(self.report, width)

    def __str__(self) -> str:
        """Return the table."""
        return self.table()

    def pareto(self) -> Svg:
        """Draw quality against latency; empty where nothing was timed."""
        return Svg(spelled(pareto_svg(self.report, standalone=True)))

    def picture(self) -> Png:
        """Draw target, input, networks and their residues on the slice of median error.

        Raises:
            BenchError: the report was read from a file, which holds no images.
            MissingExtraError: matplotlib is not installed.
        """
        if self.panel is None:
            raise BenchError("A report read from a file has no images.", "Open its panel.png.")
        with tempfile.TemporaryDirectory(prefix="kdmri-panel-") as folder:
            path = Path(folder) / "panel.png"
            draw(self.panel, path, subtitle=_subtitle(self.report))
            return Png(path.read_bytes())

    def save(self, folder: str | os.PathLike[str]) -> Mapping[str, Path]:
        """Write report.html, .json, .csv and .md, and panel.png where there is a picture.

        Args:
            folder: made if need be; files of an earlier report there are replaced.

        Returns:
            The files by kind: "panel", "html", "md", "csv", "json".

        Raises:
            OutputError: the folder cannot be written to, or the disk is full.
        """
        return write_report(
            self.report, Path(folder), self.picture() if self.panel else None, self.pictures
        )

    def _repr_html_(self) -> str:
        return fragment(self.report, self.picture() if self.panel else None)


def benchmark(
    networks: Networks,
    data: Data,
    *,
    contrast: str | None = None,
    subjects: Sequence[str] = (),
    settings: BenchSettings | Literal["quick", "full"] = "quick",
    threads: int | None = None,
    precisions: Sequence[str] = (),
    limits: Limits | None = None,
    out: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    for_mask: Mask | str | os.PathLike[str] | None = None,
    matrix: int | None = None,
    convention: str | None = None,
    rows: Sequence[str] = (),
) -> Benchmark:
    """Compare quality, latency and memory of networks on every runtime of this machine.

    Every network is measured in each runtime and precision that there is, each in a process of its
    own; missing exports are made first, those of a run are kept in its folder. What this machine
    lacks keeps its row, with the reason. With `out`, each row is kept there as soon as it has a
    figure, and the same call goes on where it was cut off.

    Args:
        networks: one or several runs, checkpoints, bundles, or names of shipped networks
            (`kdmri-edge models`); code that makes a network, or a module; all of them for one mask
            and one matrix.
        data: a folder of volumes or one file; volumes that were read; cases; or "phantom" for the
            volumes that a run on the phantom left for its test. Of a folder that follows the run's
            split, or a known one, only the test subjects are measured.
        contrast: measure on this contrast of the folder only, e.g. "T1w".
        subjects: measure on exactly these subjects of the folder, whatever the split.
        settings: "quick" (minutes, a few central slices), "full" (for publication, over an hour),
            or settings of your own.
        threads: of every runtime; None as in `settings`, by default all CPUs.
        precisions: of "fp32", "fp16", "bf16", "int8"; empty as in `settings`.
        limits: what the recommended variant has to keep; None takes `select.DEFAULT_LIMITS`.
        out: folder that the report is also saved in; None saves nothing.
        weights: see `planning.sources.with_checkpoints`, as for the three that follow.
        for_mask: of networks that are code.
        matrix: of their images; or at which bundles of any matrix are measured.
        convention: of their `forward`.
        rows: measure only rows whose keys these patterns match, e.g. "student/*" or "cuda-*".

    Example:
        >>> report = benchmark(["dccnn-d5c5@brain-4x", "dccnn-d3c5@brain-4x"], "brains/")
        >>> print(report.table())
        >>> report.save("report")

    Raises:
        BenchError: nothing to measure, networks that take different inputs, or no test volume.
        KdmriError: a network or a volume is missing or damaged.
        MissingExtraError: scikit-image or matplotlib is not installed.
        OutputError: `out` cannot be written to.
    """
    load = load_average()  # before the volumes are read
    chosen = {"quick": QUICK, "full": FULL}[settings] if isinstance(settings, str) else settings
    if threads is not None:
        chosen = replace(chosen, threads=threads)
    if precisions:
        chosen = replace(chosen, precisions=tuple(Precision.of(name) for name in precisions))
    references = _references(data, chosen)
    coded = has_code(networks)
    networks = with_checkpoints(
        networks,
        weights=weights,
        for_mask=for_mask,
        matrix=matrix if coded else None,
        convention=convention,
    )
    sources = gather(networks)
    if matrix is not None and not coded:
        sources = at_matrix(sources, matrix)
    folder = None if out is None else Path(out)
    if folder is not None:
        check_writable(folder)
    first = sources[0]
    loaded = load_data(
        data,
        mask=first.mask,
        matrix=first.matrix,
        spec=first.spec,
        runs=runs_of(networks),
        contrast=contrast,
        subjects=subjects,
        slices=chosen.limit_slices,
    )
    if references is not None:
        statement = f"{loaded.statement} {STATEMENT}"
        cases = with_references(loaded.cases, references)
        loaded = replace(loaded, cases=cases, statement=statement)
    say(_measured_on(loaded, chosen))
    return measure_networks(
        sources, loaded, chosen, out=folder, limits=limits, load=load, rows=rows
    )


def _references(data: Data, settings: BenchSettings) -> Path | None:
    """Return the files whose references outputs are compared with; None without them.

    Raises:
        BenchError: They are asked for, and the data are no files.
    """
    if settings.evaluation != "fastmri":
        return None
    if not isinstance(data, str | os.PathLike) or data == PHANTOM:
        raise BenchError(
            "Figures in fastMRI's convention need the references of its files.",
            "Give a folder of them.",
        )
    return Path(data)


def _measured_on(data: TestData, settings: BenchSettings) -> str:
    """Say what is measured on before it begins."""
    kept = settings.limit_slices
    lines = ", ".join(case.name for case in data.cases)
    part = "" if kept is None else f", {kept} central slices of each"
    origin = "" if data.split is None else f" (test subjects of split {data.split})"
    return f"Measuring on {len(data.cases)} volume(s): {lines}{origin}{part}."


def measure_networks(
    sources: Run | Sequence[Source],
    data: TestData | Sequence[Case],
    settings: BenchSettings | None = None,
    *,
    out: Path | None = None,
    worker: str = WORKER,
    extra: Callable[[Sequence[Source], Path], list[Plan]] | None = None,
    limits: Limits | None = None,
    load: float | None = None,
    rows: Sequence[str] = (),
) -> Benchmark:
    """Measure described networks on loaded test volumes; see `benchmark`.

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
        load: load average of the machine before any work of the caller's own; None reads it now.
        rows: patterns of the rows' keys, see `planning.rows.chosen`; empty takes all.

    Raises:
        BenchError: no volume, or volumes that do not fit the networks.
        MissingExtraError: scikit-image or matplotlib is not installed.
        OutputError: `out` cannot be written to.
    """
    settings, began = settings or BenchSettings(), time.perf_counter()
    # Found out now, not after an hour of measuring.
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
        workspace(out) as place,
        Exporter(threads=threads, timeout_s=settings.timeout_s) as make,
    ):
        # Before the exports, which keep the machine busy themselves.
        load = load_average() if load is None else load
        until = None if settings.limit_s is None else began + _EXPORTS * settings.limit_s
        exports = place.path / "exports"
        plans = plan_rows(networks, settings, exports, make=make, rows=rows, until=until)
        plans += extra(networks, place.path) if extra else []
        peaks = _peaks(plans, settings)
        mask = networks[0].mask if networks[0].resized else None
        measured = measure(
            plans, cases, settings, place.path, worker=worker, mask=mask, began=began
        )
        with progress("Drawing the page"):
            report = _report(networks, replace(data, cases=tuple(cases)), settings, measured, peaks)
            report = replace(report, load_average=load, continued=place.continued)
            report = _recommending(report, limits)
            panel = compose(cases[0], _outputs(networks, measured), networks[0].mask)
            report = replace(report, panel=panel.to_dict())
            pictures = tuple(_figures(report, cases, measured))
            done = Benchmark(report=report, panel=panel, pictures=pictures)
            return done if out is None else replace(done, files=done.save(out))


def _peaks(plans: Sequence[Plan], settings: BenchSettings) -> dict[str, Any]:
    """Measure the machine's own limits through the runtimes that will be measured."""
    if not settings.peaks_s:
        return {}
    runtimes = dict.fromkeys(plan.row.runtime for plan in plans if plan.source is not None)
    threads = settings.threads or available_threads()
    with progress("Measuring the machine's own limits"):
        return measure_peaks(list(runtimes), threads=threads, seconds=settings.peaks_s)


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
        if case.kspace != reads_coils(source.spec):
            raise BenchError(
                f"{case.name} is a case of {'several coils' if case.kspace else 'one image'},"
                f" {source.name} is given {'one image' if case.kspace else 'several coils'}.",
                "Give volumes, of which the benchmark makes the networks' cases.",
            )
        if not case.kspace and np.iscomplexobj(case.target) != (source.spec.channels == 2):
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
        layer_values=spec.layer_values(source.matrix, source.matrix),
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
