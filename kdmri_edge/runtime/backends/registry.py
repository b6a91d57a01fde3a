"""The one table of runtimes: what executes the graph of a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kdmri_edge.errors import BackendError
from kdmri_edge.registry import Registry

__all__ = ["BACKENDS", "Backend"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """A runtime.

    Attributes:
        name: What the command line calls it.
        title: Its own name, for tables.
        session: Import string `module:class` of the session that drives it.
        library: The Python package that it needs.
        extra: Extra of this project that brings that package.
        runs_with: Packages that it needs beside it to run anything.
        profiles: Whether its session tells what each layer takes (`Session.profile`).
        devices: Devices that the session can run on, the usual one first. "gpu" and "npu" are
            what OpenVINO calls so, "cuda" is NVIDIA's.
        precisions: Precisions that it can be asked for; f16 and int8 are those of the graph, and of
            engines so is bf16.
    """

    name: str
    title: str
    session: str
    library: str
    extra: str
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    runs_with: tuple[str, ...] = ()
    profiles: bool = False


_ALL = (
    Backend(
        name="onnxruntime",
        title="ONNX Runtime",
        session="kdmri_edge.runtime.backends.onnxruntime:OnnxRuntimeSession",
        library="onnxruntime",
        extra="onnx",
        devices=("cpu", "cuda"),
        precisions=("f32", "f16", "int8"),
        profiles=True,
    ),
    Backend(
        name="openvino",
        title="OpenVINO",
        session="kdmri_edge.runtime.backends.openvino:OpenVinoSession",
        library="openvino",
        extra="openvino",
        devices=("cpu", "gpu", "npu"),
        precisions=("f32", "f16", "bf16", "int8"),
        profiles=True,
    ),
    Backend(
        name="torch",
        title="TorchScript",
        session="kdmri_edge.runtime.backends.torchscript:TorchScriptSession",
        library="torch",
        extra="train",
        devices=("cpu",),
        precisions=("f32", "f16", "int8"),
    ),
    Backend(
        name="pt2",
        title="torch.export",
        session="kdmri_edge.runtime.backends.pt2:Pt2Session",
        library="torch",
        extra="train",
        devices=("cpu",),
        precisions=("f32", "f16"),
    ),
    Backend(
        name="cuda",
        title="fused CUDA kernels",
        session="kdmri_edge.runtime.backends.pytorch:FusedSession",
        library="triton",
        extra="gpu",
        devices=("cuda",),
        precisions=("f16", "bf16"),
        runs_with=("torch",),
    ),
    Backend(
        name="tensorrt",
        title="TensorRT",
        session="kdmri_edge.runtime.backends.tensorrt:TensorRTSession",
        library="tensorrt",
        extra="trt",
        devices=("cuda",),
        precisions=("f32", "f16", "bf16", "int8"),
        runs_with=("cuda",),
    ),
    Backend(
        name="tensorrt-rtx",
        title="TensorRT-RTX",
        session="kdmri_edge.runtime.backends.tensorrt:TensorRTRtxSession",
        library="tensorrt_rtx",
        extra="trt-rtx",
        devices=("cuda",),
        precisions=("f32", "f16", "bf16", "int8"),
        runs_with=("cuda",),
    ),
)

BACKENDS: Final = Registry(
    "kdmri_edge.backends",
    Backend,
    "backend",
    {backend.name: backend for backend in _ALL},
    error=BackendError,
)
