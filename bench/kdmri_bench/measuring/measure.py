"""Measuring planned rows: interleaved rounds, each row in a process of its own.

A row's process lives through all its rounds where the machine has the memory for it. Each row has a
folder in the workspace, whose file `row.json` is written as soon as the row has a figure, and again
after each round; what lies there of the same measurement is not measured again.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_bench.measuring.device import open_nvml
from kdmri_bench.measuring.isolation import WORKER, Job, JobResult, RowProcess, run_isolated
from kdmri_bench.measuring.latency import summarise
from kdmri_bench.measuring.quality import (
    SliceScore,
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
from kdmri_bench.results.rowfile import RowFile
from kdmri_bench.results.schema import DEFAULT, PLAIN_EXPORT, Row, Status, finite
from kdmri_edge import __version__
from kdmri_edge.data.case import Case
from kdmri_edge.errors import BenchError, DataError
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.scaling import network_input, network_kspace, network_maps, slice_scale
from kdmri_edge.runtime.backends.registry import BACKENDS
from kdmri_edge.runtime.bundle import MANIFEST
from kdmri_edge.runtime.inputs import read_input_spec, slice_input
from kdmri_edge.utils.console import duration, get_console, progress, say
from kdmri_edge.utils.files import sha256_bytes, sha256_file
from kdmri_edge.utils.memory import available_memory, physical_memory
from kdmri_edge.utils.provenance import cpu, versions

__all__ = ["Measured", "measure"]

_ROW: Final = "row.json"
_VIEWS: Final = "worst.npz"

_RESERVE: Final = 0.25
"""Share of the memory, of the machine or of the GPU, that processes which wait leave to others."""


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
    began: float | None = None,
) -> Measured:
    """Measure every planned row.

    Rows are gone through in rounds (A B C A B C) rather than one after the other, so that a slow
    minute of the machine does not fall on one row alone and decide a ratio. The volumes are
    reconstructed in the last round; with a limit of time in the first one, so that each row that
    was begun is complete. Layers are timed after all that, in processes of their own.

    Args:
        plans: the rows; those without a source keep their status.
        cases: the test volumes.
        settings: samples, rounds, threads, timeout.
        workspace: an existing folder; it holds the cases once, for all processes, and what was
            measured of each row.
        worker: the module that each process runs.
        mask: what the cases were sampled with, where that is not the networks' own mask.
        began: time.perf_counter() from which a limit of time counts; None counts from now.
    """
    bench = _Bench(cases=cases, settings=settings, workspace=workspace, worker=worker, mask=mask)
    bench.write_inputs()
    rounds = settings.samples_per_round
    runnable = [index for index, plan in enumerate(plans) if plan.source is not None]
    whole = 0 if settings.limit_s is not None else len(rounds) - 1
    state = [bench.begin(plan, index, plans) for index, plan in enumerate(plans)]
    known = sum(len(state[index].results) for index in runnable)
    began = time.perf_counter() if began is None else began
    try:
        with progress("Measuring", len(runnable) * len(rounds), done=known) as phase:
            for number, samples in enumerate(rounds):
                for index in runnable:
                    row = state[index]
                    if number < len(row.results):
                        continue  # measured before the benchmark was cut off
                    place = f"round {number + 1} of {len(rounds)}, {row.row.key}"
                    phase(0, note=place)
                    heard = place
                    late = settings.limit_s is not None and (
                        time.perf_counter() - began > settings.limit_s
                    )
                    if row.row.status is Status.MEASURED and not late:  # no round after a failure
                        queries = (samples, settings.end_to_end_per_round[number])
                        bench.round(plans[index], row, queries, whole=number == whole,
                                    last=number == len(rounds) - 1)  # fmt: skip
                        heard = f"{place}: {_heard(row.row)}"
                    elif late and number == 0:
                        row.row = replace(row.row, status=Status.SKIPPED, reason=_late(settings))
                    phase(1, note=heard)
                    _tell(phase.line())
    finally:
        bench.end()
    late = settings.limit_s is not None and time.perf_counter() - began > settings.limit_s
    if settings.profile and not late:
        bench.profile(plans, state)
    rows = [one.row for one in state]
    return Measured(rows=rows, outputs=bench.outputs, views=bench.views)


def _late(settings: BenchSettings) -> str:
    limit = duration(settings.limit_s or 0.0)
    return f"The limit of {limit} had passed. Measure this row with --rows, or give more time."


def _tell(line: str) -> None:
    """Print a line for each figure where no bar is drawn: what is cut off has left them."""
    if not get_console().is_terminal:
        say(line)


def _heard(row: Row) -> str:
    """Say what a round gave, for people who watch."""
    if row.reason is not None:
        return row.reason.rstrip(".")
    timing = row.latency
    return "measured" if timing is None else f"{timing['p50_ms']:.3g} ms"


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
class _State:
    """A row while it is measured.

    Attributes:
        index: of its plan.
        identity: tells measurements of the same thing.
        row: as far as it is known.
        results: of its rounds.
        complete: whether its quality is known, too.
        process: what waits for its next round.
    """

    index: int
    identity: str
    row: Row
    results: list[JobResult] = field(default_factory=list)
    complete: bool = False
    process: RowProcess


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
    folders: dict[int, Path] = field(default_factory=dict)
    processes: list[RowProcess] = field(default_factory=list)

    @property
    def query(self) -> Path:
        return self.workspace / "query.npy"

    @property
    def kspace(self) -> Path:
        return self.workspace / "kspace.npy"

    def volume(self, index: int) -> Path:
        return self.workspace / f"volume-{index}.npy"

    def folder(self, index: int) -> Path:
        return self.folders.get(index, self.workspace / f"row-{index}")

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
            batches=self._batches(plan) if last else (),
            throughput_s=settings.throughput_s,
            resident=plan.row.device == "cuda",
            dynamic=self.dynamic.get(index),
            mask=None if self.mask is None else self.mask.to_dict(),
            volumes=pairs if last else (),
        )

    def _batches(self, plan: Plan) -> tuple[int, ...]:
        """Return the batches of a row; in haste a CPU, the reference of GPUs, has single slices."""
        hasty = self.settings.limit_s is not None and plan.row.device == "cpu"
        return self.settings.batches[:1] if hasty else self.settings.batches

    def begin(self, plan: Plan, index: int, plans: Sequence[Plan]) -> _State:
        """Return the state of a row before its first round, or where a benchmark was cut off."""
        # Named by what it is: the next time other rows may be asked for.
        word = re.sub(r"[^\w.+-]+", "_", plan.row.key)
        name = f"{word[:80]}-{sha256_bytes(plan.row.key.encode())[:8]}"
        folder = self.folders[index] = self.workspace / "rows" / name
        process = RowProcess(folder, timeout_s=self.settings.timeout_s, module=self.worker)
        self.processes.append(process)
        identity = "" if plan.source is None else self._identity(plan, plans)
        state = _State(index=index, identity=identity, row=plan.row, process=process)
        if plan.source is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._go_on(state)
        return state

    def _identity(self, plan: Plan, plans: Sequence[Plan]) -> str:
        """Return what a row's figures depend on, as one hash."""
        source = Path(str(plan.source))
        content = source / MANIFEST if source.is_dir() else source
        gpu = open_nvml()[0] if plan.row.device == "cuda" else None
        about = {
            "key": plan.row.key,
            "compared_with": next(
                other.row.key
                for other in plans
                if other.source is not None and other.row.network == plan.row.network
            ),
            "source": sha256_file(content) if content.is_file() else str(source),
            "backend": plan.backend,
            "options": dict(plan.options),
            "opener": plan.opener,
            "settings": {**self.settings.to_dict(), "precisions": None, "limit_s": None},
            "cases": [(case.name, case.sha256, len(case.target)) for case in self.cases],
            "mask": None if self.mask is None else self.mask.sha256,
            "machine": [cpu(), gpu.name if gpu else None],
            # Without PyTorch's build, which is known only where it is imported already.
            "versions": {name: found.partition("+")[0] for name, found in versions().items()},
            "kdmri_edge": __version__,
        }
        return sha256_bytes(json.dumps(finite(about), sort_keys=True, default=str).encode())

    def _go_on(self, state: _State) -> None:
        """Take what was measured of the row before the benchmark was cut off."""
        path = self.folder(state.index) / _ROW
        try:
            known = RowFile.read(path) if path.is_file() else None
        except BenchError:
            known = None  # measured anew
        if known is None or known.more.get("identity") != state.identity:
            shutil.rmtree(self.folder(state.index))
            self.folder(state.index).mkdir()
            return
        results = [JobResult.from_dict(value) for value in known.more["results"]]
        if not known.more["complete"]:
            state.row, state.results = known.row, results
            return
        try:
            outputs = self._read(state.index)
        except OSError:
            outputs = None
        reference = known.row.difference is None
        if reference and outputs is None:
            return  # others are compared with it
        state.row, state.results, state.complete = known.row, results, True
        if reference and outputs is not None:
            self.references[state.row.network] = state.row
            self.outputs[state.row.network] = outputs
            if state.row.role == "teacher" and self.teacher is None:
                self.teacher = self._scores(outputs)
        self.views[state.row.key] = self._read_views(state)

    def round(
        self, plan: Plan, state: _State, queries: tuple[int, int], *, whole: bool, last: bool
    ) -> None:
        """Measure one round of a row and write down what is known of it then.

        Args:
            plan: of the row.
            state: is brought up to date.
            queries: samples of the network alone, and from k-space to image.
            whole: reconstruct the volumes, and measure batches.
            last: there is no later round.
        """
        index = state.index
        self.make_dynamic(plan, index, last=whole)
        result = state.process.run(self.job(plan, index, *queries, last=whole))
        state.results.append(result)
        state.row = _outcome(state.row, result)
        if state.row.status is Status.MEASURED:
            state.row = self._timed(state.row, state.results)
            if whole:
                state.row = self.finish(state.row, index)
                state.complete = state.row.status is Status.MEASURED
        if last or state.row.status is not Status.MEASURED or not self._stays(state.row):
            state.process.end()
        if state.row.status is Status.MEASURED:
            self._write(state)

    def _stays(self, row: Row) -> bool:
        """Whether a row's process may wait for its next round, or begins it anew."""
        if row.device == "cpu" and self.settings.restart:
            return False
        left, memory = available_memory(), physical_memory()
        if left is not None and left < _RESERVE * memory:
            return False
        gpu = open_nvml()[0] if row.device == "cuda" else None
        return gpu is None or gpu.free_share() >= _RESERVE

    def profile(self, plans: Sequence[Plan], state: Sequence[_State]) -> None:
        """Add what layers take to the rows whose runtime tells."""
        able = {backend.title for backend in BACKENDS.values() if backend.profiles}
        chosen = [
            one
            for one in state
            if one.complete
            and one.row.profile is None
            and one.row.runtime in able
            and one.row.variant in (DEFAULT, PLAIN_EXPORT)
        ]
        queries = self.settings.profile
        with progress("Timing layers", len(chosen)) as advance:
            for one in chosen:
                job = self.job(plans[one.index], one.index, 0, 0, last=False)
                result = run_isolated(
                    replace(job, profile=queries),
                    self.folder(one.index),
                    timeout_s=self.settings.timeout_s,
                    module=self.worker,
                )
                one.row = replace(one.row, profile=_profile(queries, result))
                self._write(one)
                advance(1)

    def end(self) -> None:
        """End all processes."""
        for process in self.processes:
            process.end()

    def _write(self, state: _State) -> None:
        more = {
            "identity": state.identity,
            "complete": state.complete,
            "rounds": [len(state.results), len(self.settings.samples_per_round)],
            "results": [asdict(result) for result in state.results],
        }
        RowFile(row=state.row, more=more).write(self.folder(state.index) / _ROW)

    def _read(self, index: int) -> list[NDArray[Any]]:
        count = range(len(self.cases))
        return [np.load(self.output(index, case), mmap_mode="r") for case in count]

    def _timed(self, row: Row, results: Sequence[JobResult]) -> Row:
        """Add time and memory of the rounds so far."""
        fresh = [result for result in results if result.load_s is not None]
        whole = next((result for result in results if result.throughput), results[-1])
        return replace(
            row,
            latency=summarise([result.latency_s for result in results]),
            load_s=tuple(float(result.load_s or 0.0) for result in fresh),
            cold={
                "load_s": [result.load_s for result in fresh],
                "first_s": [result.first_s for result in fresh],
                "process_s": [result.cold_s for result in fresh],
            },
            end_to_end=_end_to_end(results),
            throughput=dict(whole.throughput),
            resident=_resident(results),
            clocks=dict(results[-1].clocks) or None,
            energy=_energy(results),
            memory=_largest(results),
            session=dict(results[-1].info),
        )

    def finish(self, row: Row, index: int) -> Row:
        """Add the quality of a row whose volumes are reconstructed."""
        try:
            outputs = self._read(index)
            volumes = volume_rows(self.cases, outputs)
        except (OSError, ValueError, DataError) as error:
            return replace(row, status=Status.FAILED, reason=f"Its output is unusable: {error}")
        row = replace(row, volumes=tuple(volumes), quality=summary(volumes))
        row = self._with_worst(row, outputs)
        self._write_views(row, index)
        return self._compared(row, index, outputs, volumes)

    def _scores(self, outputs: Sequence[NDArray[Any]]) -> list[NDArray[np.float64]]:
        return [
            slice_psnr(case.target, output)
            for case, output in zip(self.cases, outputs, strict=True)
        ]

    def _write_views(self, row: Row, index: int) -> None:
        images = {str(number): view.image for number, view in enumerate(self.views[row.key])}
        np.savez(self.folder(index) / _VIEWS, **images)  # type: ignore[arg-type]

    def _read_views(self, state: _State) -> list[View]:
        names = [case.name for case in self.cases]
        with np.load(self.folder(state.index) / _VIEWS) as images:
            return [
                View(
                    score=SliceScore(
                        case=names.index(found["volume"]),
                        slice=found["slice"],
                        psnr=found["psnr_db"],
                        reference=found["teacher_psnr_db"],
                    ),
                    image=images[str(number)],
                )
                for number, found in enumerate(state.row.worst)
            ]

    def _with_worst(self, row: Row, outputs: Sequence[NDArray[Any]]) -> Row:
        """Name the row's worst slices, and keep them to be looked at."""
        found = self._scores(outputs)
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
        for case in range(len(self.cases)):  # tens of MB per volume and row
            self.output(index, case).unlink(missing_ok=True)
        return replace(row, difference={**compared, "from": reference.key})


def _profile(queries: int, result: JobResult) -> dict[str, Any]:
    """Return what the report says of a row's layers."""
    if result.error is not None:
        return {"reason": result.error}
    total = sum(layer["ms"] for layer in result.profile)
    return {
        "queries": queries,
        "total_ms": total,
        "layers": [
            {**layer, "share": layer["ms"] / total if total else 0.0} for layer in result.profile
        ],
    }


def _kspace(case: Case) -> NDArray[np.complex64]:
    """Return what the coils measure of a volume, [S, C, H, W]."""
    assert case.reception is not None
    return case.reception.kspace()


def _end_to_end(results: Sequence[JobResult]) -> dict[str, Any] | None:
    rounds = [result.end_to_end_s for result in results if result.end_to_end_s]
    return summarise(rounds) if rounds else None


def _resident(results: Sequence[JobResult]) -> dict[str, Any] | None:
    rounds = [result.resident_s for result in results if result.resident_s]
    rates = next((result.resident_rates for result in results if result.resident_rates), {})
    return {**summarise(rounds), "slices_per_s": dict(rates)} if rounds else None


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
