"""Measuring planned rows: interleaved rounds, each row in a process of its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_bench.isolation import WORKER, run_isolated
from kdmri_bench.jobs import Job, JobResult
from kdmri_bench.latency import summarise
from kdmri_bench.plan import Plan
from kdmri_bench.quality import difference, summary, volume_rows
from kdmri_bench.schema import Row, Status
from kdmri_bench.settings import BenchSettings, available_threads
from kdmri_edge.console import progress
from kdmri_edge.data.cases import Case
from kdmri_edge.errors import DataError
from kdmri_edge.scaling import network_input

__all__ = ["Measured", "measure"]


@dataclass(kw_only=True)
class Measured:
    """What measuring gave.

    Attributes:
        rows: in the order of the plans.
        outputs: network -> its reconstructions of every case by the first backend that gave them
            (PyTorch where it is there), memory-mapped from the workspace.
    """

    rows: list[Row]
    outputs: dict[str, list[NDArray[Any]]]


def measure(
    plans: Sequence[Plan],
    cases: Sequence[Case],
    settings: BenchSettings,
    workspace: Path,
    *,
    worker: str = WORKER,
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
    """
    bench = _Bench(cases=cases, settings=settings, workspace=workspace, worker=worker)
    bench.write_inputs()
    rounds = settings.samples_per_round
    runnable = sum(plan.source is not None for plan in plans)
    results: list[list[JobResult]] = [[] for _ in plans]
    rows = [plan.row for plan in plans]
    with progress("Measuring", runnable * len(rounds)) as advance:
        for number, samples in enumerate(rounds):
            last = number == len(rounds) - 1
            for index, plan in enumerate(plans):
                if plan.source is None:
                    continue
                if rows[index].status is Status.MEASURED:  # no later round after a failed one
                    result = bench.run(plan, index, samples, reconstruct=last)
                    results[index].append(result)
                    rows[index] = _outcome(rows[index], result)
                    if last and rows[index].status is Status.MEASURED:
                        rows[index] = bench.finish(rows[index], index, results[index])
                advance(1)
    return Measured(rows=rows, outputs=bench.outputs)


def _outcome(row: Row, result: JobResult) -> Row:
    """Mark a row whose process had no result, or computed in another precision than asked."""
    if result.error is not None:
        status = Status.SKIPPED if result.absent else Status.FAILED
        return replace(row, status=status, reason=result.error)
    executed = str(result.info.get("precision_executed", row.precision))
    # "f32 in 20/35 layers, bf16 in 15/35 layers": some layers (DFT) have no bf16 in any runtime.
    if row.precision not in executed.lower().replace(",", " ").split():
        reason = f"Asked for {row.precision}, the runtime executed {executed} on this CPU."
        return replace(row, status=Status.SKIPPED, reason=reason, session=dict(result.info))
    return row


@dataclass(kw_only=True)
class _Bench:
    """The inputs on disk, and what the rows share."""

    cases: Sequence[Case]
    settings: BenchSettings
    workspace: Path
    worker: str
    outputs: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    references: dict[str, Row] = field(default_factory=dict)

    @property
    def query(self) -> Path:
        return self.workspace / "query.npy"

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
        np.save(self.query, network_input(first.zero_filled[middle], first.scale[middle]))
        for index, case in enumerate(self.cases):
            np.save(self.volume(index), case.zero_filled)

    def run(self, plan: Plan, index: int, samples: int, *, reconstruct: bool) -> JobResult:
        """Run one row's process once."""
        folder = self.folder(index)
        folder.mkdir(exist_ok=True)
        pairs = tuple(
            (str(self.volume(case)), str(self.output(index, case)))
            for case in range(len(self.cases))
        )
        job = Job(
            source=str(plan.source),
            backend=plan.backend,
            precision=plan.row.precision,
            threads=self.settings.threads or available_threads(),
            options=plan.options,
            query=str(self.query),
            warmup=self.settings.warmup,
            samples=samples,
            volumes=pairs if reconstruct else (),
        )
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
            memory=_largest(results),
            session=dict(results[-1].info),
        )
        reference = self.references.get(row.network)
        if reference is None:
            self.references[row.network] = row
            self.outputs[row.network] = outputs
            return row
        known = self.outputs[row.network]
        compared = difference(self.cases, outputs, known, volumes, reference.volumes)
        del outputs
        shutil.rmtree(self.folder(index), ignore_errors=True)  # tens of MB per volume and row
        return replace(row, difference=compared)


def _largest(results: Sequence[JobResult]) -> dict[str, Any]:
    """Take the round with the largest peak: a deployment must have that much."""
    return dict(max((result.memory for result in results), key=lambda m: int(m["peak"])))
