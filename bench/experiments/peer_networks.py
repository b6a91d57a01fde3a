"""Other people's networks, exported: `python -m experiments.peer_networks`.

Networks of fastMRI, MONAI and deepinv, untrained since weights change neither operators nor times,
go through `kdmri-edge export` as any network of a user's does: brought as a module, by the
conventions of `models.adapter` or an adapter, with the parity gate. Beside them stands what others
make of the same networks as they are: PyTorch's two exporters, OpenVINO's converter, and
TensorRT-RTX's parser. The libraries are no dependencies: one that is not installed gives a row with
that reason.

A network may be measured by itself (`--network`): its row joins those of the report in `--out`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import pickle
import statistics
import subprocess
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

from experiments.peer_converter import alone
from experiments.peer_tables import (
    CONVERTER,
    DYNAMO,
    EAGER,
    OURS,
    PARSER,
    RUNTIME,
    TORCHSCRIPT,
    markdown,
)
from experiments.script import Script, record
from kdmri_edge.bring.network import bring_checkpoint
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.simulation import coil_maps
from kdmri_edge.errors import BenchError, KdmriError
from kdmri_edge.physics.coils import expand
from kdmri_edge.physics.masks import Mask, equispaced_lines
from kdmri_edge.runtime.bundle import GOLDEN_INPUT, Bundle
from kdmri_edge.runtime.session import open_session
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.extras import available, require
from kdmri_edge.utils.files import read_json
from kdmri_edge.utils.provenance import provenance

__all__ = ["PEERS", "Peer", "joined", "main", "measure"]

SCHEMA: Final = 2
_SEED: Final = 0
_ACCELERATION: Final = 4.0
_FEWEST: Final = 3
"""Queries that are timed however long they take."""

_ENGINE: Final = "sm86"
"""GPU that TensorRT-RTX builds for, ahead of time."""

_CONVOLUTIONS: Final = ("Conv", "ConvTranspose", "FusedConv")


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A network of another project.

    Args:
        name: As the table says it.
        package: That has it, as it is installed.
        make: Returns the network.
        brought: Returns what is given to `export` for it: itself, or an adapter around it.
        reads: "kspace" for coils [B, C, H, W, 2] with a mask [1, 1, 1, W, 1], "complex" for
            an image [B, 1, H, W, 2], "physics" for k-space [B, 2, H, W] with deepinv's physics,
            "magnitude" for [B, 1, H, W].
        code: What `make` is called as code, for a network that cannot be pickled.
    """

    name: str
    package: str
    make: Callable[[], Any]
    reads: str
    brought: Callable[[Any], Any] = lambda network: network
    code: str | None = None


def _fastmri_varnet() -> Any:
    from fastmri.models import VarNet

    return VarNet(num_cascades=4, chans=6, pools=3, sens_chans=4, sens_pools=3)


def _fastmri_varnet_large() -> Any:
    from fastmri.models import VarNet

    return VarNet(num_cascades=12, chans=18, pools=4, sens_chans=8, sens_pools=4)


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


def _deepinv_varnet() -> Any:
    from deepinv.models import VarNet

    return VarNet(num_cascades=4)


def _deepinv_modl() -> Any:
    from deepinv.models import MoDL

    return MoDL(num_iter=4)


def _of_complex_images(network: Any) -> Any:
    """Give a network of complex images [B, 1, H, W, 2] its layout."""
    from experiments.peer_adapters import ComplexImages

    return ComplexImages(network)


PEERS: Final = (
    Peer(name="fastMRI VarNet", package="fastmri", make=_fastmri_varnet, reads="kspace"),
    Peer(
        name="fastMRI VarNet, large",
        package="fastmri",
        make=_fastmri_varnet_large,
        reads="kspace",
    ),
    Peer(name="fastMRI Unet", package="fastmri", make=_fastmri_unet, reads="magnitude"),
    Peer(name="MONAI VarNet", package="monai", make=_monai_varnet, reads="kspace"),
    Peer(
        name="MONAI ComplexUnet",
        package="monai",
        make=_monai_unet,
        reads="complex",
        brought=_of_complex_images,
    ),
    Peer(name="deepinv VarNet", package="deepinv", make=_deepinv_varnet, reads="physics"),
    Peer(
        name="deepinv MoDL",
        package="deepinv",
        make=_deepinv_modl,
        reads="physics",
        code="experiments.peer_networks:_deepinv_modl",
    ),
)


