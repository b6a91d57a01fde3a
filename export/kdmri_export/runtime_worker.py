"""One ONNX graph in one runtime: a process of its own, `python -m kdmri_export.runtime_worker`.

A graph of any origin may crash a runtime, hang it, or want more memory than there is. What was
reached is therefore written down step by step, into a file that outlives this process.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["RUNTIMES", "main"]

Run = Callable[[Mapping[str, NDArray[Any]]], list[Any]]
"""From inputs by their names to outputs in the order of the graph."""
Note = Callable[..., None]
"""Writes down news of a job."""
_SHARE_OF_MEMORY: Final = 0.75


class _RefusedError(Exception):
    """The runtime does not take the graph; the text is its own."""


def _onnxruntime(graph: Path, note: Note) -> Run:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # see `utils.extras`, not imported here
    import onnxruntime

    note(version=onnxruntime.__version__)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]

    def run(given: Mapping[str, NDArray[Any]]) -> list[Any]:
        return list(session.run(names, dict(given)))

    return run


def _openvino(graph: Path, note: Note) -> Run:
    import openvino

    note(version=openvino.__version__.partition("-")[0])  # the rest names its build
    core = openvino.Core()
    model = core.read_model(graph)
    # its default on CPUs that have bf16 would round
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(given: Mapping[str, NDArray[Any]]) -> list[Any]:
        found = compiled(dict(given))
        return [found[port] for port in compiled.outputs]

    return run


def _reference(graph: Path, note: Note) -> Run:
    import onnx
    from onnx.reference import ReferenceEvaluator

    note(version=onnx.__version__)
    evaluator: Any = ReferenceEvaluator(str(graph))

    def run(given: Mapping[str, NDArray[Any]]) -> list[Any]:
        return list(evaluator.run(None, dict(given)))

    return run


def _parsed(module: str) -> Callable[[Path, Note], None]:
    """Return what has the parser of one of TensorRT's kinds read a graph."""

    def load(graph: Path, note: Note) -> None:
        trt = importlib.import_module(module)
        note(version=str(trt.__version__))
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        if builder is None:
            raise ImportError("its builder does not start: is there a GPU with its driver?")
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        # The network has to live as long as the parser, which writes into it.
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(graph)):
            said = [parser.get_error(number) for number in range(parser.num_errors)]
            raise _RefusedError("; ".join(dict.fromkeys(map(_told, said))) or "its parser refuses")
        del parser, network

    return load


def _told(error: Any) -> str:
    """Return what a parser says, with the node that it is about."""
    operator, name = error.node_operator(), error.node_name()
    at = f"node {name!r} ({operator}): " if operator else ""
    kind = str(error.code()).rpartition(".")[2].replace("_", " ").lower()
    return f"{at}{kind} ({error.desc().strip().rstrip('.')})"


RUNTIMES: Final[dict[str, Callable[[Path, Note], Run | None]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "reference": _reference,
    "tensorrt": _parsed("tensorrt"),
    "tensorrt-rtx": _parsed("tensorrt_rtx"),
}
"""By the names of the table of backends, and ONNX's own reference implementation: load a graph,
and return what runs it; None where only a parser is asked."""


def _limit_memory() -> None:
    """Let what wants more memory than this machine has fail here, instead of others' processes."""
    try:
        import resource
    except ImportError:  # not Unix
        return
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = int(whole * _SHARE_OF_MEMORY)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY or hard > limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _times(runs: list[Run], given: Mapping[str, NDArray[Any]], seconds: float) -> list[float]:
    """Time several graphs in turn, so that what disturbs the machine disturbs all of them."""
    spent: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + seconds
    while len(spent[-1]) < 3 or (time.perf_counter() < end and len(spent[-1]) < 1000):
        for run, times in zip(runs, spent, strict=True):
            began = time.perf_counter()
            run(given)
            times.append(time.perf_counter() - began)
    return [1e3 * float(np.median(times)) for times in spent]


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biufc"


def main(job_file: Path, result_file: Path) -> None:
    """Load graphs, run them, and write down after each step what came of it.

    Args:
        job_file: JSON: `runtime`; `graphs`, files that are given the same inputs; `inputs`, an .npz
            of them, or null to load only; `names` of these, in order; `outputs`, an .npz for each
            graph, or null, written up to `largest` bytes of results; `seconds` of timing, 0 for
            none.
        result_file: JSON: `loaded` and `ran`, how many graphs; `version`; `reason` of a failure, or
            null; `absent`, that the runtime does not work here at all; `ms`, medians.
    """
    job = json.loads(job_file.read_text(encoding="utf-8"))
    result: dict[str, Any] = {
        "loaded": 0, "ran": 0, "version": None, "reason": None, "absent": False, "ms": None,
    }  # fmt: skip

    def note(**news: Any) -> None:
        result.update(news)
        temporary = result_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(result), encoding="utf-8")
        temporary.replace(result_file)

    note()
    if not job["runtime"].startswith("tensorrt"):  # CUDA reserves more than it uses
        _limit_memory()
    runs: list[Run] = []
    try:
        for graph in job["graphs"]:
            run = RUNTIMES[job["runtime"]](Path(graph), note)
            note(loaded=result["loaded"] + 1)
            if run is not None:
                runs.append(run)
        if job["inputs"] is None:
            return
        with np.load(job["inputs"]) as held:
            given = {name: held[f"arr_{at}"] for at, name in enumerate(job["names"])}
        for run, place in zip(runs, job["outputs"] or [None] * len(runs), strict=True):
            found = run(given)
            # texts, sequences and types that NumPy does not know are not compared
            numbers = [one for one in found if _is_numeric(one)]
            if place is not None and sum(one.nbytes for one in numbers) <= job["largest"]:
                np.savez(place, *numbers)
            note(ran=result["ran"] + 1)
        if job["seconds"]:
            note(ms=_times(runs, given, job["seconds"]))
    except ImportError as error:
        note(absent=True, reason=str(error))
    except MemoryError:
        note(reason="bad_alloc")
    except Exception as error:  # a runtime may raise anything
        note(reason=str(error) or type(error).__name__)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
