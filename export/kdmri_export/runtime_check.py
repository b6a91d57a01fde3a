"""What runtimes say to an ONNX graph of any origin: each is asked, in a process of its own.

A graph is loaded, and run on random inputs where its shapes are known; TensorRT's parsers only read
it, for engines are built on the device. Where both ran, OpenVINO's results are compared with ONNX
Runtime's, since a runtime that takes a graph may still compute something else.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import ExportError
from kdmri_edge.runtime.backends.registry import BACKENDS
from kdmri_edge.runtime.deviation import TOLERANCES
from kdmri_edge.utils.extras import available, require
from kdmri_export.graph_check import Finding

__all__ = ["ASKED", "Answer", "Verdict", "ask", "ask_targets", "check_shapes", "difference",
           "precision_of", "random_inputs", "sentence"]  # fmt: skip

ASKED: Final[dict[str, tuple[str, ...]]] = {
    "onnx": ("onnxruntime",),
    "openvino": ("openvino",),
    "trt": ("tensorrt", "tensorrt-rtx"),
}
"""The runtimes of each target, by their names in the table of backends; the first that works here
is asked."""

SECONDS: Final = 120
"""How long a runtime may think about a graph."""
_LARGEST_INPUTS: Final = 1 << 30
_LARGEST_RESULTS: Final = 1 << 30
_SEED: Final = 20200706
_NO_MEMORY: Final = re.compile(r"bad_alloc|[Ff]ailed to allocate|out of memory|Unable to allocate")
_OPENVINO: Final = ("Exception from ", "Check '")
_ONNXRUNTIME: Final = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
"""How the two begin what they say."""


class Verdict(StrEnum):
    """What is known of a graph and a target."""

    TAKEN = "taken"
    REFUSED = "refused"
    WRONG = "wrong"
    UNVERIFIED = "unverified"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a runtime says to a graph.

    Attributes:
        verdict: "wrong" where it takes the graph and computes something else.
        runtime: Its name.
        version: Its version, None where it was not asked.
        ran: Whether the graph was run, not only loaded.
        reason: Of any verdict but "taken"; with that, how far the runtime went with a graph that
            was not run.
        remedy: What helps.
        difference: Of its results from ONNX Runtime's, the largest, as a share of their range; None
            where these were not compared.
    """

    verdict: Verdict
    runtime: str
    version: str | None = None
    ran: bool = False
    reason: str | None = None
    remedy: str | None = None
    difference: float | None = None

    def __str__(self) -> str:
        """Say it in one sentence."""
        runtime = f"{self.runtime} {self.version}" if self.version else self.runtime
        reason = f": {self.reason}" if self.reason else ""
        match self.verdict:
            case Verdict.REFUSED:
                said = f"{runtime} refuses it{reason}"
            case Verdict.WRONG:
                said = f"{runtime} takes it, but computes something else{reason}"
            case Verdict.UNVERIFIED:
                said = f"not verified{reason}"
            case _ if self.ran:
                against = (
                    f"; within {self.difference:.1e} of the range of ONNX Runtime's results"
                    if self.difference is not None
                    else ""
                )
                said = f"{runtime} takes it (loaded and run{against})"
            case _:
                said = f"{runtime} takes it ({self.reason})"
        remedy = f" {self.remedy}" if self.remedy else ""
        return f"{said}.{remedy}"


# --- inputs -------------------------------------------------------------------------------------


