"""The process of one row: `python -m kdmri_bench.measuring.worker JOB.json RESULT.json`.

It keeps the network open and reads the job file anew for each line on its standard input, one for
every further round of the row.

Only numpy and the light core are imported before the first look at the memory, so that what comes
on top of that baseline belongs to the backend and its network.

The order matters: time and memory of single slices are measured first, with one slice as the only
data in the process. Throughput and whole volumes come after the peak has been read, and quality is
computed by the parent: the volumes and scikit-image would otherwise be charged to the network.

A query from k-space to image has the network's own time in it: both are taken from the same
queries, so that their difference is what surrounds the network.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from kdmri_bench.measuring.device import Meter, open_nvml, resident
from kdmri_bench.measuring.isolation import ANSWER, Job, JobResult
from kdmri_bench.measuring.latency import sample_latency, throughput
from kdmri_bench.measuring.peaks import best
from kdmri_edge.errors import BackendError, KdmriError, MissingExtraError
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.inputs import SliceInput, read_input_spec, slice_input
from kdmri_edge.runtime.session import open_session, reconstruct
from kdmri_edge.utils.extras import load_attribute

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from kdmri_edge.runtime.session import Session

__all__ = ["OpenRow", "main", "measure"]

_OF_COILS = 4
"""Axes of a volume's k-space; images have one less."""


class OpenRow:
    """A row's network, open in this process, and what it took to get there.

    Args:
        job: the first round's.

    Raises:
        KdmriError: the source cannot be opened on that backend at that precision.
    """

    def __init__(self, job: Job) -> None:
        self._query = np.load(job.query)
        self._gpu, _ = open_nvml()
        self._before = resident()
        self._gpu_before = self._gpu.memory() if self._gpu else None
        start = time.perf_counter()
        self._session = _open(job, job.source)
        load_s = time.perf_counter() - start
        self._loaded = resident()
        start = time.perf_counter()
        self._maps = None if job.maps is None else np.load(job.maps)
        self._session.run(self._query, maps=self._maps)
        first_s, cold_s = time.perf_counter() - start, time.time() - job.spawned
        self._cold: dict[str, Any] = {"load_s": load_s, "first_s": first_s, "cold_s": cold_s}
        self._gpu_memory: dict[str, Any] | None = None

    def round(self, job: Job) -> JobResult:
        """Do what the job of one round says.

        Raises:
            KdmriError: as the runtime has it.
        """
        session = self._session
        meter = Meter(self._gpu if _on_gpu(session) else None)
        latency, whole = _sampled(job, session, self._query, self._maps)
        energy = meter.stop(len(latency) + job.warmup)
        clocks = self._gpu.clocks() if self._gpu and _on_gpu(session) else {}
        after = resident()
        memory = {
            "baseline": self._before.now,
            "loaded": self._loaded.now,
            "peak": after.peak,
            "above_baseline": after.peak - self._before.now,
            "source": after.source,
            **self._device_memory(),
        }
        found: dict[str, Any] = {}
        if job.resident:
            found |= _resident(job, session, self._query, self._maps)
        if job.batches:
            found["throughput"] = throughput(
                session,
                lambda: _open(job, job.dynamic or job.source),
                self._query,
                maps=self._maps,
                batches=job.batches,
                seconds=job.throughput_s,
            )
        for source, output in job.volumes:
            given = np.load(source, mmap_mode="r")
            of_coils = given.ndim == _OF_COILS
            images = _of_coils(job, session, given) if of_coils else reconstruct(session, given)
            np.save(output, images)
        cold, self._cold = self._cold, {}
        return JobResult(
            **cold,
            latency_s=tuple(latency),
            end_to_end_s=tuple(whole),
            energy=energy,
            clocks=clocks,
            memory=memory,
            info=dataclasses.asdict(session.info),
            **found,
        )

    def _device_memory(self) -> dict[str, Any]:
        """Return what the process holds on the GPU after the first round's queries.

        Runtimes keep what they have taken there (caching allocators, an engine's workspace), so
        that figure is the peak. In later rounds other rows' processes hold memory there, too, which
        NVML may not be able to tell apart.
        """
        if self._gpu_memory is None:
            self._gpu_memory = {}
            if self._gpu is not None and self._gpu_before is not None and _on_gpu(self._session):
                held = max(self._gpu.memory() - self._gpu_before, 0)
                self._gpu_memory = {"gpu_peak": held, "gpu_source": self._gpu.source}
        return self._gpu_memory


def measure(job: Job) -> JobResult:
    """Do what the job says, once, in this process.

    Raises:
        KdmriError: the source cannot be opened on that backend at that precision.
    """
    return _profiled(job) if job.profile else OpenRow(job).round(job)


def _profiled(job: Job) -> JobResult:
    """Time the layers of the network, which slows it: nothing else is measured beside."""
    session = _open(job, job.source)
    maps = None if job.maps is None else np.load(job.maps)
    layers = session.profile(np.load(job.query), maps=maps, queries=job.profile, warmup=job.warmup)
    return JobResult(
        profile=tuple(dataclasses.asdict(layer) for layer in layers),
        info=dataclasses.asdict(session.info),
    )


