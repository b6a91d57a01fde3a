"""The one table of export targets; export, bench, doctor and the documentation read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from kdmri_edge.errors import ExportError
from kdmri_edge.registry import Registry
from kdmri_edge.runtime.backends.registry import BACKENDS, Backend

__all__ = ["PRECISIONS", "TARGETS", "Target"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A form in which a network can leave PyTorch.

    Attributes:
        name: What the command line calls it.
        graph_file: Name of the graph inside a bundle.
        exporter: Import string `module:function` of the function that writes the graph.
        exports_with: Libraries that the exporter needs beside torch.
        runs_on: Names of the backends that take the graph; the first is the one that it is for.
        checked_on: Name of the backend that the parity gate runs it in; None for the first.
        precisions: In which it can be exported.
        writes_bf16: Whether its graphs of bf16 are written in it. Others are float32 graphs, whose
            runtime is asked for bf16 when it loads them.
        keeps_op: Whether its graphs can keep data consistency as one node.
        any_coils: Whether its graphs of multi-coil networks take any number of coils.
        any_matrix: Whether its graphs can leave height and width free.
        builds_engines: Whether what runs is an engine, built for a device from the graph.
        compiles: Whether a C++ compiler makes of its graphs what runs on this machine's CPU, which
            takes most of a minute: benchmarks measure its bundles where one is named.
        remark: What one has to know before one chooses it, as a sentence.
        lacks: Why it has not a precision that others have, by its name in manifests.
    """

    name: str
    graph_file: str
    exporter: str
    exports_with: tuple[str, ...] = ()
    runs_on: tuple[str, ...]
    checked_on: str | None = None
    precisions: tuple[str, ...] = ("f32", "f16", "int8")
    writes_bf16: bool = False
    keeps_op: bool = False
    any_coils: bool = True
    any_matrix: bool = False
    builds_engines: bool = False
    compiles: bool = False
    remark: str = ""
    lacks: Mapping[str, str] = field(default_factory=dict)

    @property
    def backend(self) -> Backend:
        """The runtime that it is made for."""
        return BACKENDS.named(self.runs_on[0])

    @property
    def checker(self) -> Backend:
        """The runtime of the parity gate."""
        return BACKENDS.named(self.checked_on or self.runs_on[0])

    @property
    def offered(self) -> tuple[str, ...]:
        """Its precisions, as the command line calls them."""
        return tuple(name for name, short in PRECISIONS.items() if short in self.precisions)

    def written(self, precision: str) -> str:
        """Return the precision that its graphs are written in, for one that is asked for."""
        return "f32" if precision == "bf16" and not self.writes_bf16 else precision

    @property
    def suffix(self) -> str:
        """Suffix of the graph, with its dot."""
        return "." + self.graph_file.rpartition(".")[2]


_ALL = (
    Target(
        name="torchscript",
        graph_file="model.pt",
        exporter="kdmri_export.targets.torchscript:write",
        any_matrix=True,
        runs_on=("torch",),
        remark="Deprecated in PyTorch; its successor is `pt2`.",
    ),
    Target(
        name="pt2",
        graph_file="model.pt2",
        exporter="kdmri_export.targets.pt2:write",
        runs_on=("pt2",),
        precisions=("f32", "f16"),
        compiles=True,
        remark="A program of torch.export, compiled by AOTInductor where there is a C++ compiler.",
        lacks={
            "int8": "PyTorch's quantised convolutions cannot be saved in a program of torch.export"
            " without the package torchao"
        },
    ),
    Target(
        name="onnx",
        graph_file="model.onnx",
        exporter="kdmri_export.targets.onnx:write",
        any_matrix=True,
        exports_with=("onnx", "onnxscript"),
        runs_on=("onnxruntime", "openvino"),
        keeps_op=True,
    ),
    Target(
        name="openvino",
        graph_file="model.xml",
        exporter="kdmri_export.targets.openvino:write",
        any_matrix=True,
        exports_with=("onnx", "onnxscript"),
        runs_on=("openvino",),
        precisions=("f32", "f16", "bf16", "int8"),
    ),
    Target(
        name="trt",
        graph_file="model.onnx",
        exporter="kdmri_export.targets.tensorrt.write:write",
        any_matrix=True,
        exports_with=("onnx", "onnxscript"),
        runs_on=("tensorrt", "tensorrt-rtx", "onnxruntime", "openvino"),
        # engines are built and run on the device; what is checked here is the graph they come from
        checked_on="onnxruntime",
        precisions=("f32", "f16", "bf16", "int8"),
        writes_bf16=True,
        any_coils=False,
        builds_engines=True,
        remark="bf16 for GPUs of compute capability 8.0 and newer.",
    ),
)

PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "int8"}
"""What users call the precisions of a graph, and their names in manifests, reports and sessions."""


def as_users_write(text: str) -> str:
    """Return a text about precisions in users' spelling: "f16 weights" as "fp16 weights"."""
    return re.sub(r"\bf(16|32)\b", r"fp\1", text)


TARGETS: Final = Registry(
    "kdmri_edge.targets",
    Target,
    "export target",
    {target.name: target for target in _ALL},
    error=ExportError,
)
