"""The process of one row: `python -m kdmri_bench.worker JOB.json RESULT.json`.

Only numpy and the light core are imported before the first look at the memory, so that what comes
on top of that baseline belongs to the backend and its network.

The order matters: time and memory are measured first, with one slice as the only data in the
process. Reconstructing whole volumes comes after the peak has been read, and their quality is
computed by the parent: the volumes and scikit-image would otherwise be charged to the network.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdmri_bench.jobs import Job, JobResult
from kdmri_bench.latency import sample_latency
from kdmri_bench.memory import resident
from kdmri_edge.errors import BackendError, KdmriError, MissingExtraError
from kdmri_edge.runtime.session import open_session, reconstruct

if TYPE_CHECKING:
    from kdmri_edge.runtime.session import Session

__all__ = ["main", "measure"]


def measure(job: Job) -> JobResult:
    """Do what the job says, in this process.

    Raises:
        KdmriError: the source cannot be opened on that backend at that precision.
    """
    query = np.load(job.query)
    before = resident()
    start = time.perf_counter()
    session = open_session(
        Path(job.source),
        backend=job.backend,
        precision=job.precision,
        threads=job.threads,
        **job.options,
    )
    load_s = time.perf_counter() - start
    loaded = resident()
    latency = sample_latency(lambda: session.run(query), warmup=job.warmup, samples=job.samples)
    after = resident()
    memory = {
        "baseline": before.now,
        "loaded": loaded.now,
        "peak": after.peak,
        "above_baseline": after.peak - before.now,
        "source": after.source,
    }
    for source, output in job.volumes:
        _reconstruct(session, Path(source), Path(output))
    return JobResult(
        load_s=load_s,
        latency_s=tuple(latency),
        memory=memory,
        info=dataclasses.asdict(session.info),
    )


def _reconstruct(session: Session, source: Path, output: Path) -> None:
    zero_filled = np.load(source, mmap_mode="r")
    np.save(output, reconstruct(session, zero_filled))


def main(arguments: list[str]) -> int:
    """Run the job file named first, write the result file named second; return the exit status."""
    job_file, result_file = map(Path, arguments)
    try:
        result = measure(Job.read(job_file))
    except KdmriError as error:
        lacking = isinstance(error, BackendError | MissingExtraError)
        result = JobResult(error=str(error), absent=lacking)
    result.write(result_file)
    return 0 if result.error is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