def random_inputs(
    model: Any, shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, NDArray[Any]] | str:
    """Make inputs for a graph: normally distributed numbers, and ones where they are integers.

    Args:
        model: The `onnx.ModelProto`.
        shapes: Of inputs whose shapes the graph leaves free, by name. The first axis is one where
            that alone is free.

    Returns:
        Arrays by name, or why there are none, as a clause.

    Raises:
        ExportError: The graph has no input of a name in `shapes`, or one of another shape.
    """
    onnx = require("onnx", extra="onnx")
    held = {constant.name for constant in model.graph.initializer}
    ports = [port for port in model.graph.input if port.name not in held]
    check_shapes(ports, shapes or {})
    generator = np.random.default_rng(_SEED)
    made: dict[str, NDArray[Any]] = {}
    size = 0
    for port in ports:
        kind = port.type.tensor_type
        if not port.type.HasField("tensor_type") or not kind.HasField("shape"):
            return f"input {port.name!r} has no shape"
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        except (KeyError, ValueError):
            return f"input {port.name!r} has no type"
        if dtype.kind not in "fiub":
            return f"input {port.name!r} is of type {dtype.name}"
        own = [one.dim_value if one.HasField("dim_value") else None for one in kind.shape.dim]
        wanted = list((shapes or {}).get(port.name, own))
        if wanted and wanted[0] is None:
            wanted[0] = 1  # a free batch
        if None in wanted:
            return f"axis {wanted.index(None)} of input {port.name!r} is free"
        dims = [size for size in wanted if size is not None]
        if min(dims, default=1) < 0:
            return f"input {port.name!r} has a negative size"
        count = 1
        for one in dims:
            count *= one
        size += count * dtype.itemsize
        if size > _LARGEST_INPUTS:
            return f"its inputs would take more than {_LARGEST_INPUTS >> 30} GiB"
        numbers = generator.standard_normal(dims) if dtype.kind == "f" else np.ones(dims)
        made[port.name] = numbers.astype(dtype)
    return made


