"""Every figure of a row as a column: one place for the page's table and the report in Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from kdmri_bench.cells import NOTHING
from kdmri_bench.schema import Network, Report, Row

__all__ = ["COLUMNS", "Column", "loss_text", "text_of"]

Value = float | None
_MIB: Final = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One figure.

    Attributes:
        title: head of the column.
        unit: below it; empty without one.
        meaning: one sentence, for whoever asks.
        digits: behind the decimal point.
        value: row and its network -> figure in that unit, None where there is none.
    """

    title: str
    unit: str
    meaning: str
    digits: int
    value: Callable[[Row, Network | None], Value]


def _from(field: str, key: str, factor: float = 1.0) -> Callable[[Row, Network | None], Value]:
    """Return what reads one key of a mapping of the row."""

    def read(row: Row, _: Network | None) -> Value:
        value = (getattr(row, field) or {}).get(key)
        return value * factor if isinstance(value, int | float) else None

    return read


def _quality(name: str) -> Callable[[Row, Network | None], Value]:
    return lambda row, _: row.quality.get(name, {}).get("mean")


def _loss(row: Row, _: Network | None) -> Value:
    value = row.to_teacher.get("psnr", {}).get("value")
    return None if value is None else -value


def _cold(row: Row, _: Network | None) -> Value:
    seconds = [float(value) for value in (row.cold or {}).get("process_s", ())]
    return max(seconds) if seconds and max(seconds) > 0 else None


def _size(row: Row, _: Network | None) -> Value:
    return None if row.size_bytes is None else row.size_bytes / 1024


COLUMNS: Final = (
    Column(title="PSNR", unit="dB", digits=2, value=_quality("psnr"),
           meaning="Peak signal-to-noise ratio per volume, mean of volumes; higher is better."),
    Column(title="loss", unit="dB (95 %)", digits=3, value=_loss,
           meaning="PSNR of the teacher in PyTorch minus that of this row, paired by volume."),
    Column(title="SSIM", unit="", digits=4, value=_quality("ssim"),
           meaning="Structural similarity, 7 x 7 window; higher is better."),
    Column(title="NMSE", unit="", digits=5, value=_quality("nmse"),
           meaning="Squared error over the target's energy; lower is better."),
    Column(title="HFN", unit="", digits=4, value=_quality("hfn"),
           meaning="NMSE of the Laplacian: fine detail; lower is better."),
    Column(title="network p50", unit="ms", digits=2, value=_from("latency", "p50_ms"),
           meaning="Median latency of one slice, network only."),
    Column(title="network p90", unit="ms", digits=2, value=_from("latency", "p90_ms"),
           meaning="Nine of ten slices are faster; network only."),
    Column(title="network p99", unit="ms", digits=2, value=_from("latency", "p99_ms"),
           meaning="Network only; withheld below 1,000 samples."),
    Column(title="end to end p50", unit="ms", digits=2, value=_from("end_to_end", "p50_ms"),
           meaning="From sampled k-space to the image in its own unit."),
    Column(title="end to end p90", unit="ms", digits=2, value=_from("end_to_end", "p90_ms"),
           meaning="From k-space to image: nine of ten slices are faster."),
    Column(title="end to end p99", unit="ms", digits=2, value=_from("end_to_end", "p99_ms"),
           meaning="From k-space to image; withheld below 1,000 samples."),
    Column(title="cold start", unit="s", digits=2, value=_cold,
           meaning="From the start of the process to its first image; slowest round."),
    Column(title="batch 1", unit="slices/s", digits=1, value=_from("throughput", "1"),
           meaning="Offline throughput: all slices lie ready."),
    Column(title="batch 8", unit="slices/s", digits=1, value=_from("throughput", "8"),
           meaning="Offline throughput in batches of 8."),
    Column(title="batch 32", unit="slices/s", digits=1, value=_from("throughput", "32"),
           meaning="Offline throughput in batches of 32."),
    Column(title="memory", unit="MiB", digits=0, value=_from("memory", "peak", 1 / _MIB),
           meaning="Peak resident set of the row's process."),
    Column(title="own", unit="MiB", digits=0, value=_from("memory", "above_baseline", 1 / _MIB),
           meaning="The same above that process before the runtime was imported."),
    Column(title="GPU", unit="MiB", digits=0, value=_from("memory", "gpu_peak", 1 / _MIB),
           meaning="Memory on the GPU, by NVML."),
    Column(title="size", unit="KiB", digits=0, value=_size,
           meaning="Graph and weights on disk."),
    Column(title="parameters", unit="", digits=0,
           value=lambda _, network: None if network is None else float(network.parameters),
           meaning="Trainable parameters of the network."),
    Column(title="MACs", unit="G", digits=2,
           value=lambda _, n: None if n is None else sum(n.macs.values()) * 1e-9,
           meaning="Multiply-accumulates for one slice."),
    Column(title="of peak", unit="%", digits=0, value=_from("limit", "fraction", 100.0),
           meaning="Share of the machine's own matrix product at this precision."),
    Column(title="of bandwidth", unit="%", digits=0,
           value=_from("limit", "bandwidth_fraction", 100.0),
           meaning="If every layer went through memory; above 100 where caches serve it."),
    Column(title="energy", unit="J/slice", digits=3, value=_from("energy", "joules_per_slice"),
           meaning="Of the CPU package or the GPU while the row was timed."),
)  # fmt: skip


def loss_text(row: Row) -> str:
    """Return the loss to the teacher with its interval, "0.57 (0.41 to 0.80)"."""
    found: dict[str, Any] = dict(row.to_teacher.get("psnr", {}))
    if found.get("value") is None:
        return NOTHING
    text = f"{-found['value']:.3f}"
    if found.get("low") is None or row.to_teacher["psnr"]["low"] == found["high"]:
        return text.replace("-0.000", "0.000")
    return f"{text} ({-found['high']:.3f} to {-found['low']:.3f})".replace("-0.000", "0.000")


def text_of(column: Column, row: Row, report: Report) -> str:
    """Return the figure as text."""
    if column.value is _loss:
        return loss_text(row)
    network = next((n for n in report.networks if n.name == row.network), None)
    value = column.value(row, network)
    return NOTHING if value is None else f"{value:,.{column.digits}f}"
