"""Variants of a network: each runtime, precision and option that it can be run with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from kdmri_bench.planning.settings import USUAL, BenchSettings, Precision
from kdmri_bench.results.schema import DEFAULT, PLAIN_EXPORT
from kdmri_edge.models.protocol import NetworkSpec
from kdmri_edge.runtime.backends.registry import BACKENDS, Backend
from kdmri_edge.runtime.targets import TARGETS, Target
from kdmri_edge.utils.extras import available, load_attribute

__all__ = [
    "COMPILED",
    "CUDA",
    "REFERENCE",
    "TORCH_TENSORRT",
    "EagerVariant",
    "ExportedVariant",
    "eager_variants",
    "exported_variants",
    "found_by_openvino",
    "precisions",
    "variants_for",
]

REFERENCE: Final = "PyTorch"
"""Title of the runtime that speed-ups and differences refer to."""

CUDA: Final = "PyTorch CUDA"
COMPILED: Final = "torch.compile"
TORCH_TENSORRT: Final = "Torch-TensorRT"
_THROUGHPUT: Final = "throughput hint"

# torch.fft becomes DFT nodes in these; TorchScript keeps calling PyTorch's own FFT.
_PLAIN_TARGETS: Final = ("onnx", "openvino")
_PLAIN_DC: Final = "fft"


@dataclass(frozen=True, kw_only=True, slots=True)
class EagerVariant:
    """A checkpoint that runs in PyTorch itself.

    Attributes:
        key: the row's, after the network's name.
        runtime: title.
        variant: what is special about it.
        device: "cpu" or "cuda".
        precision: that is asked for.
        options: for the session.
    """

    key: str
    runtime: str = REFERENCE
    variant: str = DEFAULT
    device: str = "cpu"
    precision: Precision = Precision.F32
    options: Mapping[str, Any] = field(default_factory=dict)


_CUDA_MODES: Final = {"": (DEFAULT, "eager"), "-graph": ("CUDA graph", "graph"),
                      "-fused": ("fused kernels", "fused"),
                      "-torch-tensorrt": (TORCH_TENSORRT, "torch-tensorrt"),
                      "-compile": (COMPILED, "compile")}  # fmt: skip


def _cuda(precision: Precision) -> list[EagerVariant]:
    return [
        EagerVariant(
            key=f"cuda-{precision}{mark}",
            runtime=CUDA,
            variant=variant,
            device="cuda",
            precision=precision,
            options={
                # TensorRT chooses the layout of its engines itself
                "layout": "default" if mode == "torch-tensorrt" else "channels_last",
                "device": "cuda",
                "mode": mode,
            },
        )
        for mark, (variant, mode) in _CUDA_MODES.items()
        if mode != "fused" or precision is not Precision.F32
    ]


_EAGER: Final = (
    EagerVariant(key="pytorch-f32", options={"layout": "channels_last"}),
    EagerVariant(key="pytorch-f32-layout", variant="default layout", options={"layout": "default"}),
    EagerVariant(
        key="pytorch-f32-compile",
        variant=COMPILED,
        options={"layout": "channels_last", "mode": "compile"},
    ),
    *_cuda(Precision.F32),
    *_cuda(Precision.F16),
    *_cuda(Precision.BF16),
)


def eager_variants(settings: BenchSettings) -> list[EagerVariant]:
    """Return the variants in PyTorch; the first one is the reference."""
    if not settings.every_way:
        return [_EAGER[0]] if Precision.F32 in settings.precisions else []
    wanted = _on_gpus(settings)
    return [
        variant
        for variant in _EAGER
        if variant.precision in (wanted if variant.device == "cuda" else settings.precisions)
    ]


def _on_gpus(settings: BenchSettings) -> list[Precision]:
    """Return the precisions for a GPU: halves are what it is usually run in."""
    wanted = list(settings.precisions)
    if settings.every_way and settings.precisions == USUAL:
        wanted.insert(1, Precision.F16)
    return wanted


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedVariant:
    """A network that leaves PyTorch for a target, and runs in one of its backends.

    Attributes:
        target: of the export.
        backend: what runs it.
        precision: that is asked for.
        dc: form of data consistency.
        variant: what is special about it.
        place: device, and part of the key; None for the backend's usual device.
        options: for the session.
    """

    target: Target
    backend: Backend
    precision: Precision
    dc: str = "auto"
    variant: str = DEFAULT
    place: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def written(self) -> str:
        """Precision of the graph; of some targets bf16 is chosen when a float32 one is loaded."""
        return self.target.written(str(self.precision))

    @property
    def device(self) -> str:
        """Where it runs."""
        return str(self.options.get("device", self.backend.devices[0]))

    @property
    def builder(self) -> str | None:
        """What builds its engine, None for a graph that is run as it is."""
        return {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}.get(self.backend.name)

    @property
    def key(self) -> str:
        """The row's key, after the network's name."""
        second = self.backend is not self.target.backend
        name = self.backend.name if second else self.target.name
        marks = [self.place] if self.place else []
        marks += [self.dc] if self.dc != "auto" else []
        marks += [str(self.precision)]
        marks += ["throughput"] if self.variant == _THROUGHPUT else []
        return "-".join([name, *marks])


def exported_variants(
    spec: NetworkSpec, role: str, settings: BenchSettings
) -> list[ExportedVariant]:
    """Return the exports of a network, and what runs them."""
    found = []
    for target in TARGETS.values():
        if target.compiles:
            continue  # a C++ compiler takes most of a minute for each: name its bundle instead
        found += variants_for(target, target.backend, settings)
    if settings.every_way:
        found += variants_for(TARGETS["trt"], BACKENDS["tensorrt-rtx"], settings)
        found += _providers(settings)
        found += _openvino_devices(settings)
        found += [
            ExportedVariant(
                target=variant.target,
                backend=variant.backend,
                precision=variant.precision,
                variant=_THROUGHPUT,
                options={"hint": "THROUGHPUT"},
            )
            for variant in variants_for(TARGETS["openvino"], BACKENDS["openvino"], settings)
        ]
    # The plain student has the distilled one's graph: measuring it twice would tell nothing.
    if settings.plain_export and role != "plain" and spec.has_data_consistency:
        found += [
            ExportedVariant(
                target=variant.target,
                backend=variant.backend,
                precision=variant.precision,
                dc=_PLAIN_DC,
                variant=PLAIN_EXPORT,
            )
            for name in _PLAIN_TARGETS
            for variant in variants_for(TARGETS[name], TARGETS[name].backend, settings)
            if variant.precision in (Precision.F32, Precision.BF16)
        ]
    return found


def _providers(settings: BenchSettings) -> list[ExportedVariant]:
    """Return ONNX Runtime's ways of using an NVIDIA GPU; the graph is that for TensorRT."""
    places = {"cuda": "CUDA provider", "rtx": "TensorRT-RTX provider"}
    names = {"cuda": "cuda", "rtx": "tensorrt-rtx"}
    return [
        ExportedVariant(
            target=TARGETS["trt"],
            backend=BACKENDS["onnxruntime"],
            precision=precision,
            variant=title,
            place=place,
            options={"device": "cuda", "provider": names[place]},
        )
        for place, title in places.items()
        for precision in _on_gpus(settings)
        if precision in (Precision.F32, Precision.F16)
    ]