def check_shapes(ports: Sequence[Any], shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse shapes of inputs that a graph does not have.

    Args:
        ports: Its inputs.
        shapes: Wanted, by name.

    Raises:
        ExportError: No input is called so, or its own shape is another one.
    """
    named = {port.name: port for port in ports}
    for name, shape in shapes.items():
        if name not in named:
            raise ExportError(
                f"The graph has no input {name!r}.", f"It has {', '.join(map(repr, named))}."
            )
        kind = named[name].type.tensor_type
        if not kind.HasField("shape"):
            continue
        own = [one.dim_value if one.HasField("dim_value") else None for one in kind.shape.dim]
        fits = len(own) == len(shape) and all(
            known in (None, wanted) for known, wanted in zip(own, shape, strict=True)
        )
        if not fits:
            written = "x".join("?" if one is None else str(one) for one in own)
            raise ExportError(
                f"Input {name!r} is {written}, not {'x'.join(map(str, shape))}.",
                "Fix only what the graph leaves free (?).",
            )


# --- asking -------------------------------------------------------------------------------------


def ask(
    runtime: str,
    graphs: Sequence[Path],
    inputs: Mapping[str, NDArray[Any]] | None,
    *,
    outputs: Sequence[Path] | None = None,
    seconds: float = 0.0,
    limit_s: float = SECONDS,
) -> dict[str, Any]:
    """Load graphs in a runtime and run them, in a process of its own.

    Args:
        runtime: Name of a backend that `runtime_worker` drives.
        graphs: .onnx files that take the same inputs.
        inputs: By name; None loads only.
        outputs: Files that are written, an .npz for each graph; none for results that are too large
            to be compared.
        seconds: How long to time them, in turn.
        limit_s: The process is ended after so many seconds.

    Returns:
        What `runtime_worker.main` notes, with `crashed`: how the process ended, or None.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        given = folder / "inputs.npz"
        if inputs is not None:
            np.savez(given, *inputs.values())
        job = {
            "runtime": runtime,
            "graphs": [str(graph.resolve()) for graph in graphs],
            "inputs": None if inputs is None else str(given),
            "names": list(inputs or ()),
            "outputs": None if outputs is None else [str(file) for file in outputs],
            "seconds": seconds,
            "largest": _LARGEST_RESULTS,
        }
        job_file, result_file = folder / "job.json", folder / "result.json"
        job_file.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "kdmri_export.runtime_worker"]
        crashed = None
        try:
            done = subprocess.run(
                [*command, str(job_file), str(result_file)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=limit_s,
                check=False,
            )
            if done.returncode < 0:
                crashed = f"its process was ended by signal {-done.returncode}"
            elif done.returncode > 0:
                said = done.stderr.decode(errors="replace").strip().splitlines()
                crashed = said[-1][:300] if said else f"its process ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            crashed = f"it was still busy after {limit_s:g} s"
        found: dict[str, Any] = {
            "loaded": 0, "ran": 0, "version": None, "reason": None, "absent": False, "ms": None,
        }  # fmt: skip
        if result_file.is_file():
            found = json.loads(result_file.read_text(encoding="utf-8"))
        return {**found, "crashed": crashed}


def sentence(text: str) -> str:
    """Return the reason in what a runtime says, without what it puts around it."""
    lines = [line.strip().removeprefix("-- ") for line in text.splitlines() if line.strip()]
    if not lines:
        return "it says no more"
    # ONNX Runtime says it in the first line, OpenVINO in the last.
    told = lines[-1] if lines[0].startswith(_OPENVINO) else _ONNXRUNTIME.sub("", lines[0])
    return told[:300].rstrip(" .:")


def difference(ours: Path, theirs: Path) -> float | None:
    """Return the largest difference of two .npz of results, as a share of their range.

    Returns:
        NaN where shapes or numbers that are not finite differ; None where there is nothing to
        compare.
    """
    with np.load(ours) as a, np.load(theirs) as b:
        worst = None
        for name in a.files if len(a.files) == len(b.files) else ():
            one, other = a[name], b[name]
            if one.dtype.kind not in "fc":
                continue
            finite = np.isfinite(other)
            if one.shape != other.shape or not np.array_equal(finite, np.isfinite(one)):
                return float("nan")
            wide, wanted = one[finite].astype(np.float64), other[finite].astype(np.float64)
            if wanted.size:
                span = float(np.ptp(wanted)) or float(np.abs(wanted).max()) or 1.0
                worst = max(worst or 0.0, float(np.abs(wide - wanted).max()) / span)
        return worst


def ask_targets(
    graph: Path,
    model: Any,
    findings: Mapping[str, Sequence[Finding]],
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    limit_s: float = SECONDS,
) -> dict[str, Answer]:
    """Ask the runtimes of several targets whether they take a graph.

    Args:
        graph: The .onnx file.
        model: The same, loaded without external data.
        findings: Of `graph_check.check_graph`, by target.
        shapes: See `random_inputs`.
        limit_s: For each runtime.

    Raises:
        ExportError: See `random_inputs`.
    """
    inputs = random_inputs(model, shapes)
    whole_numbers = not isinstance(inputs, str) and any(
        array.dtype.kind != "f" for array in inputs.values()
    )
    answers = {}
    with tempfile.TemporaryDirectory() as place:
        results: dict[str, Path] = {}
        for target in sorted(findings, key=list(ASKED).index):  # ONNX Runtime first
            answer = _first(target, graph, inputs, whole_numbers, Path(place), results, limit_s)
            answer = _compared(answer, model, results, target)
            known = [one for one in findings[target] if one.fault]
            # What was compared has been seen to be right; a table may be out of date.
            silent = [one for one in known if one.silent and answer.difference is None]
            if answer.verdict is Verdict.TAKEN and silent:
                answer = replace(
                    answer, verdict=Verdict.WRONG, reason=str(silent[0]), remedy=silent[0].remedy
                )
            elif answer.verdict is Verdict.UNVERIFIED and known:
                answer = replace(
                    answer, reason=f"{answer.reason}; known to fail: {known[0]}",
                    remedy=f"{answer.remedy or ''} {known[0].remedy}".strip(),
                )  # fmt: skip
            elif answer.verdict is Verdict.REFUSED and known and not known[0].silent:
                answer = replace(answer, remedy=known[0].remedy)
            answers[target] = answer
    return {target: answers[target] for target in findings}


def _first(
    target: str,
    graph: Path,
    inputs: dict[str, NDArray[Any]] | str,
    whole_numbers: bool,
    folder: Path,
    results: dict[str, Path],
    limit_s: float,
) -> Answer:
    """Ask the first of a target's runtimes that works here."""
    missing = []
    for name in ASKED[target]:
        row = BACKENDS[name]
        if not available(row.library):
            install = f'Install it with: pip install "kdmri-edge[{row.extra}]"'
            missing.append((f"{row.title} is not installed", install))
            continue
        outputs = folder / f"{name}.npz"
        given = None if isinstance(inputs, str) or name.startswith("tensorrt") else inputs
        found = ask(name, [graph], given, outputs=[outputs], limit_s=limit_s)
        if found["absent"]:
            missing.append((f"{row.title} does not work here ({sentence(found['reason'])})", ""))
            continue
        if found["ran"] and outputs.is_file():
            results[name] = outputs
        why = f"loaded, not run: {inputs}" if isinstance(inputs, str) else None
        if name.startswith("tensorrt"):
            why = "read by its parser; no engine was built or run"
        return _judged(row.title, found, why, whole_numbers, limit_s)
    # the last is the one that goes without a GPU
    reason, remedy = missing[-1]
    return Answer(
        verdict=Verdict.UNVERIFIED,
        runtime=BACKENDS[ASKED[target][-1]].title,
        reason=reason,
        remedy=remedy or None,
    )


def _judged(
    runtime: str, found: dict[str, Any], why: str | None, whole_numbers: bool, limit_s: float
) -> Answer:
    """Say what came of asking."""
    about = {"runtime": runtime, "version": found["version"], "ran": bool(found["ran"])}
    reason = found["crashed"] or found["reason"]
    if reason is None:
        return Answer(verdict=Verdict.TAKEN, reason=why if not found["ran"] else None, **about)
    if _NO_MEMORY.search(reason):
        return Answer(
            verdict=Verdict.UNVERIFIED, reason=f"{runtime} wants more memory than there is", **about
        )
    if found["crashed"] and "busy" in reason:
        return Answer(
            verdict=Verdict.UNVERIFIED,
            reason=f"{runtime} was still busy after {limit_s:g} s",
            remedy="Give it longer with --timeout.",
            **about,
        )
    if found["loaded"] and whole_numbers and not found["crashed"]:
        # an index or a size that was made up may be what it stumbled over
        return Answer(
            verdict=Verdict.TAKEN,
            reason=f"loaded; with ones as its integers it does not run: {sentence(reason)}",
            **about,
        )
    when = " (loaded; it fails when it is run)" if found["loaded"] else ""
    return Answer(verdict=Verdict.REFUSED, reason=f"{sentence(reason)}{when}", **about)


def _compared(answer: Answer, model: Any, results: Mapping[str, Path], target: str) -> Answer:
    """Hold OpenVINO's results against ONNX Runtime's."""
    ours, theirs = results.get(ASKED[target][0]), results.get("onnxruntime")
    kinds = {node.op_type for node in model.graph.node}
    if target != "openvino" or ours is None or theirs is None or _is_random(kinds):
        return answer
    found = difference(ours, theirs)
    if found is None:
        return answer
    limit = TOLERANCES[precision_of(model)].max_error
    if found <= limit:
        return replace(answer, difference=found)
    return replace(
        answer,
        verdict=Verdict.WRONG,
        difference=found,
        reason=f"its results differ from ONNX Runtime's by {found:.2g} of their range"
        if np.isfinite(found)
        else "its results and ONNX Runtime's are of other shapes, or not finite in other places",
    )


def _is_random(kinds: set[str]) -> bool:
    return any(kind.startswith("Random") or kind in ("Bernoulli", "Multinomial") for kind in kinds)


def precision_of(model: Any) -> str:
    """Return which of `deviation.TOLERANCES` two computations of a graph of any origin may keep."""
    onnx = require("onnx", extra="onnx")
    kinds = {node.op_type for node in model.graph.node}
    if any("Quantize" in kind or "Integer" in kind for kind in kinds):
        return "int8"
    types = {constant.data_type for constant in model.graph.initializer}
    types |= {port.type.tensor_type.elem_type for port in model.graph.input}
    if onnx.TensorProto.BFLOAT16 in types:
        return "bf16"
    return "f16" if onnx.TensorProto.FLOAT16 in types else "f32, DFT nodes"
