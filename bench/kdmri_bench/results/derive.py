"""What follows from measured rows: speed-up, loss to the teacher, share of the machine's peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from kdmri_bench.measuring.quality import gap_closed
from kdmri_bench.planning.variants import CUDA, REFERENCE
from kdmri_bench.results.repeatability import predicted
from kdmri_bench.results.schema import DEFAULT, ZERO_FILLED, Network, Row, TestVolume
from kdmri_bench.results.statistics import bootstrap
from kdmri_edge.metrics import METRICS

__all__ = ["derived", "gap", "of_role"]

# Runtimes without matrix products of their own borrow those of the library beneath.
_PEAK_OF: Final = {"TorchScript": REFERENCE, "TensorRT": CUDA, "TensorRT-RTX": CUDA}
_BYTES: Final = {"f32": 4, "bf16": 2, "f16": 2, "int8": 1}


def of_role(role: str, networks: Sequence[Network]) -> str | None:
    """Return the name of the network in a role, None unless there is exactly one."""
    names = [network.name for network in networks if network.role == role]
    return names[0] if len(names) == 1 else None


def _reference(rows: Sequence[Row], network: str | None) -> Row | None:
    """Return the PyTorch row of a network, if it was measured."""
    wanted = (r for r in rows if r.network == network and r.runtime == REFERENCE)
    return next((row for row in wanted if row.latency and row.variant == DEFAULT), None)


def derived(
    rows: Sequence[Row],
    networks: Sequence[Network],
    volumes: Sequence[TestVolume],
    peaks: Mapping[str, Any],
) -> list[Row]:
    """Fill in `speedup`, `to_teacher` and `limit` of every measured row, and its predictions."""
    teacher = _reference(rows, of_role("teacher", networks))
    by_name = {network.name: network for network in networks}
    subjects = [volume.subject for volume in volumes]
    done = []
    for row in predicted(rows):
        if teacher is not None and teacher.latency and row.latency:
            base = float(teacher.latency["p50_ms"])
            row = replace(row, speedup=base / float(row.latency["p50_ms"]))
        if teacher is not None and row.volumes:
            row = replace(row, to_teacher=_to_teacher(row, teacher, subjects))
        if row.latency and row.network in by_name:
            row = replace(row, limit=_limit(row, by_name[row.network], peaks))
        done.append(row)
    return done


def gap(rows: Sequence[Row], networks: Sequence[Network]) -> dict[str, float | None]:
    """Return how much of the gap distillation closes, by measure; empty without all three."""
    roles = ("teacher", "plain", "student")
    found = [_reference(rows, of_role(role, networks)) for role in roles]
    measured = [row.quality for row in found if row is not None]
    return gap_closed(*measured) if len(measured) == len(roles) else {}


def _to_teacher(
    row: Row, teacher: Row, subjects: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """Return the paired difference of each measure, with its interval over subjects."""
    result = {}
    for name in METRICS:
        if any(name not in values for values in (*row.volumes, *teacher.volumes)):
            continue  # the report was made without the package that measures it
        pairs = zip(row.volumes, teacher.volumes, strict=True)
        with np.errstate(invalid="ignore"):  # two exact copies: infinity minus infinity
            values = np.asarray([np.subtract(a[name], b[name]) for a, b in pairs], np.float64)
        found = bootstrap(subjects, values[:, None], lambda means: means[:, 0])
        result[name] = found.to_dict()
    return result


def _limit(row: Row, network: Network, peaks: Mapping[str, Any]) -> dict[str, Any] | None:
    if row.latency is None or row.role == ZERO_FILLED:
        return None
    seconds = float(row.latency["p50_ms"]) * 1e-3
    rate = sum(network.macs.values()) / seconds * 1e-9
    moved = network.layer_values * _BYTES[row.precision] / seconds * 1e-9
    owner, peak = _peak(row, peaks)
    memory = {"cpu": "memory", "cuda": "memory CUDA"}.get(row.device, "")
    bandwidth = peaks.get(memory, {}).get("gb_per_s")
    return {
        "gmac_per_s": rate,
        "peak_gmac_per_s": peak,
        "peak_of": owner,
        "fraction": rate / peak if peak else None,
        "layer_gb_per_s": moved or None,
        "bandwidth_fraction": moved / bandwidth if bandwidth and moved else None,
    }


def _peak(row: Row, peaks: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """Return the runtime's own peak at the row's precision, else the best one on that device."""
    own = _PEAK_OF.get(row.runtime, row.runtime)
    value = peaks.get(own, {}).get(row.precision)
    if value:
        return f"{own} {row.precision}", float(value)
    others = {
        name: float(found[row.precision])
        for name, found in peaks.items()
        if isinstance(found, Mapping)
        and row.precision in found
        and (name == CUDA) == (row.device == "cuda")
    }
    if not others:
        return None, None
    name = max(others, key=lambda key: others[key])
    return f"{name} {row.precision}", others[name]