@cache
def found_by_openvino() -> tuple[str, ...]:
    """Return the devices that OpenVINO finds; empty where it is not installed."""
    backend = BACKENDS["openvino"]
    if not available(backend.library):
        return ()
    devices: tuple[str, ...] = load_attribute(backend.session).devices_here()
    return devices


def _openvino_devices(settings: BenchSettings) -> list[ExportedVariant]:
    """Return OpenVINO's devices beside the CPU; an NPU computes in float16 alone."""
    kinds = {"gpu": (Precision.F32, Precision.INT8), "npu": (Precision.F16,)}
    return [
        ExportedVariant(
            target=TARGETS["openvino"],
            backend=BACKENDS["openvino"],
            precision=precision,
            variant=f"{device.upper()}",
            place=device,
            options={"device": device},
        )
        for device, offered in kinds.items()
        if device in found_by_openvino()
        for precision in offered
        if precision in _on_gpus(settings)
    ]


def variants_for(
    target: Target, backend: Backend, settings: BenchSettings
) -> list[ExportedVariant]:
    """Return the variants of a target's graphs in a backend, one for each precision."""
    return [
        ExportedVariant(target=target, backend=backend, precision=precision)
        for precision in precisions(backend, settings)
    ]


def precisions(backend: Backend, settings: BenchSettings) -> list[Precision]:
    """Return the precisions that are asked for and that the backend has."""
    on_gpu = backend.devices == ("cuda",)
    wanted = _on_gpus(settings) if on_gpu else list(settings.precisions)
    return [precision for precision in wanted if str(precision) in backend.precisions]