# --- inputs -------------------------------------------------------------------------------------


def _centred(image: NDArray[Any]) -> NDArray[np.complex64]:
    """Return the k-space of images [..., H, W], zero frequency in the middle."""
    axes = (-2, -1)
    kspace = np.fft.fft2(np.fft.ifftshift(image, axes), axes=axes, norm="ortho")
    return np.fft.fftshift(kspace, axes).astype(np.complex64)


def _mask(matrix: int) -> Mask:
    return equispaced_lines(matrix, _ACCELERATION, seed=_SEED)


def _inputs(peer: Peer, matrix: int, coils: int) -> tuple[Any, dict[str, Any]]:
    """Return the phantom as the network reads it, and what is bound."""
    import torch

    image = phantom_volume(_SEED, slices=3, matrix=matrix, complex_phase=True).image[1]
    if peer.reads == "magnitude":
        return torch.from_numpy(np.abs(image)[None, None] / np.abs(image).max()), {}
    if peer.reads == "physics":
        lines = np.fft.fftshift(_mask(matrix).samples)
        samples = _centred(image / np.abs(image).max()) * lines
        return torch.from_numpy(np.stack((samples.real, samples.imag))[None]), {}
    if peer.reads == "complex":
        scaled = (image / np.abs(image).max()).astype(np.complex64)
        return torch.view_as_real(torch.from_numpy(scaled[None, None])), {}
    lines = np.fft.fftshift(_mask(matrix).samples)
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


# --- as it is -----------------------------------------------------------------------------------


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

    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.onnx"
        with warnings.catch_warnings(), _muted(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                alone(network, constants),
                (shown,),
                graph,
                opset_version=OPSET,
                dynamo=False,
                verbose=False,
            )
        return onnx.load(graph)


