"""Measuring planned rows: interleaved rounds, each row in a process of its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_bench.measuring.isolation import WORKER, Job, JobResult, run_isolated
from kdmri_bench.measuring.latency import summarise
from kdmri_bench.measuring.quality import (
    View,
    cut,
    difference,
    slice_psnr,
    summary,
    volume_rows,
    worst_slices,
)
from kdmri_bench.planning.rows import Plan
from kdmri_bench.planning.settings import BenchSettings, available_threads
from kdmri_bench.results.schema import Row, Status
from kdmri_edge.data.case import Case
from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.scaling import network_input, network_kspace, network_maps, slice_scale
from kdmri_edge.runtime.inputs import read_input_spec, slice_input
from kdmri_edge.utils.console import progress

__all__ = ["Measured", "measure"]


@dataclass(kw_only=True)
class Measured:
    """What measuring gave.

    Attributes:
        rows: in the order of the plans.
        outputs: network -> its reconstructions of every case by the first backend that gave them
            (PyTorch where it is there), memory-mapped from the workspace.
        views: row key -> its worst slices.
    """

    rows: list[Row]
    outputs: dict[str, list[NDArray[Any]]]
    views: dict[str, list[View]]


def measure(
    plans: Sequence[Plan],
    cases: Sequence[Case],
    settings: BenchSettings,
    workspace: Path,
    *,
    worker: str = WORKER,
    mask: Mask | None = None,
) -> Measured:
    """Measure every planned row.

    Rows are gone through in rounds (A B C A B C) rather than one after the other, so that a slow
    minute of the machine does not fall on one row alone and decide a ratio. The volumes are
    reconstructed in the last round.

    Args:
        plans: the rows; those without a source keep their status.
        cases: the test volumes.
        settings: samples, rounds, threads, timeout.
        workspace: an existing scratch folder; it holds the cases once, for all processes.
        worker: the module that each process runs.
        mask: what the cases were sampled with, where that is not the networks' own mask.
    """
    bench = _Bench(cases=cases, settings=settings, workspace=workspace, worker=worker, mask=mask)
    bench.write_inputs()
    rounds = settings.samples_per_round
    runnable = sum(plan.source is not None for plan in plans)
    whole = settings.end_to_end_per_round
    results: list[list[JobResult]] = [[] for _ in plans]
    rows = [plan.row for plan in plans]
    with progress("Measuring", runnable * len(rounds)) as advance:
        for number, samples in enumerate(rounds):
            last = number == len(rounds) - 1
            for index, plan in enumerate(plans):
                if plan.source is None:
                    continue
                if rows[index].status is Status.MEASURED:  # no later round after a failed one
                    bench.make_dynamic(plan, index, last=last)
                    job = bench.job(plan, index, samples, whole[number], last=last)
                    result = bench.run(job, index)
                    results[index].append(result)
                    rows[index] = _outcome(rows[index], result)
                    if last and rows[index].status is Status.MEASURED:
                        rows[index] = bench.finish(rows[index], index, results[index])
                advance(1)
    return Measured(rows=rows, outputs=bench.outputs, views=bench.views)


def _outcome(row: Row, result: JobResult) -> Row:
    """Mark a row whose process had no result, or computed in another precision than asked."""
    if result.error is not None:
        status = Status.SKIPPED if result.absent else Status.FAILED
        return replace(row, status=status, reason=result.error)
    executed = str(result.info.get("precision_executed", row.precision))
    if not _ran(row.precision, executed):
        reason = f"Asked for {row.precision}, the runtime executed {executed} on this CPU."
        return replace(row, status=Status.SKIPPED, reason=reason, session=dict(result.info))
    return row


def _ran(precision: str, executed: str) -> bool:
    """Whether any layer ran in a precision, by what the runtime reports.

    "f32 in 20/35 layers, bf16 in 15/35 layers" is bf16: some layers (DFT) have none in any runtime.
    "int8 in 0/15 convolutions" is not int8: a runtime may have turned every quantiser back.
    """
    parts = [part.split() for part in executed.lower().split(",")]
    return any(
        precision in words and not any(word.startswith("0/") for word in words) for words in parts
    )


@dataclass(kw_only=True)
class _Bench:
    """The inputs on disk, and what the rows share."""

    cases: Sequence[Case]
    settings: BenchSettings
    workspace: Path
    worker: str
    mask: Mask | None = None
    outputs: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    references: dict[str, Row] = field(default_factory=dict)
    views: dict[str, list[View]] = field(default_factory=dict)
    teacher: list[NDArray[np.float64]] | None = None
    dynamic: dict[int, str] = field(default_factory=dict)

    @property
    def query(self) -> Path:
        return self.workspace / "query.npy"

    @property
    def kspace(self) -> Path:
        return self.workspace / "kspace.npy"

    def volume(self, index: int) -> Path:
        return self.workspace / f"volume-{index}.npy"

    def folder(self, index: int) -> Path:
        return self.workspace / f"row-{index}"

    def output(self, row: int, case: int) -> Path:
        return self.folder(row) / f"output-{case}.npy"

    def write_inputs(self) -> None:
        """Write the cases once; the processes map them instead of copying them."""
        first = self.cases[0]
        middle = slice(len(first.target) // 2, len(first.target) // 2 + 1)
        if first.kspace and first.reception is not None:
            kspace = first.reception.part(middle).kspace()[0]
        else:
            np.save(self.query, network_input(first.zero_filled[middle], first.scale[middle]))
            kspace = image_to_kspace(first.target[middle])
        np.save(self.kspace, kspace.astype(np.complex64, copy=False))
        for index, case in enumerate(self.cases):
            of_coils = case.kspace and case.reception is not None
            np.save(self.volume(index), _kspace(case) if of_coils else case.zero_filled)

    def query_of(self, plan: Plan) -> tuple[Path, Path | None]:
        """Return the files of what a network is timed on: its input and, with coils, their maps.

        With coils each network makes its own of the same k-space.
        """
        if not self.cases[0].kspace:
            return self.query, None
        reads = read_input_spec(Path(plan.reads or str(plan.source)))
        name = f"{reads.spec.reads}-{reads.coils}"
        query, maps = (self.workspace / f"{kind}-{name}.npy" for kind in ("query", "maps"))
        if not query.exists():
            given = slice_input(np.load(self.kspace), reads.mask, reads)
            x_u = given.zero_filled[None]
            scale = slice_scale(x_u)
            seen = network_input(x_u, scale)
            if given.kspace is not None:
                seen = network_kspace(given.kspace[None], scale)
            if given.maps is not None:
                np.save(maps, network_maps(given.maps[None]))
            np.save(query, seen)
        return query, maps if maps.exists() else None

    def make_dynamic(self, plan: Plan, index: int, *, last: bool) -> None:
        """Export the bundle that takes any batch, right before it is needed."""
        if plan.dynamic is None or not last:
            return
        made = plan.dynamic()
        if isinstance(made, Path):  # otherwise larger batches say so themselves
            self.dynamic[index] = str(made)

    def job(self, plan: Plan, index: int, samples: int, end_to_end: int, *, last: bool) -> Job:
        """Say what a row's process does in one round."""
        pairs = tuple(
            (str(self.volume(case)), str(self.output(index, case)))
            for case in range(len(self.cases))
        )
        settings = self.settings
        query, maps = self.query_of(plan)
        return Job(
            source=str(plan.source),
            backend=plan.backend,
            precision=plan.row.precision,
            threads=settings.threads or available_threads(),
            options=plan.options,
            opener=plan.opener,
            query=str(query),
            maps=None if maps is None else str(maps),
            warmup=settings.warmup,
            samples=samples,
            seconds=settings.seconds,
            kspace=str(self.kspace),
            reads=None if plan.reads is None else str(plan.reads),
            end_to_end=end_to_end,
            batches=settings.batches if last else (),
            throughput_s=settings.throughput_s,
            dynamic=self.dynamic.get(index),
            mask=None if self.mask is None else self.mask.to_dict(),
            volumes=pairs if last else (),
        )

    def run(self, job: Job, index: int) -> JobResult:
        """Run one row's process once."""
        folder = self.folder(index)
        folder.mkdir(exist_ok=True)
        return run_isolated(job, folder, timeout_s=self.settings.timeout_s, module=self.worker)

    def finish(self, row: Row, index: int, results: Sequence[JobResult]) -> Row:
        """Add the figures of a row whose rounds all succeeded."""
        count = range(len(self.cases))
        try:
            outputs = [np.load(self.output(index, case), mmap_mode="r") for case in count]
            volumes = volume_rows(self.cases, outputs)
        except (OSError, ValueError, DataError) as error:
            return replace(row, status=Status.FAILED, reason=f"Its output is unusable: {error}")
        row = replace(
            row,
            volumes=tuple(volumes),
            quality=summary(volumes),
            latency=summarise([result.latency_s for result in results]),
            load_s=tuple(result.load_s for result in results),
            cold={
                "load_s": [result.load_s for result in results],
                "first_s": [result.first_s for result in results],
                "process_s": [result.cold_s for result in results],
            },
            end_to_end=_end_to_end(results),
            throughput=dict(results[-1].throughput),
            energy=_energy(results),
            memory=_largest(results),
            session=dict(results[-1].info),
        )
        row = self._with_worst(row, outputs)
        return self._compared(row, index, outputs, volumes)

    def _with_worst(self, row: Row, outputs: Sequence[NDArray[Any]]) -> Row:
        """Name the row's worst slices, and keep them to be looked at."""
        found = [
            slice_psnr(case.target, output)
            for case, output in zip(self.cases, outputs, strict=True)
        ]
        own = row.role == "teacher" and self.teacher is None
        if own:
            self.teacher = found
        scores = worst_slices(found, None if own else self.teacher)
        self.views[row.key] = cut(outputs, scores)
        return replace(row, worst=tuple(score.to_dict(self.cases) for score in scores))

    def _compared(
        self,
        row: Row,
        index: int,
        outputs: list[NDArray[Any]],
        volumes: Sequence[Mapping[str, Any]],
    ) -> Row:
        """Compare a row with its network's first one, and drop its volumes from the disk."""
        reference = self.references.get(row.network)
        if reference is None:
            self.references[row.network] = row
            self.outputs[row.network] = outputs
            return row
        known = self.outputs[row.network]
        compared = difference(self.cases, outputs, known, volumes, reference.volumes)
        shutil.rmtree(self.folder(index), ignore_errors=True)  # tens of MB per volume and row
        return replace(row, difference={**compared, "from": reference.key})


def _kspace(case: Case) -> NDArray[np.complex64]:
    """Return what the coils measure of a volume, [S, C, H, W]."""
    assert case.reception is not None
    return case.reception.kspace()


def _end_to_end(results: Sequence[JobResult]) -> dict[str, Any] | None:
    rounds = [result.end_to_end_s for result in results if result.end_to_end_s]
    return summarise(rounds) if rounds else None


def _energy(results: Sequence[JobResult]) -> dict[str, Any] | None:
    """Joules of all rounds over their queries; None where a round has none."""
    read = [result.energy for result in results if result.energy]
    if len(read) < len(results):
        return None
    joules = sum(float(item["joules"]) for item in read)
    queries = sum(int(item["queries"]) for item in read)
    return {"joules_per_slice": joules / queries, "source": read[0]["source"]}


def _largest(results: Sequence[JobResult]) -> dict[str, Any]:
    """Take the round with the largest peak: a deployment must have that much."""
    return dict(max((result.memory for result in results), key=lambda m: int(m["peak"])))
