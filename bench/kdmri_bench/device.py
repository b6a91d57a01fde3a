"""One command for a machine that is lent for minutes: `python -m kdmri_bench.device --out DIR`.

It needs this package, no network, and no more data than it is given. It writes down what the
machine is, then measures networks on its GPU (or OpenVINO's GPU or NPU), most telling rows first,
and stops in time: what was not reached says so, and every row is kept as soon as it has a figure.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click

from kdmri_edge.commands.command import Command
from kdmri_edge.errors import BackendError, BenchError, KdmriError
from kdmri_edge.utils.console import say, tell

__all__ = ["ROWS", "Place", "find_places", "main", "measure_device"]

NETWORKS: Final = ("dccnn-d5c5@brain-4x", "dccnn-edge@brain-4x", "dccnn-d3c5@brain-4x")
"""Teacher and students, from the package."""

ROWS: Final[dict[str, tuple[str, ...]]] = {
    "cuda": (
        "pytorch-f32",  # the reference of quality and speed
        "cuda-f16-graph", "cuda-f16-fused", "cuda-bf16-graph", "cuda-f32-graph",
        "trt-f16", "tensorrt-rtx-f16", "trt-int8", "tensorrt-rtx-int8",
        "cuda-f16-torch-tensorrt", "cuda-bf16-fused", "trt-bf16", "tensorrt-rtx-bf16",
        "cuda-f16", "cuda-bf16", "cuda-f32",
        "onnxruntime-cuda-f16", "onnxruntime-rtx-f16",
        "trt-f32", "tensorrt-rtx-f32", "onnxruntime-cuda-f32", "onnxruntime-rtx-f32",
        "cuda-*-torch-tensorrt",
        "cuda-*-compile",  # compiles for most of a minute each
    ),
    "gpu": ("pytorch-f32", "openvino-gpu-*"),
    "npu": ("pytorch-f32", "openvino-npu-*"),
    "cpu": (
        "pytorch-f32", "openvino-f32", "openvino-bf16", "openvino-int8", "onnx-f32", "onnx-int8",
    ),
}  # fmt: skip
"""Kind of device -> patterns of its rows, the most telling first."""

_REPORT_S: Final = 20.0
"""Kept for drawing and writing the report."""

_PHANTOMS: Final = 2
_SLICES: Final = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A device to measure on.

    Attributes:
        kind: Key of `ROWS`.
        name: What it is called.
        rows: Patterns of the rows, the most telling first.
    """

    kind: str
    name: str
    rows: tuple[str, ...]


def find_places() -> list[Place]:
    """Return the devices of this machine beside the CPU: an NVIDIA GPU, OpenVINO's GPU and NPU."""
    from kdmri_bench.planning import rows, variants
    from kdmri_edge.utils.gpus import find_gpu

    found = []
    if rows.has_cuda():
        gpu = find_gpu()
        name = gpu.name if gpu else "a CUDA device"
        found.append(Place(kind="cuda", name=name, rows=ROWS["cuda"]))
    for kind in ("gpu", "npu"):
        if kind in variants.found_by_openvino():
            found.append(Place(kind=kind, name=f"OpenVINO's {kind.upper()}", rows=ROWS[kind]))
    return found


def measure_device(
    out: Path,
    *,
    networks: Sequence[str | Path] = NETWORKS,
    data: Path | None = None,
    places: Sequence[Place] | None = None,
    seconds: float = 360.0,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Check a machine, measure networks on its devices, and write all of it down.

    Args:
        out: Folder for machine.json and the report.
        networks: As `kdmri-edge bench` takes them.
        data: Test volumes; None draws phantoms.
        places: Devices to measure on; None finds them.
        seconds: For all of it.
        changes: Other values of `BenchSettings`.

    Returns:
        The report's JSON file.

    Raises:
        BackendError: There is no device.
        BenchError: Too little time.
        KdmriError: See `kdmri_bench.benchmark.measure_networks`.
    """
    began = time.perf_counter()
    if seconds <= 2 * _REPORT_S:
        raise BenchError(f"{seconds:g} s are too few.", f"Give more than {2 * _REPORT_S:g} s.")
    from kdmri_bench.benchmark import measure_networks
    from kdmri_bench.commands.outcome import print_outcome
    from kdmri_bench.planning.settings import BenchSettings, Precision
    from kdmri_bench.planning.sources import gather
    from kdmri_bench.planning.testdata import load_data
    from kdmri_edge.data.phantom.volumes import phantom_volume
    from kdmri_edge.utils.extras import load_attribute
    from kdmri_edge.utils.files import write_json

    places = find_places() if places is None else places
    if not places:
        raise BackendError(
            "This machine has no GPU that PyTorch or OpenVINO finds, and no NPU.",
            "`kdmri-edge doctor` says more; --on cpu tries the command on the CPU.",
        )
    say(f"Measuring on {', '.join(place.name for place in places)}.")
    machine = load_attribute("kdmri_export.commands.doctor:examine")()
    write_json(out / "machine.json", {**machine, "places": [place.name for place in places]})
    sources = gather([Path(one) if not isinstance(one, str) else one for one in networks])
    first = sources[0]
    given: Any = data
    if given is None:
        given = [
            phantom_volume(seed, slices=_SLICES, matrix=first.matrix) for seed in range(_PHANTOMS)
        ]
    volumes = load_data(given, mask=first.mask, matrix=first.matrix, spec=first.spec)
    settings = BenchSettings(
        mode="device",
        precisions=(Precision.F32, Precision.F16, Precision.BF16, Precision.INT8),
        samples=200,
        warmup=10,
        rounds=2,
        seconds=1.0,
        end_to_end=50,
        batches=(1, 8, 32),
        throughput_s=0.3,
        peaks_s=0.3,
        every_way=True,
        limit_slices=_SLICES,
        timeout_s=60.0,
    )
    left = seconds - (time.perf_counter() - began) - _REPORT_S
    settings = replace(settings, **{"limit_s": max(left, 1.0), **(changes or {})})
    patterns = dict.fromkeys(pattern for place in places for pattern in place.rows)
    done = measure_networks(sources, volumes, settings, out=out, rows=tuple(patterns))
    print_outcome(done, as_json=False)
    return done.files["json"]


@click.command(cls=Command)
@click.argument("networks", nargs=-1)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Test volumes.  [default: drawn phantoms]"
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("kdmri-device"), show_default=True,
    help="Folder for machine.json and the report.",
)  # fmt: skip
@click.option("--minutes", type=float, default=6.0, show_default=True, help="For all of it.")
@click.option(
    "--on", "kinds", multiple=True, type=click.Choice(list(ROWS)),
    help="Measure on these kinds of devices alone; cpu tries the command without any.",
)  # fmt: skip
def main(
    networks: tuple[str, ...], data: Path | None, out: Path, minutes: float, kinds: tuple[str, ...]
) -> None:
    """Measure NETWORKS (teacher and student of the package) on this machine's GPU or NPU."""
    places: list[Place] | None = None
    try:
        if kinds:
            found = [place for place in find_places() if place.kind in kinds]
            own = [Place(kind="cpu", name="the CPU", rows=ROWS["cpu"])] if "cpu" in kinds else []
            places = [*found, *own]
        file = measure_device(
            out, networks=networks or NETWORKS, data=data, places=places, seconds=60 * minutes
        )
    except KdmriError as error:
        tell(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    tell(str(file))


if __name__ == "__main__":
    main()
