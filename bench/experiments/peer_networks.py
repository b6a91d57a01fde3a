"""Other people's networks, exported: `python -m experiments.peer_networks`.

Networks of fastMRI and MONAI, untrained since weights change neither operators nor times, are
traced with their mask bound, written without complex numbers and FFTs (`passes.complex_numbers`),
and run in ONNX Runtime. Beside them stands what PyTorch's two exporters make of the same networks
without this project. The libraries are no dependencies: one that is not installed gives a row with
that reason.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from experiments.script import Script, record
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.simulation import coil_maps
from kdmri_edge.errors import KdmriError
from kdmri_edge.physics.coils import expand
from kdmri_edge.physics.masks import equispaced_lines
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.extras import require
from kdmri_edge.utils.provenance import provenance

__all__ = ["PEERS", "main", "markdown", "measure"]

SCHEMA: Final = 1
_SEED: Final = 0
_ACCELERATION: Final = 4.0
_OURS: Final = "without complex numbers"
_DYNAMO: Final = "torch.onnx, dynamo"
_TORCHSCRIPT: Final = "torch.onnx, TorchScript"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A network of another project.

    Args:
        name: As the table says it.
        package: That has it, as it is installed.
        make: Returns the network.
        reads: "kspace" for coils [B, C, H, W, 2] with a mask [1, 1, 1, W, 1], "complex" for
            an image [B, 1, H, W, 2], "magnitude" for [B, 1, H, W].
    """

    name: str
    package: str
    make: Callable[[], Any]
    reads: str


def _fastmri_varnet() -> Any:
    from fastmri.models import VarNet

    return VarNet(num_cascades=4, chans=6, pools=3, sens_chans=4, sens_pools=3)


def _fastmri_unet() -> Any:
    from fastmri.models import Unet

    return Unet(in_chans=1, out_chans=1, chans=32, num_pool_layers=4)


_FEATURES: Final = (8, 8, 16, 32, 64, 8)


def _monai_varnet() -> Any:
    from monai.apps.reconstruction.networks.nets.coil_sensitivity_model import CoilSensitivityModel
    from monai.apps.reconstruction.networks.nets.varnet import VariationalNetworkModel

    coils = CoilSensitivityModel(spatial_dims=2, features=_FEATURES)
    return VariationalNetworkModel(coils, _monai_unet(), num_cascades=4)


def _monai_unet() -> Any:
    from monai.apps.reconstruction.networks.nets.complex_unet import ComplexUnet

    return ComplexUnet(spatial_dims=2, features=_FEATURES)


PEERS: Final = (
    Peer(name="fastMRI VarNet", package="fastmri", make=_fastmri_varnet, reads="kspace"),
    Peer(name="fastMRI Unet", package="fastmri", make=_fastmri_unet, reads="magnitude"),
    Peer(name="MONAI VarNet", package="monai", make=_monai_varnet, reads="kspace"),
    Peer(name="MONAI ComplexUnet", package="monai", make=_monai_unet, reads="complex"),
)


# --- inputs -------------------------------------------------------------------------------------


def _centred(image: NDArray[Any]) -> NDArray[np.complex64]:
    """Return the k-space of images [..., H, W], zero frequency in the middle."""
    axes = (-2, -1)
    kspace = np.fft.fft2(np.fft.ifftshift(image, axes), axes=axes, norm="ortho")
    return np.fft.fftshift(kspace, axes).astype(np.complex64)


def _inputs(peer: Peer, matrix: int, coils: int) -> tuple[Any, dict[str, Any]]:
    """Return the phantom as the network reads it, and what is bound."""
    import torch

    image = phantom_volume(_SEED, slices=3, matrix=matrix, complex_phase=True).image[1]
    if peer.reads == "magnitude":
        return torch.from_numpy(np.abs(image)[None, None] / np.abs(image).max()), {}
    if peer.reads == "complex":
        scaled = (image / np.abs(image).max()).astype(np.complex64)
        return torch.view_as_real(torch.from_numpy(scaled[None, None])), {}
    lines = np.fft.fftshift(equispaced_lines(matrix, _ACCELERATION, seed=_SEED).samples)
    # A scanner's unit is small: 1e-6 is fastMRI's.
    maps = coil_maps(coils, matrix, matrix, seed=_SEED)
    kspace = _centred(expand(image, maps)) * lines * np.float32(1e-6)
    mask = torch.from_numpy(lines).view(1, 1, 1, matrix, 1)
    return torch.view_as_real(torch.from_numpy(kspace[None])), {"mask": mask}


# --- one network --------------------------------------------------------------------------------


