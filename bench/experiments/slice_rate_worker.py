"""Reconstructs slices from memory, with whichever revision of the package it finds.

`slice_rate` starts it as a program of its own: `slice_rate_worker.py BUNDLE SCAN.npz IMAGES.npy
SLICES THREADS`. It prints one JSON object, and names nothing that an older revision lacks.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.inputs import NetworkInput, slice_input
from kdmri_edge.runtime.pipeline import Pipeline


def _seconds(call: Any, *given: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    made = call(*given)
    return made, time.perf_counter() - began


def main(bundle: str, scan: str, images: str, slices: str, threads: str) -> None:
    """Measure; see the module."""
    held = np.load(scan)
    kspace, mask = held["kspace"], Mask(samples=held["samples"], name="scan")
    pipeline = Pipeline(Path(bundle), threads=int(threads), sharing=True)
    pipeline.warm_up()
    first = [pipeline.reconstruct(one, mask) for one in kspace]
    for outcome in first:
        if outcome.fallback is not None:
            raise SystemExit(outcome.fallback)
    np.save(images, np.stack([outcome.image for outcome in first]))

    def one(number: int) -> None:
        pipeline.reconstruct(kspace[number % len(kspace)], mask)

    at_once = getattr(pipeline, "at_once", 1)
    cpu = time.process_time()
    with ThreadPoolExecutor(at_once) as pool:
        _, seconds = _seconds(lambda: list(pool.map(one, range(int(slices)))))
    cpu = time.process_time() - cpu
    coils, network, whole = [], [], []
    for slice_ in kspace:
        made, took = _seconds(slice_input, slice_, mask, pipeline.reads)
        coils.append(took)
        network.append(_seconds(pipeline.images, NetworkInput.of([made], mask))[1])
        whole.append(_seconds(pipeline.reconstruct, slice_, mask)[1])
    print(
        json.dumps(
            {
                "slices_per_s": int(slices) / seconds,
                "cpu_ms_per_slice": 1e3 * cpu / int(slices),
                "at_once": at_once,
                "alone_ms": {
                    "coils": 1e3 * median(coils),
                    "network": 1e3 * median(network),
                    "slice": 1e3 * median(whole),
                },
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
