"""Variants of a network: each runtime, precision and option that it can be run with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kdmri_bench.planning.settings import USUAL, BenchSettings, Precision
from kdmri_bench.results.schema import DEFAULT, PLAIN_EXPORT
from kdmri_edge.models.protocol import NetworkSpec
from kdmri_edge.runtime.backends.registry import BACKENDS, Backend
from kdmri_edge.runtime.targets import TARGETS, Target

__all__ = [
    "COMPILED",
    "CUDA",
    "REFERENCE",
    "EagerVariant",
    "ExportedVariant",
    "eager_variants",
    "exported_variants",
    "precisions",
    "variants_for",
]

REFERENCE: Final = "PyTorch"
"""Title of the runtime that speed-ups and differences refer to."""

CUDA: Final = "PyTorch CUDA"
COMPILED: Final = "torch.compile"
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
        options: for the session.
    """

    key: str
    runtime: str = REFERENCE
    variant: str = DEFAULT
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)


def _cuda(key: str, variant: str, mode: str) -> EagerVariant:
    options = {"layout": "channels_last", "device": "cuda", "mode": mode}
    return EagerVariant(key=key, runtime=CUDA, variant=variant, device="cuda", options=options)


_EAGER: Final = (
    EagerVariant(key="pytorch-f32", options={"layout": "channels_last"}),
    EagerVariant(key="pytorch-f32-layout", variant="default layout", options={"layout": "default"}),
    EagerVariant(
        key="pytorch-f32-compile",
        variant=COMPILED,
        options={"layout": "channels_last", "mode": "compile"},
    ),
    _cuda("cuda-f32", DEFAULT, "eager"),
    _cuda("cuda-f32-graph", "CUDA graph", "graph"),
    _cuda("cuda-f32-compile", COMPILED, "compile"),
)


def eager_variants(settings: BenchSettings) -> list[EagerVariant]:
    """Return the variants in PyTorch; the first one is the reference."""
    if Precision.F32 not in settings.precisions:
        return []
    return list(_EAGER) if settings.every_way else [_EAGER[0]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedVariant:
    """A network that leaves PyTorch for a target, and runs in one of its backends.

    Attributes:
        target: of the export.
        backend: what runs it.
        precision: that is asked for.
        dc: form of data consistency.
        variant: what is special about it.
        options: for the session.
    """

    target: Target
    backend: Backend
    precision: Precision
    dc: str = "auto"
    variant: str = DEFAULT
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def written(self) -> str:
        """Precision of the graph; bf16 is chosen when a float32 graph is loaded."""
        return "f32" if self.precision is Precision.BF16 else str(self.precision)

    @property
    def device(self) -> str:
        """Where it runs."""
        return self.backend.devices[0]

    @property
    def builder(self) -> str | None:
        """What builds its engine, None for a graph that is run as it is."""
        return {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}.get(self.backend.name)

    @property
    def key(self) -> str:
        """The row's key, after the network's name."""
        second = self.backend is not self.target.backend
        name = self.backend.name if second else self.target.name
        marks = [self.dc] if self.dc != "auto" else []
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
    wanted = list(settings.precisions)
    if settings.every_way and settings.precisions == USUAL and backend.devices == ("cuda",):
        wanted.insert(1, Precision.F16)  # what GPUs are usually run in
    return [precision for precision in wanted if str(precision) in backend.precisions]
