"""Reports made by hand, for tests of what is done with them."""

from __future__ import annotations

from typing import Any

from kdmri_bench.measuring.latency import summarise
from kdmri_bench.measuring.quality import summary
from kdmri_bench.planning.settings import BenchSettings
from kdmri_bench.results.derive import derived
from kdmri_bench.results.schema import Network, Report, Row, TestVolume
from kdmri_edge.physics.masks import variable_density_lines
from kdmri_edge.utils.provenance import provenance

SIZES = {"teacher": 141_765, "student": 49_285, "plain": 49_285}


def row(
    network: str, runtime: str, psnr: float, ms: float, *, mib: float = 100.0, **more: Any
) -> Row:
    """A measured row: p50 is `ms`, its samples lie within 1 %."""
    volumes = tuple(
        {"name": name, "psnr": psnr + shift, "ssim": psnr / 50, "nmse": 1 / psnr, "hfn": 5 / psnr}
        for name, shift in (("v1", -1.0), ("v2", 1.0))
    )
    rounds = [[1e-3 * ms * (1 + 0.01 * (i % 5 - 2) / 2) for i in range(50)] for _ in range(2)]
    fields: dict[str, Any] = {
        "key": f"{network}/{runtime}", "network": network, "role": network, "runtime": runtime,
        "precision": "f32", "volumes": volumes, "quality": summary(volumes),
        "latency": summarise(rounds), "end_to_end": summarise(rounds),
        "cold": {"load_s": [0.1], "first_s": [0.1], "process_s": [0.4]},
        "throughput": {"1": 1e3 / ms, "8": "The graph takes one slice."},
        "memory": {"baseline": 30 << 20, "loaded": 80 << 20, "peak": int(mib * 2**20),
                   "above_baseline": 70 << 20, "source": "x"},
        "size_bytes": 400 << 10, "session": {"version": "1", "precision_executed": "f32"},
        "worst": ({"volume": "v1", "slice": 1, "psnr_db": 30.0, "teacher_psnr_db": 31.0,
                   "loss_db": 1.0},),
    }  # fmt: skip
    return Row(**{**fields, **more})


def report(*rows: Row, **more: Any) -> Report:
    """A report of such rows, two volumes of two subjects."""
    networks = tuple(
        Network(name=role, role=role, parameters=size, attribution=None, layer_values=10**6,
                macs={"convolutions": 10**9, "data_consistency": 10**8})
        for role, size in SIZES.items()
    )  # fmt: skip
    volumes = tuple(
        TestVolume(name=name, subject=name, contrast=None, sha256=name * 32, slices=3)
        for name in ("v1", "v2")
    )
    peaks = {"side": 256, "PyTorch": {"f32": 100.0}, "memory": {"gb_per_s": 20.0}}
    fields: dict[str, Any] = {
        "provenance": provenance(0), "settings": BenchSettings(samples=100).to_dict(),
        "statement": "Retrospective data.", "volumes": volumes, "split": None,
        "mask": variable_density_lines(32, 4, centre_lines=4).to_dict(), "matrix": 32,
        "networks": networks, "rows": tuple(derived(rows, networks, volumes, peaks)),
        "gap_closed": {}, "peaks": peaks, "absent": ("Energy of the CPU: not readable.",),
    }  # fmt: skip
    return Report(**{**fields, **more})
