"""What each layer of a graph takes, as its runtime tells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

__all__ = ["LayerTime", "from_onnxruntime", "medians"]

# ONNX Runtime's names of element types.
_TYPES = {"float": "f32", "float16": "f16", "bfloat16": "bf16", "uint8": "u8", "int8": "i8"}
_KERNEL = "_kernel_time"


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerTime:
    """One layer of the graph that a runtime made of a network's.

    Attributes:
        layer: What the runtime calls it.
        type: Its operator, in the runtime's words.
        precision: What it really computes in, as the runtime tells: of OpenVINO's layers their own
            precision, of ONNX Runtime's the type of what they read first.
        kernel: The implementation, empty where the runtime names none.
        ms: Median of its times over the queries.
    """

    layer: str
    type: str
    precision: str
    kernel: str
    ms: float


def medians(queries: Sequence[Sequence[LayerTime]]) -> list[LayerTime]:
    """Return what each layer takes in the middle of several queries, in their order.

    Args:
        queries: Of each query its layers; a layer that a query left out counts as 0 ms there.
    """
    found: dict[tuple[str, str], list[LayerTime]] = {}
    for query in queries:
        for one in query:
            found.setdefault((one.layer, one.type), []).append(one)
    made = []
    for times in found.values():
        missing = [0.0] * (len(queries) - len(times))
        known = times[0]
        made.append(
            LayerTime(
                layer=known.layer,
                type=known.type,
                precision=known.precision,
                kernel=known.kernel,
                ms=median([*(one.ms for one in times), *missing]),
            )
        )
    return made


def from_onnxruntime(file: Path, *, warmup: int) -> list[LayerTime]:
    """Read the profile that ONNX Runtime wrote of several queries.

    Args:
        file: JSON, a list of events.
        warmup: The first queries, which do not count.
    """
    queries: list[list[LayerTime]] = []
    seen: dict[str, int] = {}
    for event in json.loads(file.read_text(encoding="utf-8")):
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_KERNEL):
            continue
        query = seen[name] = seen.get(name, -1) + 1
        while len(queries) <= query:
            queries.append([])
        told = event["args"]
        read = next((kind for one in told.get("input_type_shape", ()) for kind in one), "")
        queries[query].append(
            LayerTime(
                layer=name.removesuffix(_KERNEL),
                type=str(told["op_name"]),
                precision=_TYPES.get(read, read),
                kernel="",
                ms=float(event["dur"]) / 1e3,
            )
        )
    return medians(queries[warmup:])
