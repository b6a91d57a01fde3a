"""How long a bundle takes for a slice on this machine, and how much memory: one small figure each.

What an export records and `kdmri-edge verify` compares with: the golden input, in a process of its
own without PyTorch, as the benchmark measures its rows. Single queries of a few; a benchmark says
more (`kdmri-edge bench`).
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kdmri_bench.measuring.device import load_average
from kdmri_bench.measuring.isolation import Job, JobResult, run_isolated
from kdmri_bench.planning.settings import available_threads
from kdmri_edge.errors import KdmriError
from kdmri_edge.runtime.bundle import GOLDEN_INPUT, GOLDEN_MAPS, open_bundle
from kdmri_edge.runtime.networks import backend_at_hand
from kdmri_edge.utils.provenance import machine

__all__ = ["measure_bundle"]

_WARMUP: Final = 3
_SAMPLES: Final = 30
_SECONDS: Final = 5.0
_TIMEOUT_S: Final = 300.0


def measure_bundle(
    folder: Path, *, like: Mapping[str, Any] | None = None, backend: str | None = None
) -> dict[str, Any]:
    """Time a bundle's golden input, and read the memory of the process that ran it.

    Args:
        folder: The bundle, which is intact.
        like: Earlier figures: take their backend, precision and threads where this machine has
            them.
        backend: Take this one.

    Returns:
        Plain JSON values: `backend`, `precision`, `threads`, `runtime` with its version,
        `samples`, `p50_ms` and `p90_ms` of single queries (network only), `peak_bytes` of the whole
        process (resident set), `load` of the machine before, and `machine`. Where nothing could be
        measured `reason` in place of the figures.
    """
    bundle = open_bundle(folder, verify=False)
    like = like or {}
    offered = bundle.target.runs_on
    chosen = backend or (like.get("backend") if like.get("backend") in offered else None)
    try:
        chosen = chosen or backend_at_hand(folder)
    except KdmriError as error:
        return {"reason": error.what}
    if chosen is None:
        return {"reason": f"None of {', '.join(offered)} is installed."}
    same = like.get("backend") == chosen
    precision = str(like.get("precision")) if same and like.get("precision") else None
    threads = int(like["threads"]) if same and isinstance(like.get("threads"), int) else None
    threads = min(threads, available_threads()) if threads else available_threads()
    maps = folder / GOLDEN_MAPS
    job = Job(
        source=str(folder),
        backend=chosen,
        precision=precision or bundle.meant_for,
        threads=threads,
        query=str(folder / GOLDEN_INPUT),
        maps=str(maps) if bundle.takes_maps else None,
        warmup=_WARMUP,
        samples=_SAMPLES,
        seconds=_SECONDS,
    )
    load = load_average()
    place = Path(tempfile.mkdtemp(prefix="kdmri-edge-"))
    try:
        result: JobResult = run_isolated(job, place, timeout_s=_TIMEOUT_S)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if result.error is not None:
        return {"backend": chosen, "precision": job.precision, "reason": result.error}
    times = sorted(1e3 * seconds for seconds in result.latency_s)
    return {
        "backend": chosen,
        "precision": job.precision,
        "threads": threads,
        "runtime": f"{result.info['backend']} {result.info['version']}",
        "samples": len(times),
        "p50_ms": round(statistics.median(times), 4),
        "p90_ms": round(times[min(len(times) - 1, int(0.9 * len(times)))], 4),
        "peak_bytes": int(result.memory["peak"]),
        "load": load,
        "machine": machine(),
    }
