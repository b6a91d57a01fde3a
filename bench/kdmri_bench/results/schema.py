"""What a benchmark report holds: report.json, version 2.

`report.json` is `Report.to_dict()`; the attributes below document its keys, and
docs/reference/report-schema.md is made from them. The figures within are declared in `figures`.
Units are in the names (`_ms`, `_bytes`, `_s`); a value that could not be found is null. Readers
must refuse a `schema_version` above their own; keys may be added within a version. Version 2 added
`end_to_end`, `cold`, `throughput`, `energy`, `limit`, `to_teacher`, `worst` and `device` to rows,
and `peaks`, `limits`, `recommended`, `governor` and `absent` to the report; reports of version 1
are read with these empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Final, TypeVar

from kdmri_edge.errors import BenchError
from kdmri_edge.utils.files import refuse_newer

__all__ = [
    "BASELINES",
    "DEFAULT",
    "PEER_COMPILE",
    "PEER_EXPORT",
    "PLAIN_EXPORT",
    "SCHEMA_VERSION",
    "ZERO_FILLED",
    "Network",
    "Report",
    "Row",
    "Status",
    "TestVolume",
    "finite",
    "row_from",
]

SCHEMA_VERSION: Final = 2
ZERO_FILLED: Final = "zero-filled"
"""Network and role of the row that holds the input itself."""

DEFAULT: Final = "default"
"""Variant of a row with nothing special about it."""

PLAIN_EXPORT: Final = "plain export"
PEER_EXPORT: Final = "peer, torch.onnx"
PEER_COMPILE: Final = "peer, torch.compile"
BASELINES: Final = (PLAIN_EXPORT, PEER_EXPORT, PEER_COMPILE)
"""Variants that are measured for comparison and never recommended."""

T = TypeVar("T")

_SINCE_2: Final = {"since": 2}
"""Metadata of fields that came with version 2; the others are as old as the schema."""


class Status(StrEnum):
    """How a row came out.

    Attributes:
        MEASURED: everything was measured.
        SKIPPED: this machine lacks something; `reason` says what.
        FAILED: its process failed; `reason` says how.
    """

    MEASURED = "measured"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """One network, whatever runs it.

    Attributes:
        name: unique in the report; rows refer to it.
        role: "teacher", "plain" or "student".
        parameters: trainable parameters.
        macs: multiply-accumulates per slice: `convolutions` and `data_consistency` (as exported by
            default).
        attribution: of the data that it was trained on, null where not recorded.
        layer_values: values that all convolutions of one slice read and write.
    """

    name: str
    role: str
    parameters: int
    macs: Mapping[str, int]
    attribution: str | None
    layer_values: int = field(default=0, metadata=_SINCE_2)


@dataclass(frozen=True, kw_only=True, slots=True)
class TestVolume:
    """One volume that was measured on.

    Attributes:
        name: file name without suffix.
        subject: whom it shows.
        contrast: null where unknown.
        sha256: of the source file.
        slices: slices measured.
        seen_in_training: names of the networks whose training data hold this very file; their
            figures on it are no test result.
    """

    __test__ = False  # the name starts with Test, and pytest would try to collect it

    name: str
    subject: str
    contrast: str | None
    sha256: str
    slices: int
    seen_in_training: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One network on one backend at one precision.

    Attributes:
        key: unique identifier, such as "student/openvino-bf16".
        network: name of a `Network`; "zero-filled" for the input itself.
        role: of the network; "zero-filled" for the input.
        runtime: what runs it, such as "ONNX Runtime".
        precision: as asked for.
        variant: "default" or "plain export" (data consistency as DFT nodes).
        status: see `Status`.
        reason: why it was not measured, else null.
        quality: measure -> {mean, std} over volumes; std has n - 1 in the denominator, null for
            one volume.
        volumes: per volume, in the order of the report's: {name, psnr, ssim, nmse, hfn}.
        difference: from the network's first measured row, which is PyTorch's where there is one, on
            all volumes: `max_range_normalised` (largest difference over the target volume's
            maximum), `psnr_db` and `ssim` (mean changes), `from` (key of that row; in older reports
            it is absent and PyTorch's); null for that row itself.
        latency: network only, one slice: samples, p50_ms, p90_ms, min_ms, mean_ms, round_p50_ms;
            since version 2 p99_ms (null below 1,000 samples), p50_interval_ms (what the rounds'
            medians span), p50_prediction_ms (where an independent timing is expected, 95 %: by the
            scatter between rounds, pooled over the rows of a runtime; absent with one round) and
            histogram.
        load_s: opening the session, import of the runtime included, for each process that the row
            had: one for all its rounds, or in the full mode on CPUs one per round.
        memory: bytes: baseline, loaded, peak, above_baseline (largest of the rounds); source; since
            version 2 gpu_peak and gpu_source.
        size_bytes: graph and weights on disk.
        speedup: p50 of the teacher in PyTorch over p50 of this row.
        session: the backend about itself: version, device, provider, threads, precision_executed.
        dft_nodes: DFT nodes in the graph, null where it cannot be counted.
        device: "cpu", "cuda", or OpenVINO's "gpu" and "npu".
        end_to_end: as `latency`, from sampled k-space to the image in its own unit; `latency` is
            then of the same queries, the network in them.
        cold: per process, as load_s: `load_s`, `first_s` (first query) and `process_s` (from the
            start of the process to the first image).
        throughput: batch size -> slices per second, or the reason why there is none.
        energy: joules_per_slice and source, of the whole CPU package or GPU while the row's queries
            were timed; null where nothing is readable.
        limit: how near the machine's own limits the row comes: `gmac_per_s`, `peak_gmac_per_s`,
            `peak_of` (runtime and precision of that peak), `fraction` of it; `layer_gb_per_s`
            (bandwidth that it would take if every layer's input and output went through memory)
            and `bandwidth_fraction`, which exceeds 1 where caches serve it.
        to_teacher: measure -> {value, low, high}: paired difference to the teacher in PyTorch with
            its 95 % bootstrap interval over subjects, then volumes.
        worst: slices with the largest loss in PSNR to the teacher, or without one with the lowest
            PSNR: volume, slice, psnr_db, teacher_psnr_db, loss_db.
        profile: what each layer of the runtime's own graph takes, timed apart from everything else
            (`bench --profile`): queries, total_ms, and `layers` in the order in which they run:
            layer, type, precision that it really ran in, kernel, ms (median) and share of total_ms;
            or the `reason` why there is none. Null where it was not asked for, and in runtimes that
            do not tell.
        resident: as `latency`, of queries whose data lies on a GPU already and whose image stays
            there; `slices_per_s` by batch size, or the reason why there are none; null on CPUs.
        clocks: of a GPU after the row's queries: sm_mhz, and largest_sm_mhz; null without one.
        measured_on: the device that a row was imported from; null for the report's own machine.
    """

    key: str
    network: str
    role: str
    runtime: str
    precision: str
    variant: str = DEFAULT
    status: Status = Status.MEASURED
    reason: str | None = None
    quality: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    volumes: tuple[Mapping[str, Any], ...] = ()
    difference: Mapping[str, float | str | None] | None = None
    latency: Mapping[str, Any] | None = None
    load_s: tuple[float, ...] = ()
    memory: Mapping[str, Any] | None = None
    size_bytes: int | None = None
    speedup: float | None = None
    session: Mapping[str, Any] | None = None
    dft_nodes: int | None = None
    device: str = field(default="cpu", metadata=_SINCE_2)
    end_to_end: Mapping[str, Any] | None = field(default=None, metadata=_SINCE_2)
    cold: Mapping[str, Any] | None = field(default=None, metadata=_SINCE_2)
    throughput: Mapping[str, float | str] = field(default_factory=dict, metadata=_SINCE_2)
    energy: Mapping[str, Any] | None = field(default=None, metadata=_SINCE_2)
    limit: Mapping[str, Any] | None = field(default=None, metadata=_SINCE_2)
    to_teacher: Mapping[str, Mapping[str, float | None]] = field(
        default_factory=dict, metadata=_SINCE_2
    )
    worst: tuple[Mapping[str, Any], ...] = field(default=(), metadata=_SINCE_2)
    profile: Mapping[str, Any] | None = field(default=None, metadata=_SINCE_2)
    resident: Mapping[str, Any] | None = field(default=None, metadata=_SINCE_2)
    clocks: Mapping[str, float] | None = field(default=None, metadata=_SINCE_2)
    measured_on: str | None = field(default=None, metadata=_SINCE_2)

    @property
    def timing(self) -> Mapping[str, Any]:
        """Latency from k-space to image, or of the network alone where that is all there is."""
        return self.end_to_end or self.latency or {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A whole benchmark.

    Attributes:
        schema_version: of this layout.
        provenance: revision, time, machine, library versions, seed (null: nothing is drawn).
        settings: how it was measured, such as threads, samples and rounds, see `BenchSettings`;
            since version 2 `mode` (quick, full, custom).
        statement: what kind of data this is; belongs beside every figure.
        volumes: what was measured on.
        split: name of the split that chose them, null where all of the folder is test data.
        mask: the sampling pattern with its nominal and effective acceleration.
        matrix: side of the image matrix in pixels.
        networks: what was measured.
        rows: the results.
        gap_closed: measure -> percent, (student - plain) / (teacher - plain) in PyTorch; null
            where the plain student is not worse than the teacher.
        panel: what the picture shows: volume, slice, residue factor; null without a picture.
        load_average: of the machine in the minute before the benchmark; null where unknown.
        governor: of the CPU's frequency, null where the kernel does not tell.
        peaks: the machine's own limits: runtime -> precision -> 1e9 multiply-accumulates a second;
            `memory.gb_per_s`, and of a GPU `memory CUDA`.
        limits: latency_ms, memory_bytes, loss_db: what the recommendation had to keep.
        recommended: key of the row that `kdmri-edge select` picks by these limits, null where none
            keeps them.
        absent: what could not be measured here, and why: one sentence each.
        continued: how often the benchmark was cut off and went on with the rows that it had.
    """

    schema_version: int = SCHEMA_VERSION
    provenance: Mapping[str, Any]
    settings: Mapping[str, Any]
    statement: str
    volumes: tuple[TestVolume, ...]
    split: str | None
    mask: Mapping[str, Any]
    matrix: int
    networks: tuple[Network, ...]
    rows: tuple[Row, ...]
    gap_closed: Mapping[str, float | None]
    panel: Mapping[str, Any] | None = None
    load_average: float | None = None
    governor: str | None = field(default=None, metadata=_SINCE_2)
    peaks: Mapping[str, Any] = field(default_factory=dict, metadata=_SINCE_2)
    limits: Mapping[str, float | None] = field(default_factory=dict, metadata=_SINCE_2)
    recommended: str | None = field(default=None, metadata=_SINCE_2)
    absent: tuple[str, ...] = field(default=(), metadata=_SINCE_2)
    continued: int = field(default=0, metadata=_SINCE_2)

    def row(self, key: str) -> Row | None:
        """Return the row of that key, None where there is none."""
        return next((row for row in self.rows if row.key == key), None)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; infinities and NaN become null."""
        value: dict[str, Any] = finite(asdict(self))
        return {"schema_version": value.pop("schema_version"), **value}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Report:
        """Rebuild a report.

        Raises:
            BenchError: a newer schema, or keys are missing.
        """
        version = value.get("schema_version")
        refuse_newer("The report", version, SCHEMA_VERSION, BenchError, named="schema version")
        if not isinstance(version, int):
            raise BenchError(
                "This is no report of a benchmark: it has no schema version.",
                "Give the report.json that `kdmri-edge bench` wrote.",
            )
        try:
            volumes = [
                {**volume, "seen_in_training": tuple(volume["seen_in_training"])}
                for volume in value["volumes"]
            ]
            return _from(
                cls,
                {
                    **value,
                    "volumes": tuple(_from(TestVolume, volume) for volume in volumes),
                    "networks": tuple(_from(Network, network) for network in value["networks"]),
                    "rows": tuple(map(row_from, value["rows"])),
                    "absent": tuple(value.get("absent", ())),
                },
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BenchError(f"The report is damaged ({error!r}).", "Measure again.") from error


def row_from(value: Mapping[str, Any]) -> Row:
    """Rebuild a row of JSON values.

    Raises:
        LookupError, TypeError, ValueError: keys are missing, or values of another kind.
    """
    return _from(
        Row,
        {
            **value,
            "status": Status(value["status"]),
            "volumes": tuple(value["volumes"]),
            "load_s": tuple(value["load_s"]),
            "worst": tuple(value.get("worst", ())),
        },
    )


def _from(cls: type[T], value: Mapping[str, Any]) -> T:
    """Build a dataclass, passing over keys that a later minor version may have added."""
    known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
    return cls(**{key: item for key, item in value.items() if key in known})


def finite(value: Any) -> Any:
    """Replace what JSON cannot hold (NaN, infinity) by None, enums by text, tuples by lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