class _Converted:
    """A network that OpenVINO converts from PyTorch itself, in a process that may crash."""

    def __init__(
        self, network: Any, shown: Any, constants: Mapping[str, Any], threads: int
    ) -> None:
        openvino = require("openvino", extra="openvino")
        with tempfile.TemporaryDirectory() as folder:
            given, graph = Path(folder) / "network.pkl", Path(folder) / "graph.xml"
            try:
                given.write_bytes(pickle.dumps((network, shown, dict(constants))))
            except Exception as error:  # of whatever the network holds
                raise ValueError(
                    "not tried: the network cannot be pickled for a process of its own"
                ) from error
            done = subprocess.run(
                [sys.executable, "-m", "experiments.peer_converter", str(given), str(graph)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                said = done.stderr.strip().splitlines() if done.returncode > 0 else []
                raise ValueError(said[-1] if said else f"ended by signal {-done.returncode}")
            settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
            self._compiled = openvino.Core().compile_model(str(graph), "CPU", settings)

    def __call__(self, image: NDArray[Any]) -> Any:
        return self._compiled(image)[0]


def _parsed(model: Any, limit: float) -> str | None:
    """Have TensorRT-RTX read a graph; return why it does not take it, None where it does."""
    from kdmri_export.runtime_check import ask

    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.onnx"
        graph.write_bytes(model.SerializeToString())
        found = ask("tensorrt-rtx", [graph], None, limit_s=limit)
    reason = found["crashed"] or found["reason"]
    if reason is None:
        return None
    first, *more = str(reason).split("; ")
    return first + (f" (and {len(more)} more)" if more else "")


def _outcome(
    make: Callable[[], Callable[[Any], Any]], shown: Any, expected: NDArray[Any]
) -> tuple[dict[str, Any], Any]:
    """Make and run something; return its figures, and what runs, or the reason for neither."""
    began = time.perf_counter()
    try:
        run = make()
        seconds = time.perf_counter() - began
        found = run(shown.numpy())
    except Exception as error:  # exporters and runtimes raise anything
        return {"reason": _sentence(error)}, None
    difference = _difference(found, expected)
    if not np.isfinite(difference):
        return {"reason": "it runs, and gives NaN or infinite values"}, None
    return {"reason": None, "seconds": seconds, "difference": difference}, run


def _as_it_is(
    network: Any,
    shown: Any,
    constants: Mapping[str, Any],
    expected: NDArray[Any],
    threads: int,
    parses: float,
) -> tuple[dict[str, Any], dict[str, Callable[[], Any]]]:
    """Try what others make of a network; return what came of each, and queries of what runs."""
    from kdmri_export.passes.tracing import trace

    graphs: dict[str, Any] = {}

    def in_runtime(name: str, make: Callable[[], Any]) -> Callable[[Any], Any]:
        graphs[name] = make()
        return _Runtime(graphs[name], threads)

    ways: dict[str, Callable[[], Callable[[Any], Any]]] = {
        DYNAMO: lambda: in_runtime(
            DYNAMO, lambda: _written(trace(network, (shown,), constants=constants))
        ),
        TORCHSCRIPT: lambda: in_runtime(
            TORCHSCRIPT, lambda: _by_older_exporter(network, shown, constants)
        ),
        CONVERTER: lambda: _Converted(network, shown, constants, threads),
    }
    found: dict[str, Any] = {}
    queries: dict[str, Callable[[], Any]] = {}
    for name, way in ways.items():
        found[name], run = _outcome(way, shown, expected)
        if name in graphs:
            types = [node.op_type for node in graphs[name].graph.node]
            found[name] |= {"nodes": len(types), "dft_nodes": types.count("DFT")}
        if run is not None:
            queries[name] = partial(run, shown.numpy())
    graph = next(iter(graphs.values()), None)
    found[PARSER] = {"reason": "there is no ONNX graph of it to be parsed"}
    if graph is not None:
        found[PARSER] = {"reason": _parsed(graph, parses)}
    return found, queries


# --- by this project ----------------------------------------------------------------------------


def _exported(
    checkpoint: Path, way: str, folder: Path, coils: int, threads: int
) -> tuple[dict[str, Any], Callable[[], Any] | None]:
    """Export a network; return its figures and, where it runs on a CPU, a query."""
    from kdmri_export.jobs import export

    target, precision = OURS[way]
    # weights that nobody trained lose more by integers than trained ones: what loses most stays
    options: dict[str, Any] = {"floats": ("auto",)} if precision == "int8" else {}
    if target == "trt":
        options = {
            "builder": "rtx" if available("tensorrt_rtx") else "none",
            "compute_capabilities": (_ENGINE,) if available("tensorrt_rtx") else (),
        }
    began = time.perf_counter()
    try:
        bundle = export(
            checkpoint, target=target, precision=precision, coils=coils, out=folder, **options
        )
    except Exception as error:  # a runtime may raise anything
        return {"reason": _sentence(error)}, None
    seconds = time.perf_counter() - began
    figures = _figures(bundle, seconds)
    if way == RUNTIME:
        image = np.load(bundle.path / GOLDEN_INPUT)
        figures["convolutions"] = _convolving(bundle.graph, image, threads)
    return figures, _query(bundle, threads)


def _figures(bundle: Bundle, seconds: float) -> dict[str, Any]:
    manifest = bundle.manifest
    figures = {
        "reason": None,
        "seconds": seconds,
        "bytes": bundle.size,
        "difference": manifest["parity"]["figures"]["max_error"],
        "transforms": manifest.get("transforms_as_products", 0),
        "transformed": manifest.get("transformed"),
    }
    if bundle.graph.suffix == ".onnx":
        from kdmri_export.graph_check import check_graph

        counts, _ = check_graph(bundle.graph, "onnx")
        figures |= {"nodes": sum(counts.values()), "dft_nodes": counts.get("DFT", 0)}
    if "engine" in manifest:
        figures["engines"] = [
            {key: one[key] for key in ("builder", "version", "compute_capability", "seconds")}
            for one in manifest["engine"]["engines"]
        ]
    return figures


def _query(bundle: Bundle, threads: int) -> Callable[[], Any] | None:
    if bundle.target.builds_engines:
        return None  # it runs on a GPU
    session = open_session(bundle.path, threads=threads)
    image = np.load(bundle.path / GOLDEN_INPUT)
    return lambda: session.run(image)


def _convolving(graph: Path, image: NDArray[Any], threads: int) -> float:
    """Return the share of an inference that ONNX Runtime spends in convolutions, by its profile."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )
        name = session.get_inputs()[0].name
        for _ in range(1 + _FEWEST):
            session.run(None, {name: image})
        events = json.loads(Path(session.end_profiling()).read_text())
    # the first query fills caches
    warm = min(one["ts"] + one["dur"] for one in events if one["name"] == "model_run")
    spent: dict[bool, float] = {True: 0.0, False: 0.0}
    for one in events:
        if one["name"].endswith("_kernel_time") and one["ts"] >= warm:
            spent[one["args"]["op_name"] in _CONVOLUTIONS] += one["dur"]
    return spent[True] / sum(spent.values())


def _timed(
    queries: Mapping[str, Callable[[], Any]], samples: int, limit: float | None
) -> dict[str, dict[str, float]]:
    """Run queries in turns; return the median, smallest and largest milliseconds of each."""
    found: dict[str, list[float]] = {name: [] for name in queries}
    started = time.perf_counter()
    for number in range(samples + 1):
        late = limit is not None and time.perf_counter() - started > limit
        if late and number > _FEWEST:
            break
        for name, query in queries.items():
            began = time.perf_counter()
            query()
            if number:  # the first one fills caches
                found[name].append(1e3 * (time.perf_counter() - began))
    return {
        name: {
            "median": statistics.median(ms),
            "smallest": min(ms),
            "largest": max(ms),
            "samples": len(ms),
        }
        for name, ms in found.items()
    }


def _with_physics(network: Any, matrix: int) -> Any:
    import torch

    from experiments.peer_adapters import WithPhysics

    lines = np.fft.fftshift(_mask(matrix).samples).astype(np.float32)
    return WithPhysics(network, torch.from_numpy(np.tile(lines, (matrix, 1)))).eval()


def _brought(peer: Peer, network: Any, scratch: Path, mask: Mask) -> Path:
    """Bring a network as a user would: as an object, else as code and weights."""
    if peer.code is None:
        return bring_checkpoint(peer.brought(network), mask=mask, matrix=mask.height)
    import torch

    weights = scratch / "weights.pt"
    torch.save(network.state_dict(), weights)
    return bring_checkpoint(peer.code, weights=weights, mask=mask)


def _row(
    peer: Peer,
    *,
    ways: Sequence[str],
    matrix: int,
    coils: int,
    samples: int,
    threads: int,
    others: bool,
    limit: float | None,
    parses: float,
) -> dict[str, Any]:
    import torch

    row: dict[str, Any] = {"network": peer.name, "package": peer.package, "reason": None}
    try:
        row["version"] = importlib.metadata.version(peer.package)
        torch.manual_seed(_SEED)
        network = peer.make().eval()
    except ImportError as error:  # of the library, or of one that it needs
        return {**row, "reason": _sentence(error)}
    row["torch"] = torch.__version__
    row["parameters"] = sum(one.numel() for one in network.parameters())
    shown, constants = _inputs(peer, matrix, coils)
    row["input"] = list(shown.shape)
    called = _with_physics(network, matrix) if peer.reads == "physics" else network
    with torch.no_grad():
        expected = called(shown, **constants).numpy()

    def eager() -> None:
        with torch.no_grad():
            called(shown, **constants)

    queries: dict[str, Callable[[], Any]] = {EAGER: eager}
    row["ways"] = {}
    if others:
        found, runs = _as_it_is(called, shown, constants, expected, threads, parses)
        row["ways"] |= found
        queries |= runs
    with tempfile.TemporaryDirectory(prefix="kdmri-peers-") as scratch:
        try:
            mask = _mask(matrix)
            checkpoint = _brought(peer, network, Path(scratch), mask)
        except KdmriError as error:
            return {**row, "reason": _sentence(error)}
        for number, way in enumerate(ways):
            folder = Path(scratch) / str(number)
            row["ways"][way], query = _exported(checkpoint, way, folder, coils, threads)
            if query is not None:
                queries[way] = query
        row["milliseconds"] = _timed(queries, samples, limit)
        queries.clear()  # before the folder goes
    return row


def measure(
    peers: Sequence[Peer] = PEERS,
    *,
    ways: Sequence[str] = tuple(OURS),
    matrix: int = 320,
    coils: int = 8,
    samples: int = 10,
    threads: int = 1,
    others: bool = True,
    limit: float | None = None,
    parses: float = 600.0,
) -> dict[str, Any]:
    """Export and time networks of other projects.

    Args:
        peers: The networks.
        ways: Keys of `OURS`: what they are exported to.
        matrix: Side of the image in pixels.
        coils: For networks that read k-space.
        samples: Timed queries of each.
        threads: CPU threads of each runtime.
        others: Try what others make of the networks as well.
        limit: Seconds after which the queries of a network end, but for the first few.
        parses: Seconds that TensorRT-RTX's parser is given for a network as it is.

    Returns:
        JSON values: per network what each way gave (or the reason why it gave nothing), the largest
        difference from PyTorch as a share of the image's range, and milliseconds of queries in
        turns.

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
                        ways=ways,
                        matrix=matrix,
                        coils=coils,
                        samples=samples,
                        threads=threads,
                        others=others,
                        limit=limit,
                        parses=parses,
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


def _when(report: Mapping[str, Any]) -> dict[str, str]:
    """Return what tells a row of this report from those that were measured another time."""
    origin = report["provenance"]
    revision = str(origin["git"]["revision"] or "unknown")[:12]
    return {"revision": revision, "time_utc": origin["time_utc"]}


def joined(report: dict[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report with the rows of an earlier one, as far as it has not measured them anew.

    A row that was measured again with fewer ways keeps what the earlier one has of the others.

    Raises:
        BenchError: The earlier one was made with other settings.
    """
    for key in ("schema", "matrix", "coils", "threads", "acceleration"):
        if earlier.get(key) != report[key]:
            raise BenchError(
                f"The report that is there has {key} {earlier.get(key)}, this one {report[key]}.",
                "Measure with the same settings, or into another --out.",
            )
    made: dict[str, dict[str, Any]] = {}
    for part in (earlier, report):
        for row in part["rows"]:
            stamped = {"measured": _when(part), **row}
            made[row["network"]] = _completed(stamped, made.get(row["network"]))
    known = [peer.name for peer in PEERS]
    order = sorted(made, key=lambda name: known.index(name) if name in known else len(known))
    return {**report, "rows": [made[name] for name in order]}


def _completed(row: dict[str, Any], earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a row with what an earlier one has of ways that it has not, and when that was."""
    if earlier is None or row["reason"] or earlier["reason"]:
        return row
    if row["version"] != earlier["version"]:
        return row
    kept = {
        name: {"measured": earlier["measured"], **way}
        for name, way in earlier["ways"].items()
        if name not in row["ways"]
    }
    times = {name: ms for name, ms in earlier["milliseconds"].items() if name in kept}
    return {
        **row,
        "ways": row["ways"] | kept,
        "milliseconds": row["milliseconds"] | times,
    }


@click.command(cls=Script)
@click.option(
    "--network", "names", multiple=True, type=click.Choice([peer.name for peer in PEERS]),
    help="Only this one; may be repeated.",
)  # fmt: skip
@click.option(
    "--way", "ways", multiple=True, type=click.Choice(list(OURS)),
    help="Only this export; may be repeated.",
)  # fmt: skip
@click.option("--matrix", type=click.IntRange(32), default=320, show_default=True, help="Pixels.")
@click.option("--coils", type=click.IntRange(1), default=8, show_default=True, help="Of a scan.")
@click.option("--samples", type=click.IntRange(1), default=10, show_default=True, help="Queries.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of a CPU.")
@click.option("--limit", type=click.FloatRange(0), help="Seconds of queries for each network.")
@click.option(
    "--parses", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True,
    help="Seconds for TensorRT-RTX's parser.",
)  # fmt: skip
@click.option("--others/--no-others", default=True, help="Try what others make of them as well.")
@click.option("--out", type=click.Path(path_type=Path), help="Write report.json into this folder.")
def main(
    names: tuple[str, ...],
    ways: tuple[str, ...],
    matrix: int,
    coils: int,
    samples: int,
    threads: int,
    limit: float | None,
    parses: float,
    others: bool,
    out: Path | None,
) -> None:
    """Export networks of other projects and run them; the report is joined part by part."""
    peers = [peer for peer in PEERS if not names or peer.name in names]
    report = measure(
        peers,
        ways=ways or tuple(OURS),
        matrix=matrix,
        coils=coils,
        samples=samples,
        threads=threads,
        others=others,
        limit=limit,
        parses=parses,
    )
    if out is not None and (out / "report.json").is_file():
        report = joined(report, read_json(out / "report.json", BenchError, finite=False))
    record(report, out)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