def _open(job: Job, source: str) -> Session:
    opener = load_attribute(job.opener) if job.opener else open_session
    named: dict[str, Any] = {}  # other openers know of no masks
    if job.mask is not None:
        named["mask"] = Mask.from_dict(job.mask)
    if job.profile:
        named["profiling"] = True
    session: Session = opener(
        Path(source),
        backend=job.backend,
        precision=job.precision,
        threads=job.threads,
        **named,
        **job.options,
    )
    return session


def _on_gpu(session: Session) -> bool:
    return session.info.device.upper() != "CPU"


def _of_coils(job: Job, session: Session, kspace: NDArray[np.complex64]) -> NDArray[Any]:
    """Reconstruct k-space [S, C, H, W], of which the network's input is made slice by slice."""
    reads = read_input_spec(Path(job.reads or job.source))
    images = []
    for one in kspace:
        given = slice_input(np.array(one), reads.mask, reads)
        images.append(_reconstructed(session, given))
    return np.concatenate(images)


def _reconstructed(session: Session, given: SliceInput) -> NDArray[Any]:
    """Return the image [1, H, W] of one slice."""
    x_u, maps, kspace = (None if part is None else part[None] for part in given)
    assert x_u is not None
    return reconstruct(session, x_u, maps=maps, kspace=kspace)


def _sampled(
    job: Job,
    session: Session,
    query: NDArray[np.float32],
    maps: NDArray[np.float32] | None,
) -> tuple[list[float], list[float]]:
    """Time the queries: return the network's seconds, and those from k-space to image."""
    began, warmup = time.perf_counter(), job.warmup
    network: list[float] = []
    whole: list[float] = []
    if job.kspace and job.end_to_end:
        clocked = _Clocked(session)
        image = _end_to_end(job, cast("Session", clocked))
        whole = sample_latency(image, warmup=warmup, samples=job.end_to_end, seconds=job.seconds)
        network, warmup = clocked.durations[warmup:], 0
    # What is left for the network alone: a benchmark that asks for more of it than of the whole.
    left, more = _left(job, began), job.samples - len(network)
    if more > 0 and (left is None or left > 0):
        network += sample_latency(
            lambda: session.run(query, maps=maps), warmup=warmup, samples=more, seconds=left
        )
    return network, whole


def _resident(
    job: Job, session: Session, query: NDArray[np.float32], maps: NDArray[np.float32] | None
) -> dict[str, Any]:
    """Time queries without copies, of one slice and in batches; empty where there are none."""
    single = session.resident(query, maps=maps)
    if single is None:
        return {}
    seconds = sample_latency(single, warmup=job.warmup, samples=job.samples, seconds=job.seconds)
    rates: dict[str, float | str] = {}
    wide = session
    for batch in job.batches:
        try:
            if batch > 1 and job.dynamic is not None and wide is session:
                wide = _open(job, job.dynamic)
            own = None if maps is None else np.repeat(maps, batch, axis=0)
            many = wide.resident(np.repeat(query, batch, axis=0), maps=own)
            assert many is not None
            rates[str(batch)] = batch / best(many, job.throughput_s)
        except KdmriError as error:
            rates[str(batch)] = str(error)
    return {"resident_s": tuple(seconds), "resident_rates": rates}


def _left(job: Job, began: float) -> float | None:
    return None if job.seconds is None else job.seconds - (time.perf_counter() - began)


class _Clocked:
    """The part of a session that `reconstruct` needs; it notes how long each run takes."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.durations: list[float] = []

    def run(
        self,
        x_u: NDArray[np.float32],
        *,
        operator: NDArray[np.float32] | None = None,
        maps: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        start = time.perf_counter_ns()
        image = self._session.run(x_u, operator=operator, maps=maps)
        self.durations.append((time.perf_counter_ns() - start) * 1e-9)
        return image


def _end_to_end(job: Job, session: Session) -> Callable[[], object]:
    """Return a query from sampled k-space to the image in its own unit, on the road of scans."""
    mask = None if job.mask is None else Mask.from_dict(job.mask)
    reads = read_input_spec(Path(job.reads or job.source), mask)
    kspace = np.load(str(job.kspace)) * reads.mask.grid

    def image() -> object:
        return _reconstructed(session, slice_input(kspace, reads.mask, reads))

    return image


def main(arguments: list[str]) -> int:
    """Run the job file named first and write the result file named second, once for each round.

    Returns:
        The exit status.
    """
    job_file, result_file = map(Path, arguments)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print would garble the answers
    row: OpenRow | None = None
    while True:
        try:
            job = Job.read(job_file)
            if job.profile:
                result = _profiled(job)
            else:
                row = row or OpenRow(job)
                result = row.round(job)
        except KdmriError as error:
            lacking = isinstance(error, BackendError | MissingExtraError)
            JobResult(error=str(error), absent=lacking).write(result_file)
            return 1
        result.write(result_file)
        print(ANSWER, file=answers, flush=True)
        if not sys.stdin.readline():
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
