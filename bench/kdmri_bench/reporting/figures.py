"""Every figure of a row: its text, and its column in tables and on the page.

The figures of a row as text: one place for the terminal's table and the README's.

Every figure of a row as a column: one place for the page's table and the report in Markdown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from kdmri_bench.results.schema import Network, Report, Row, Status

__all__ = [
    "COLUMNS",
    "HEADERS",
    "NOTHING",
    "Column",
    "busy_lines",
    "cells",
    "footnotes",
    "header_line",
    "loss_text",
    "precision_text",
    "seen_lines",
    "text_of",
    "variant_name",
]

NOTHING = "–"  # noqa: RUF001 (an en dash in an empty cell, on purpose)
MIB = 2**20
HEADERS = (
    "network", "runtime", "precision", "PSNR dB", "SSIM", "NMSE", "HFN",
    "p50 ms", "p90 ms", "speed-up", "peak MiB (own)", "size KiB",
)  # fmt: skip


def variant_name(row: Row) -> str:
    """Return network, runtime, precision and what is special: "student, OpenVINO bf16"."""
    special = "" if row.variant == "default" else f", {row.variant}"
    return f"{row.network}, {row.runtime} {row.precision}{special}"


def precision_text(row: Row) -> str:
    """Share of the asked precision in what was executed: "bf16 in 28/30 layers" is "bf16 28/30".

    Where all layers run in it there is no share to tell.
    """
    if row.status is not Status.MEASURED or not row.session:
        return row.precision
    executed = str(row.session.get("precision_executed") or row.precision)
    parts = [part.split() for part in executed.split(",")]
    own = next((part for part in parts if part[0].lower() == row.precision), parts[0])
    share = [word for word in own if "/" in word and len(set(word.split("/"))) > 1]
    # "f16 weights, f32 arithmetic": what is asked for is stored, not computed with
    stored = own[1:2] if own[1:2] == ["weights"] else []
    return " ".join([own[0], *stored, *share])


def _psnr(row: Row) -> str:
    std = row.quality.get("psnr", {}).get("std")
    text = _mean(row, "psnr", 2)
    return text if std is None else f"{text} ±{std:.2f}"


def _mean(row: Row, name: str, digits: int) -> str:
    value = row.quality.get(name, {}).get("mean")
    return NOTHING if value is None else f"{value:.{digits}f}"


def _milliseconds(row: Row, name: str) -> str:
    if row.latency is None:
        return NOTHING
    if row.latency.get(name) is None:
        return NOTHING
    value = float(row.latency[name])
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _memory(row: Row) -> str:
    if row.memory is None:
        return NOTHING
    return f"{row.memory['peak'] / MIB:.0f} ({row.memory['above_baseline'] / MIB:.0f})"


def cells(row: Row) -> tuple[str, ...]:
    """Return one text per header."""
    runtime = row.runtime if row.variant == "default" else f"{row.runtime}, {row.variant}"
    return (
        row.network,
        runtime,
        precision_text(row),
        _psnr(row),
        _mean(row, "ssim", 4),
        _mean(row, "nmse", 5),
        _mean(row, "hfn", 4),
        _milliseconds(row, "p50_ms"),
        _milliseconds(row, "p90_ms"),
        NOTHING if row.speedup is None else f"{row.speedup:.2f}x",
        _memory(row),
        NOTHING if row.size_bytes is None else f"{row.size_bytes / 1024:.0f}",
    )


def header_line(report: Report) -> str:
    """One sentence on data, mask and method."""
    slices = sum(volume.slices for volume in report.volumes)
    subjects = len({volume.subject for volume in report.volumes})
    nominal = float(report.mask["nominal_acceleration"])
    effective = float(report.mask["effective_acceleration"])
    return (
        f"{len(report.volumes)} test volume(s) of {subjects} subject(s), {slices} slices,"
        f" matrix {report.matrix}, mask {report.mask['name']}: {nominal:.2f}x nominal,"
        f" {effective:.2f}x effective. {report.statement}"
    )


def footnotes(report: Report) -> list[str]:
    """What a reader needs to know about the columns."""
    machine = report.provenance["machine"]
    settings = report.settings
    spread = "± standard deviation between volumes (n - 1), " if len(report.volumes) > 1 else ""
    lines = [
        f"Quality: mean over volumes, {spread}from each runtime's own output.",
        f"Latency: network only, one slice, {_samples(report)} after"
        f" {settings['warmup']} warm-up queries, in {len(_rounds(report))} interleaved round(s),"
        f" {settings['threads']} thread(s), {machine['cpu']}.{_speedup(report)}{_noise(report)}",
        "Memory: peak resident set of the row's own process, loading included"
        " (own: above that process before the runtime was imported).",
    ]
    eager = next((r.session for r in report.rows if r.runtime == "PyTorch" and r.session), None)
    if eager is not None:
        lines.append(f"PyTorch {eager.get('version')}: {eager.get('provider')}.")
    for network in report.networks:
        macs = sum(network.macs.values()) / 1e9
        lines.append(f"{network.name}: {network.parameters:,} parameters, {macs:.2f} GMAC a slice.")
    lines.extend(_gap(report))
    return lines


def _samples(report: Report) -> str:
    """Say how many samples were really taken: slow rows stop at the time limit of a round."""
    taken = [int(row.latency["samples"]) for row in report.rows if row.latency]
    fewest, most = min(taken, default=0), max(taken, default=0)
    return f"{most:,} samples" if fewest == most else f"{fewest:,} to {most:,} samples"


def _speedup(report: Report) -> str:
    measured = any(row.speedup is not None for row in report.rows)
    return " Speed-up: against the teacher in PyTorch, same run." if measured else ""


def _noise(report: Report) -> str:
    """How far the machine's own unrest may have moved the figures."""
    spread: dict[str, float] = {}
    for row in report.rows:
        medians = row.latency["round_p50_ms"] if row.latency else []
        if len(medians) > 1:
            spread[row.key] = max(medians) / min(medians) - 1
    text = ""
    if spread:
        key = max(spread, key=lambda name: spread[name])
        text = f" Between rounds p50 differs by up to {100 * spread[key]:.0f} % ({key})."
    return "".join([text, *(f" {line}" for line in busy_lines(report))])


def busy_lines(report: Report) -> list[str]:
    """One warning where other work wanted the CPUs before the benchmark began."""
    load, cores = report.load_average, report.provenance["machine"]["cores"]
    if load is None or not cores or load <= 0.5 * cores:
        return []
    return [f"The machine was busy before (load {load:.1f} on {cores} CPUs): measure again."]


def _gap(report: Report) -> list[str]:
    """Say how much of the gap distillation closes, and how wide the gap is."""
    closed = report.gap_closed.get("psnr")
    if closed is None:
        return []
    rows = {r.role: r.quality["psnr"]["mean"] for r in reversed(report.rows) if r.quality}
    gap = float(rows["teacher"] or 0.0) - float(rows["plain"] or 0.0)
    ssim = report.gap_closed.get("ssim")
    also = "" if ssim is None else f" ({ssim:.0f} % in SSIM)"
    return [
        f"From plain student to teacher are {gap:.2f} dB; distillation closes {closed:.0f} %{also}."
    ]


def _rounds(report: Report) -> list[float]:
    return next((row.latency["round_p50_ms"] for row in report.rows if row.latency), [])


def seen_lines(report: Report) -> list[str]:
    """One warning for each test volume that a network was trained on."""
    return [
        f"{volume.name} was in the training data of {', '.join(volume.seen_in_training)}:"
        " its figures are no test result."
        for volume in report.volumes
        if volume.seen_in_training
    ]


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
