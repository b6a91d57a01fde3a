"""The figures of a benchmark, each declared once: table, page, CSV and documentation read this.

A figure is a number of a row. What identifies a row (its network, runtime, precision, ...) is a
label; report.csv has both as columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kdmri_bench.results.schema import Network, Report, Row, Status
from kdmri_edge.metrics import METRICS
from kdmri_edge.runtime.targets import PRECISIONS

__all__ = [
    "FIGURES",
    "LABELS",
    "NOTHING",
    "Figure",
    "Label",
    "figures",
    "loss_text",
    "network_of",
    "precision_text",
    "recorded_name",
    "runtime_text",
    "spelled",
    "variant_name",
]

NOTHING: Final = "–"  # noqa: RUF001 (an en dash in an empty cell, on purpose)
_MIB: Final = 2**20

Read = Callable[[Row, Network | None], float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A number of a row.

    Attributes:
        name: its column in report.csv, which ends with its unit there.
        title: what people read above it.
        unit: that people read it in; empty without one.
        description: what it is, in sentences that need no other.
        digits: behind the decimal point, in `unit`.
        value: reads it from a row and its network, in the unit of `name`; None where there is none.
        scale: from the unit of `name` to `unit`.
        text: writes it where it is more than one number; None for the usual way.
        metric: name of the measure of quality that it is, which each volume has of its own.
        since: version of the schema that it came with.
    """

    name: str
    title: str
    unit: str
    description: str
    digits: int
    value: Read
    scale: float = 1.0
    text: Callable[[Row], str] | None = None
    metric: str | None = None
    since: int = 1

    @property
    def head(self) -> str:
        """Title and unit."""
        return f"{self.title} {self.unit}".strip()

    def shown(self, row: Row, network: Network | None) -> float | None:
        """Return the figure in `unit`."""
        value = self.value(row, network)
        return None if value is None else value * self.scale

    def cell(self, row: Row, network: Network | None) -> str:
        """Return the figure as text in `unit`, `NOTHING` where there is none."""
        value = self.shown(row, network)
        if value is None:
            return NOTHING
        return self.text(row) if self.text else f"{value:,.{self.digits}f}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """What identifies a row of report.csv, or says how it came about.

    Attributes:
        name: its column.
        description: what it is.
        value: reads it from the row; None for what belongs to a volume or to the report.
    """

    name: str
    description: str
    value: Callable[[Row], Any] | None = None


def _session(key: str) -> Callable[[Row], Any]:
    return lambda row: (row.session or {}).get(key)


LABELS: Final = (
    Label(name="key", description="Unique in the report, such as `student/openvino-bf16`.",
          value=lambda row: row.key),
    Label(name="network", description="Which network.", value=lambda row: row.network),
    Label(name="role", description="teacher, plain or student.", value=lambda row: row.role),
    Label(name="runtime", description="What runs it.", value=lambda row: row.runtime),
    Label(name="runtime_version", description="Of the runtime.", value=_session("version")),
    Label(name="device", description="As the runtime calls it.", value=_session("device")),
    Label(name="provider", description="What of the runtime ran.", value=_session("provider")),
    Label(name="threads", description="Threads of the runtime.", value=_session("threads")),
    Label(name="precision_asked", description="Precision that was asked for.",
          value=lambda row: row.precision),
    Label(name="precision_executed", description="Precision that ran, as the runtime reports it.",
          value=_session("precision_executed")),
    Label(name="variant", description="default, or what is special about it.",
          value=lambda row: row.variant),
    Label(name="status", description="measured, skipped (absent here) or failed.",
          value=lambda row: str(row.status)),
    Label(name="reason", description="Why it was not measured.", value=lambda row: row.reason),
    Label(name="volume", description="Name of the volume, or `mean` for the mean of all."),
    Label(name="subject", description="Whom the volume shows."),
    Label(name="seen_in_training",
          description="Whether the network was trained on this very volume."),
)  # fmt: skip


def _of(field: str, key: str) -> Read:
    """Return what reads one key of a mapping of the row."""

    def read(row: Row, _: Network | None) -> float | None:
        value = (getattr(row, field) or {}).get(key)
        return value if isinstance(value, int | float) else None

    return read


def _end(field: str, key: str, index: int) -> Read:
    """Return what reads one end of an interval."""

    def read(row: Row, _: Network | None) -> float | None:
        ends = (getattr(row, field) or {}).get(key)
        return float(ends[index]) if ends else None

    return read


def _mean(metric: str) -> Read:
    return lambda row, _: row.quality.get(metric, {}).get("mean")


def _to_teacher(key: str) -> Read:
    return lambda row, _: row.to_teacher.get("psnr", {}).get(key)


def _cold_start(row: Row, _: Network | None) -> float | None:
    seconds = [float(value) for value in (row.cold or {}).get("process_s", ())]
    return max(seconds) if seconds and max(seconds) > 0 else None


def _milliseconds(field: str, key: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        value = float(getattr(row, field)[key])
        return f"{value:.1f}" if value >= 10 else f"{value:.2f}"

    return text


def _psnr_text(row: Row) -> str:
    found = row.quality["psnr"]
    spread = "" if found.get("std") is None else f" ±{found['std']:.2f}"
    return f"{found['mean']:.2f}{spread}"


def _memory_text(row: Row) -> str:
    memory: Mapping[str, Any] = row.memory or {}
    return f"{memory['peak'] / _MIB:.0f} ({memory['above_baseline'] / _MIB:.0f})"


def loss_text(row: Row) -> str:
    """Return the loss to the teacher with its interval, "0.57 (0.41 to 0.80)"."""
    found: dict[str, Any] = dict(row.to_teacher.get("psnr", {}))
    if found.get("value") is None:
        return NOTHING
    text = f"{-found['value']:.3f}"
    if found.get("low") is None or found["low"] == found["high"]:
        return text.replace("-0.000", "0.000")
    return f"{text} ({-found['high']:.3f} to {-found['low']:.3f})".replace("-0.000", "0.000")


def _time(name: str, title: str, field: str, key: str, description: str, since: int = 1) -> Figure:
    return Figure(
        name=name,
        title=title,
        unit="ms",
        digits=2,
        value=_of(field, key),
        text=_milliseconds(field, key),
        description=description,
        since=since,
    )


_NETWORK_ONLY: Final = "network only: tensor in, tensor out"
_WHOLE: Final = "from sampled k-space to the image in its own unit"

FIGURES: Final = (
    Figure(
        name="psnr_db", title="PSNR", unit="dB", digits=2, value=_mean("psnr"), text=_psnr_text,
        metric="psnr",
        description="Peak signal-to-noise ratio: how small the error is beside the volume's"
        " brightest value, per volume. Mean of volumes, ± standard deviation between them. Higher"
        " is better; 0.1 dB is hard to see, 1 dB is not.",
    ),
    Figure(
        name="ssim", title="SSIM", unit="", digits=4, value=_mean("ssim"), metric="ssim",
        description="Structural similarity: how alike brightness, contrast and structure are in"
        " windows of 7 x 7 pixels. 1 is a perfect copy; higher is better.",
    ),
    Figure(
        name="nmse", title="NMSE", unit="", digits=5, value=_mean("nmse"), metric="nmse",
        description="Normalised mean squared error: energy of the error over that of the fully"
        " sampled image. 0 is perfect; lower is better.",
    ),
    Figure(
        name="hfn", title="HFN", unit="", digits=4, value=_mean("hfn"), metric="hfn",
        description="High-frequency norm (KD-MRI): NMSE of the images' Laplacians, so of edges and"
        " fine detail alone. 0 is perfect; lower is better.",
    ),
    Figure(
        name="samples", title="samples", unit="", digits=0, value=_of("latency", "samples"),
        description="How many queries were timed.",
    ),
    _time("p50_ms", "network p50", "latency", "p50_ms",
          f"Median latency of one slice, {_NETWORK_ONLY}."),
    _time("p90_ms", "network p90", "latency", "p90_ms",
          f"Nine of ten slices are faster, {_NETWORK_ONLY}."),
    _time("min_ms", "network fastest", "latency", "min_ms",
          f"The fastest slice, {_NETWORK_ONLY}."),
    Figure(
        name="speedup", title="speed-up", unit="", digits=2,
        value=lambda row, _: row.speedup, text=lambda row: f"{row.speedup or 0.0:.2f}x",
        description="How many times faster than the teacher in PyTorch in the same run, by network"
        " p50.",
    ),
    Figure(
        name="load_s", title="loading", unit="s", digits=2,
        value=lambda row, _: max(row.load_s, default=None),
        description="Import of the runtime and opening of the network; slowest process.",
    ),
    Figure(
        name="peak_bytes", title="memory", unit="MiB (own)", digits=0, value=_of("memory", "peak"),
        scale=1 / _MIB, text=_memory_text,
        description="Peak resident set of the row's own process, loading included; in parentheses"
        " what of it lies above that process before the runtime was imported.",
    ),
    Figure(
        name="above_baseline_bytes", title="own memory", unit="MiB", digits=0,
        value=_of("memory", "above_baseline"), scale=1 / _MIB,
        description="Peak resident set above the process before the runtime was imported.",
    ),
    Figure(
        name="size_bytes", title="size", unit="KiB", digits=0,
        value=lambda row, _: row.size_bytes, scale=1 / 1024,
        description="Graph and weights on disk.",
    ),
    Figure(
        name="parameters", title="parameters", unit="", digits=0,
        value=lambda _, network: None if network is None else network.parameters,
        description="Trainable parameters of the network.",
    ),
    Figure(
        name="macs", title="MACs", unit="G", digits=2, scale=1e-9,
        value=lambda _, network: None if network is None else sum(network.macs.values()),
        description="Multiply-accumulates for one slice.",
    ),
    _time("p99_ms", "network p99", "latency", "p99_ms",
          "99 of 100 slices are faster, network only; withheld below 1,000 samples.", since=2),
    Figure(
        name="p50_low_ms", title="network p50, low", unit="ms", digits=2, since=2,
        value=_end("latency", "p50_interval_ms", 0),
        description="Lower end of what the rounds' medians span (95 % interval of each).",
    ),
    Figure(
        name="p50_high_ms", title="network p50, high", unit="ms", digits=2, since=2,
        value=_end("latency", "p50_interval_ms", 1), description="Upper end of it.",
    ),
    _time("end_to_end_p50_ms", "end to end p50", "end_to_end", "p50_ms",
          f"Median latency of one slice {_WHOLE}.", since=2),
    _time("end_to_end_p90_ms", "end to end p90", "end_to_end", "p90_ms",
          f"Nine of ten slices are faster {_WHOLE}.", since=2),
    _time("end_to_end_p99_ms", "end to end p99", "end_to_end", "p99_ms",
          f"99 of 100 slices are faster {_WHOLE}; withheld below 1,000 samples.", since=2),
    Figure(
        name="cold_start_s", title="cold start", unit="s", digits=2, value=_cold_start, since=2,
        description="From the start of the process to its first image; slowest process.",
    ),
    *(
        Figure(
            name=f"slices_per_s_batch_{size}", title=f"batch {size}", unit="slices/s", digits=1,
            value=_of("throughput", str(size)), since=2,
            description="Throughput when all slices lie ready"
            + ("." if size == 1 else f", in batches of {size}."),
        )
        for size in (1, 8, 32)
    ),
    _time("resident_p50_ms", "resident p50", "resident", "p50_ms",
          "Median latency of one slice that lies on the GPU already, and whose image stays there.",
          since=2),
    Figure(
        name="gpu_peak_bytes", title="GPU memory", unit="MiB", digits=0,
        value=_of("memory", "gpu_peak"), scale=1 / _MIB, since=2,
        description="What the process holds on the GPU, by NVML.",
    ),
    Figure(
        name="joules_per_slice", title="energy", unit="J/slice", digits=3,
        value=_of("energy", "joules_per_slice"), since=2,
        description="Of the CPU package or the GPU while the row was timed.",
    ),
    Figure(
        name="fraction_of_peak", title="of peak", unit="%", digits=0,
        value=_of("limit", "fraction"), scale=100.0, since=2,
        description="Multiply-accumulates a second, as a share of the machine's own matrix product"
        " at this precision.",
    ),
    Figure(
        name="psnr_to_teacher_db", title="loss", unit="dB (95 %)", digits=3, scale=-1.0,
        value=_to_teacher("value"), text=loss_text, since=2,
        description="PSNR of the teacher in PyTorch minus that of this row, paired by volume, with"
        " its 95 % interval over subjects where there are several; below 0 it is better than the"
        " teacher. In report.csv with the other sign.",
    ),
    Figure(
        name="psnr_to_teacher_low_db", title="loss, highest", unit="dB", digits=3, scale=-1.0,
        value=_to_teacher("low"), since=2, description="The interval's end with the larger loss.",
    ),
    Figure(
        name="psnr_to_teacher_high_db", title="loss, lowest", unit="dB", digits=3, scale=-1.0,
        value=_to_teacher("high"), since=2, description="The interval's other end.",
    ),
    Figure(
        name="fraction_of_bandwidth", title="of bandwidth", unit="%", digits=0,
        value=_of("limit", "bandwidth_fraction"), scale=100.0, since=2,
        description="If every layer's input and output went through memory, as a share of the"
        " machine's memory bandwidth; above 100 where caches serve it.",
    ),
)  # fmt: skip


def figures() -> tuple[Figure, ...]:
    """Return the figures, and after them measures of quality that installed packages bring."""
    known = {figure.metric for figure in FIGURES}
    others = (name for name in METRICS if name not in known)
    return FIGURES + tuple(
        Figure(
            name=name,
            title=name,
            unit="",
            digits=4,
            value=_mean(name),
            metric=name,
            description="A measure of an installed package;"
            f" {'higher' if METRICS[name].higher_is_better else 'lower'} is better.",
        )
        for name in others
    )


_SPELLINGS: Final = {short: name for name, short in PRECISIONS.items()}


def spelled(text: str) -> str:
    """Write precisions as users type them: "f32 in 3/8 layers" is "fp32 in 3/8 layers".

    Reports keep the short names that they always had.
    """
    names = "|".join(short for short, name in _SPELLINGS.items() if short != name)
    return re.sub(rf"\b({names})\b", lambda match: _SPELLINGS[match[1]], text)


def recorded_name(row: Row) -> str:
    """Return `variant_name` with the precision as the report has it."""
    special = "" if row.variant == "default" else f", {row.variant}"
    return f"{row.network}, {row.runtime} {row.precision}{special}"


def variant_name(row: Row) -> str:
    """Return network, runtime, precision and what is special: "student, OpenVINO bf16"."""
    return spelled(recorded_name(row))


def runtime_text(row: Row) -> str:
    """Return the runtime and what is special about how it runs."""
    return row.runtime if row.variant == "default" else f"{row.runtime}, {row.variant}"


def precision_text(row: Row) -> str:
    """Share of the asked precision in what was executed: "bf16 in 28/30 layers" is "bf16 28/30".

    Where all layers run in it there is no share to tell.
    """
    if row.status is not Status.MEASURED or not row.session:
        return spelled(row.precision)
    executed = str(row.session.get("precision_executed") or row.precision)
    parts = [part.split() for part in executed.split(",")]
    own = next((part for part in parts if part[0].lower() == row.precision), parts[0])
    share = [word for word in own if "/" in word and len(set(word.split("/"))) > 1]
    # "f16 weights, f32 arithmetic": what is asked for is stored, not computed with
    stored = own[1:2] if own[1:2] == ["weights"] else []
    return spelled(" ".join([own[0], *stored, *share]))


def network_of(row: Row, report: Report) -> Network | None:
    """Return what is known of a row's network."""
    return next((network for network in report.networks if network.name == row.network), None)
