"""The one table of export targets; export, bench, doctor and the documentation read it."""

from __future__ import annotations

from dataclasses import dataclass

from kdmri_edge.errors import ExportError
from kdmri_edge.suggest import nearest

__all__ = ["TARGETS", "Target", "target_named"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A form in which a network can leave PyTorch.

    Attributes:
        name: What the command line calls it.
        title: The runtime that executes it, for tables.
        graph_file: Name of the graph inside a bundle.
        exporter: Import string `module:function` of the function that writes the graph.
        backend: Import string `module:class` of the session that runs it.
        exports_with: Libraries that the exporter needs beside torch.
        module_probe: Library that the session needs.
        extra: Extra of this project that brings them.
        devices: Devices that the session can run on.
        precisions: Precisions that it can be asked for.
    """

    name: str
    title: str
    graph_file: str
    exporter: str
    backend: str
    exports_with: tuple[str, ...]
    module_probe: str
    extra: str
    devices: tuple[str, ...]
    precisions: tuple[str, ...]

    @property
    def suffix(self) -> str:
        """Suffix of the graph, with its dot."""
        return "." + self.graph_file.rpartition(".")[2]


_ALL = (
    Target(
        name="torchscript",
        title="TorchScript",
        graph_file="model.pt",
        exporter="kdmri_export.to_torchscript:write",
        backend="kdmri_edge.runtime.torchscript:TorchScriptSession",
        exports_with=(),
        module_probe="torch",
        extra="train",
        devices=("cpu",),
        precisions=("f32",),
    ),
    Target(
        name="onnx",
        title="ONNX Runtime",
        graph_file="model.onnx",
        exporter="kdmri_export.to_onnx:write",
        backend="kdmri_edge.runtime.ort:OnnxRuntimeSession",
        exports_with=("onnx", "onnxscript"),
        module_probe="onnxruntime",
        extra="onnx",
        devices=("cpu",),
        precisions=("f32",),
    ),
    Target(
        name="openvino",
        title="OpenVINO",
        graph_file="model.xml",
        exporter="kdmri_export.to_openvino:write",
        backend="kdmri_edge.runtime.ov:OpenVinoSession",
        exports_with=("onnx", "onnxscript"),
        module_probe="openvino",
        extra="openvino",
        devices=("cpu",),
        precisions=("f32", "bf16"),
    ),
)

TARGETS: dict[str, Target] = {target.name: target for target in _ALL}


def target_named(name: str) -> Target:
    """Return a target.

    Raises:
        ExportError: There is none of that name; the message suggests the nearest.
    """
    if name in TARGETS:
        return TARGETS[name]
    near = nearest(name, TARGETS)
    raise ExportError(
        f"There is no export target {name!r}; did you mean {near!r}?",
        f"Targets: {', '.join(TARGETS)}.",
    )