def _sentence(error: Exception) -> str:
    """Return the first line of what an exporter said."""
    if isinstance(error, KdmriError):
        return str(error)
    said = str(error).strip().splitlines()
    return said[0][:300] if said else type(error).__name__


def _difference(found: Any, expected: NDArray[Any]) -> float:
    """Return the largest difference as a share of the image's range."""
    return float(np.abs(np.asarray(found) - expected).max() / np.ptp(expected))


class _Runtime:
    """A graph in ONNX Runtime."""

    def __init__(self, model: Any, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._name = self._session.get_inputs()[0].name

    def __call__(self, image: NDArray[Any]) -> Any:
        return self._session.run(None, {self._name: image})[0]


def _written(program: Any) -> Any:
    """Write a program as an `onnx.ModelProto`."""
    import torch

    from kdmri_export.targets.onnx import OPSET, quiet

    with quiet(), torch.no_grad():
        exported = torch.onnx.export(program, opset_version=OPSET, dynamo=True, verbose=False)
    assert exported is not None
    return exported.model_proto


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Keep off standard output what is written from C++: the whole graph, where it stops."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _by_older_exporter(network: Any, shown: Any, constants: Mapping[str, Any]) -> Any:
    """Write a network by the exporter that came before torch.export."""
    import onnx
    import torch

    from kdmri_export.targets.onnx import OPSET

    class Bound(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any) -> Any:
            return self.network(x, **constants)

    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.onnx"
        with warnings.catch_warnings(), _muted(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Bound().eval(), (shown,), graph, opset_version=OPSET, dynamo=False, verbose=False
            )
        return onnx.load(graph)


def _outcome(
    make: Callable[[], Any], shown: Any, expected: NDArray[Any], threads: int
) -> tuple[dict[str, Any], Any]:
    """Write and load a graph; return its figures, and what runs it, or the reason for neither."""
    began = time.perf_counter()
    try:
        model = make()
        seconds = time.perf_counter() - began
        run = _Runtime(model, threads)
        found = run(shown.numpy())
    except Exception as error:  # exporters and runtimes raise anything
        return {"reason": _sentence(error)}, None
    types = [node.op_type for node in model.graph.node]
    figures = {
        "reason": None,
        "seconds": seconds,
        "bytes": model.ByteSize(),
        "nodes": len(types),
        "dft_nodes": types.count("DFT"),
        "difference": _difference(found, expected),
    }
    return figures, run


def _timed(queries: Mapping[str, Callable[[], Any]], samples: int) -> dict[str, dict[str, float]]:
    """Run queries in turns; return the median, smallest and largest milliseconds of each."""
    found: dict[str, list[float]] = {name: [] for name in queries}
    for number in range(samples + 1):
        for name, query in queries.items():
            began = time.perf_counter()
            query()
            if number:  # the first one fills caches
                found[name].append(1e3 * (time.perf_counter() - began))
    return {
        name: {"median": statistics.median(ms), "smallest": min(ms), "largest": max(ms)}
        for name, ms in found.items()
    }


def _row(
    peer: Peer, *, matrix: int, coils: int, samples: int, threads: int, others: bool
) -> dict[str, Any]:
    import torch

    from kdmri_export.passes.complex_numbers import without_complex
    from kdmri_export.passes.tracing import trace

    row: dict[str, Any] = {"network": peer.name, "package": peer.package, "reason": None}
    try:
        row["version"] = importlib.metadata.version(peer.package)
        torch.manual_seed(_SEED)
        network = peer.make().eval()
    except ImportError as error:  # of the library, or of one that it needs
        return {**row, "reason": _sentence(error)}
    row["parameters"] = sum(one.numel() for one in network.parameters())
    shown, constants = _inputs(peer, matrix, coils)
    row["input"] = list(shown.shape)
    with torch.no_grad():
        expected = network(shown, **constants).numpy()

    def lowered() -> Any:
        made = without_complex(trace(network, (shown,), constants=constants))
        row["transforms"] = made.transforms
        return _written(made.program)

    def eager() -> None:
        with torch.no_grad():
            network(shown, **constants)

    ways: dict[str, Callable[[], Any]] = {_OURS: lowered}
    if others:
        ways[_DYNAMO] = lambda: _written(trace(network, (shown,), constants=constants))
        ways[_TORCHSCRIPT] = lambda: _by_older_exporter(network, shown, constants)
    queries: dict[str, Callable[[], Any]] = {"PyTorch": eager}
    row["ways"] = {}
    for name, way in ways.items():
        row["ways"][name], run = _outcome(way, shown, expected, threads)
        if run is not None:
            queries[name] = partial(run, shown.numpy())
    row["milliseconds"] = _timed(queries, samples)
    return row


def measure(
    peers: Sequence[Peer] = PEERS,
    *,
    matrix: int = 320,
    coils: int = 8,
    samples: int = 10,
    threads: int = 1,
    others: bool = True,
) -> dict[str, Any]:
    """Export and time networks of other projects.

    Args:
        peers: The networks.
        matrix: Side of the image in pixels.
        coils: For networks that read k-space.
        samples: Timed queries of each.
        threads: CPU threads of each runtime.
        others: Try PyTorch's own exporters as well.

    Returns:
        JSON values: per network what each way of writing it gave (or the reason why it gave
        nothing), the largest difference from PyTorch as a share of the image's range, and
        milliseconds of queries in turns.

    Raises:
        MissingExtraError: onnx, onnxscript or ONNX Runtime is not installed.
    """
    for package in ("torch", "onnx", "onnxscript", "onnxruntime"):
        require(package, extra="train" if package == "torch" else "onnx")
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows = []
    try:
        with progress("Exporting networks", len(peers)) as advance:
            for peer in peers:
                rows.append(
                    _row(
                        peer,
                        matrix=matrix,
                        coils=coils,
                        samples=samples,
                        threads=threads,
                        others=others,
                    )
                )
                advance(1)
    finally:
        torch.set_num_threads(before)
    return {
        "schema": SCHEMA,
        "matrix": matrix,
        "coils": coils,
        "threads": threads,
        "samples": samples,
        "acceleration": _ACCELERATION,
        "rows": rows,
        "provenance": provenance(_SEED),
    }


def _way(row: Mapping[str, Any], name: str) -> str:
    found = row["ways"].get(name)
    if found is None:
        return "not tried"
    if found["reason"]:
        return "fails"
    ms = row["milliseconds"][name]["median"]
    dft = f", {found['dft_nodes']} DFT nodes" if found["dft_nodes"] else ""
    return f"{ms:.0f} ms, {found['difference']:.0e}{dft}"


def markdown(report: Mapping[str, Any]) -> str:
    """Return the table as GitHub Markdown."""
    lines = [
        "| network | parameters | transforms | PyTorch | without complex numbers"
        " | torch.onnx (dynamo) | torch.onnx (TorchScript) |",
        "|---|---:|---:|---:|---|---|---|",
    ]
    notes = []
    for row in report["rows"]:
        if row["reason"]:
            lines.append(f"| {row['network']} | | | | {row['reason']} | | |")
            continue
        cells = [
            f"{row['network']} ({row['package']} {row['version']})",
            f"{row['parameters']:,}",
            str(row.get("transforms", "")),
            f"{row['milliseconds']['PyTorch']['median']:.0f} ms",
            *(_way(row, name) for name in (_OURS, _DYNAMO, _TORCHSCRIPT)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
        notes += [
            f"- {row['network']}, {name}: {found['reason']}"
            for name, found in row["ways"].items()
            if found["reason"]
        ]
    lines += [
        "",
        f"One slice of {report['matrix']} x {report['matrix']}, {report['coils']} coils where a"
        f" network reads k-space, {report['threads']} CPU threads; medians of"
        f" {report['samples']} queries in turns, in ONNX Runtime but for PyTorch's own. Beside the"
        " time stands the largest difference from PyTorch as a share of the image's range.",
    ]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


@click.command(cls=Script)
@click.option(
    "--network", "names", multiple=True, type=click.Choice([peer.name for peer in PEERS]),
    help="Only this one; may be repeated.",
)  # fmt: skip
@click.option("--matrix", type=click.IntRange(32), default=320, show_default=True, help="Pixels.")
@click.option("--coils", type=click.IntRange(1), default=8, show_default=True, help="Of a scan.")
@click.option("--samples", type=click.IntRange(1), default=10, show_default=True, help="Queries.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of a CPU.")
@click.option("--others/--no-others", default=True, help="Try PyTorch's exporters as well.")
@click.option("--out", type=click.Path(path_type=Path), help="Write report.json into this folder.")
def main(
    names: tuple[str, ...],
    matrix: int,
    coils: int,
    samples: int,
    threads: int,
    others: bool,
    out: Path | None,
) -> None:
    """Export networks of other projects and run them in ONNX Runtime."""
    peers = [peer for peer in PEERS if not names or peer.name in names]
    report = measure(
        peers, matrix=matrix, coils=coils, samples=samples, threads=threads, others=others
    )
    record(report, out)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
